"""`opdlm serve` as a user starts it: in a process of its own, and what it says where it cannot start."""

import signal
import socket
import subprocess
import sys

import httpx2
import openai
import pytest

from cli_support import fails
from opdlm.cli import serve
from opdlm.errors import UsageError
from opdlm.serve.server import take_port
from opdlm.tiny import QUESTIONS


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_packages_own_models_until_it_is_told_to_stop(stop: signal.Signals) -> None:
    """Else the first command that a newcomer types would need a model, or a supervisor could not stop it in order."""
    words = [sys.executable, "-m", "opdlm", "serve", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading student, ar_model\n", "nothing else shows that it is at work"
        line = process.stdout.readline()
        assert line.startswith("serving student, ar_model at http://127.0.0.1:")
        url = line.split()[4]
        with openai.OpenAI(base_url=url, api_key="any") as client:
            answers = [
                client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0
                )
                for name in ("student", "ar_model")
            ]
        assert "42" in str(answers[0].choices[0].message.content)
        assert answers[0].usage.forwards < answers[1].usage.forwards
        process.send_signal(stop)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


def test_a_port_in_use_is_found_before_any_model_is_loaded(capsys) -> None:
    """Else a user would wait for the model to load, and then read a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use" in fails(capsys, "serve", "no such model", "--port", port)


def test_two_servers_that_start_do_not_take_the_same_port() -> None:
    """Else the second would load its model, and then end with a traceback."""
    with take_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use"):
            take_port("127.0.0.1", port)


def test_what_cannot_be_served(capsys, tmp_path, monkeypatch) -> None:
    """Else a mistake would be a traceback, or a server without a model."""
    assert "no such model" in fails(capsys, "serve", "no such model", "--port", "0")
    assert "is no address of this machine" in fails(capsys, "serve", "--host", "192.0.2.1", "--port", "0")
    assert "setting port" in fails(capsys, "serve", "--port", "70000")
    assert "setting batch_size" in fails(capsys, "serve", "--batch-size", "0")
    for place in ("a", "b"):
        (tmp_path / place / "model").mkdir(parents=True)
    same = [tmp_path / place / "model" for place in ("a", "b")]
    assert "two models are called 'model'" in fails(capsys, "serve", *same, "--port", "0")
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert "pip install 'opdlm[serve]'" in fails(capsys, "serve")
