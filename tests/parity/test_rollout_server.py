"""Rollouts by SGLang: the protocol, the weights, the texts, and what a server can do wrong."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlm import convert
from opdlm.checkpoints import export_sdar
from opdlm.config import ConvertSettings, settings_from
from opdlm.distill import api, sglang_client
from opdlm.distill.sglang_client import SGLangClient
from opdlm.errors import ConfigError, OpdlmError, RolloutServerError, UnsupportedModelError
from opdlm.records.run_folder import RunFolder
from rollout_server import Server, serving
from runs import PROMPTS, metrics, small_ar_model, weights
from support import MASK, tiny_model, tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "method": "onpolicy_text",
    "prediction": "same",
    "context": "block",
    "rollout_hold_end": False,
    "decoding": "dynamic:0.3",
    "rollouts": 3,
    "prompts_per_rollout": 3,
    "rows_per_update": 2,
    "rollout_batch": 2,
    "rollout_temperature": 0.0,
    "rollout_decoding": "dynamic:0.3",
    "response_length": {"start": 6, "end": 9, "rollouts": 2},
    "optimiser": {"learning_rate": 3e-3, "warmup_updates": 1},
    "save_every_rollouts": 10,
}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Qwen3 of 97 tokens whose mask token is the one that the engines demand."""
    monkeypatch.setattr(export_sdar, "MASK_ID", MASK)
    monkeypatch.setattr(sglang_client, "sleep", lambda seconds: None)
    tiny_model("qwen3", num_hidden_layers=2, initializer_range=0.35).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def run(base: str, output: Path, server: Server | None, **changes: Any) -> Path:
    url = {} if server is None else {"rollout_server": server.url}
    convert(base, PROMPTS, output, **SETTINGS | url | changes)
    return output


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4, "recipe": "standard"}], ids=["full", "lora"])
def test_a_run_is_that_of_the_engine_here(changes: dict[str, Any], base: str, tmp_path: Path) -> None:
    """Else the server would write with old weights, or texts would be cut, shifted or given to other prompts."""
    with serving(Server()) as server:
        run(base, tmp_path / "served", server, **changes)
    run(base, tmp_path / "here", None, **changes)
    ours, theirs = weights(tmp_path / "here"), weights(tmp_path / "served")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("served", "here")]
    assert losses[0] == losses[1]
    paths = [path for path, _ in server.asked]
    calls = [path.count("/generate") + 10 * path.count("/update_weights_from_disk") for path in paths]
    assert calls == [0, 10, 1, 1, 10, 1, 10, 1, 1], "an update before each rollout, which has 3, 2 and 3 prompts"
    versions = [body["weight_version"] for path, body in server.asked if path.startswith("/update")]
    assert len(set(versions)) == 3
    assert all(body["flush_cache"] for path, body in server.asked if path.startswith("/update"))
    assert not list((tmp_path / "served" / api.ROLLOUT_WEIGHTS).iterdir()), "weights of every rollout would pile up"


def test_a_lossless_run_needs_the_ar_model_alone(tmp_path: Path) -> None:
    """Else a server of the unchanged base could not write what a lossless conversion learns from."""
    from opdlm.checkpoints.load import load_ar_model
    from opdlm.core.layout import AUTOREGRESSIVE
    from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel

    base = small_ar_model(tmp_path)
    plain = BlockDiffusionModel(load_ar_model(base)[0], AUTOREGRESSIVE, NO_MASK)
    lossless = {"recipe": "lossless", "lora_rank": 4, "anchors": "all", "rollout_temperature": 0.0}
    masks = ("method", "rollout_decoding", "prediction", "context", "rollout_hold_end", "decoding")
    common = {name: value for name, value in SETTINGS.items() if name not in masks} | lossless
    with serving(Server(plain, "sequential", algorithm=None)) as server:
        convert(base, PROMPTS, tmp_path / "served", **common, rollout_server=server.url)
        assert {path for path, _ in server.asked} == {"/server_info", "/generate"}
        with pytest.raises(ConfigError, match="set anchors to all"):
            convert(base, PROMPTS, tmp_path / "x", **common | {"anchors": "random"}, rollout_server=server.url)
    convert(base, PROMPTS, tmp_path / "here", **common)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("served", "here")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # other widths of the rows, so other last bits


def stale(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    answer = server.generate(body)
    for one in answer:
        one["meta_info"]["weight_version"] = "default"
    return 200, answer


def shorter(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, server.generate(body)[1:]


def masked(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, [{**one, "output_ids": [5, MASK]} for one in server.generate(body)]


def strange(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, [{**one, "output_ids": [5, 10_000]} for one in server.generate(body)]


def silent(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, [{**one, "output_ids": []} for one in server.generate(body)]


def aborted(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    about = {"weight_version": server.version, "finish_reason": {"type": "abort", "message": "out of memory"}}
    return 200, [{**one, "meta_info": about} for one in server.generate(body)]


def slow(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
    time.sleep(0.6)
    return 200, []


WRONG = {
    "stale": ("/generate", stale, "someone else updates it"),
    "shorter": ("/generate", shorter, "a list of 2 responses"),
    "masked": ("/generate", masked, f"token {MASK}"),
    "strange": ("/generate", strange, "token 10000"),
    "silent": ("/generate", silent, "output_ids and meta_info"),
    "aborted": ("/generate", aborted, "out of memory"),
    "slow": ("/generate", slow, "no answer in 0.3 s"),
    "no JSON": ("/generate", lambda server, body: (200, b"<html>"), "is it SGLang"),
    "an object": ("/generate", lambda server, body: (200, {"object": "x"}), "is it SGLang"),
    "refused": ("/generate", lambda server, body: (400, {"error": {"message": "too long"}}), "400: too long"),
    "busy": ("/generate", lambda server, body: (503, b"starting"), "503: starting"),
    "not loaded": (
        "/update_weights_from_disk",
        lambda server, body: (400, {"success": False, "message": "no such folder"}),
        "400: no such folder",
    ),
    "not done": (
        "/update_weights_from_disk",
        lambda server, body: (200, {"success": False, "message": "shape"}),
        r"did not load .*\(shape\)",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_a_server_does_wrong_is_said(kind: str) -> None:
    """Else a run would learn from another model's text, from half a batch, or wait for ever."""
    path, answer, words = WRONG[kind]
    with serving(Server(wrong={path: answer}, version="v1")) as server:
        server.generate = lambda body: (
            [  # type: ignore[method-assign]
                {"output_ids": [5, 6], "meta_info": {"weight_version": "v1", "finish_reason": {"type": "length"}}}
            ]
            * len(body["input_ids"])
        )
        client = SGLangClient(server.url, 0.3 if kind == "slow" else 30.0, (0.0, 0.0))
        with pytest.raises(RolloutServerError, match=words) as caught:
            _updated(client) if path == "/update_weights_from_disk" else _written(client)
        assert "\n" not in str(caught.value)
        assert len(server.asked) == (3 if kind == "busy" else 1), "only what may pass by itself is asked again"


def _updated(client: SGLangClient) -> None:
    client.update_weights(Path("/nowhere"), "v1")


def _written(client: SGLangClient) -> None:
    """With the check that a worker makes of the tokens."""
    from opdlm.distill.sglang_worker import SGLangWorker
    from opdlm.models.tokens import SpecialTokens

    worker = SGLangWorker(client, SpecialTokens(MASK, 0, ()), 4, 97, 2, lambda folder: None, Path("x"))
    worker._check_tokens(client.generate([[1], [2]], [{}, {}], "v1"))


def test_a_server_that_goes_away_costs_nothing(base: str, tmp_path: Path) -> None:
    """Else the rollouts since the last checkpoint would be lost, or a resumed run would be another one."""
    calls = 0

    def dies(server: Server, body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal calls
        calls += 1
        return (200, server.generate(body)) if calls <= 4 else (500, b"dead")

    with serving(Server(wrong={"/generate": dies})) as server:
        with pytest.raises(RolloutServerError, match=r"500: dead.*--resume"):
            run(base, tmp_path / "served", server)
        state = json.loads((tmp_path / "served" / "metrics.jsonl").read_text().splitlines()[-1])
        assert state["rollout"] == 2
        assert not list((tmp_path / "served" / api.ROLLOUT_WEIGHTS).iterdir())
        assert RunFolder(tmp_path / "served").latest() is not None
        server.wrong.clear()
        server.asked.clear()
        api.resume(tmp_path / "served")
        assert [path for path, _ in server.asked].count("/generate") == 2, "what was done is not done again"
    run(base, tmp_path / "here", None)
    ours, theirs = weights(tmp_path / "here"), weights(tmp_path / "served")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_what_cannot_be_is_refused_before_anything_is_written(base: str, tmp_path: Path) -> None:
    """Else a run would fail after its first rollout, or learn from states that nobody visited."""

    def refused(kind: type[OpdlmError], words: str, model: str = base, **changes: Any) -> None:
        with pytest.raises(kind, match=words):
            convert(model, PROMPTS, tmp_path / "run", **SETTINGS | {"rollout_server": server.url} | changes)
        assert not (tmp_path / "run").exists()

    with serving(Server(algorithm=None)) as server:
        refused(RolloutServerError, "LowConfidence is due.*--format sdar --block-size 4", block_size=4)
        refused(ConfigError, "set method to onpolicy_text", method="opd")
        refused(ConfigError, "leave rollout_server out", method="offpolicy_kd")
        refused(ConfigError, "prediction same and context block", prediction="shifted")
        refused(ConfigError, "rollout_temperature to 0", rollout_temperature=1.0)
        refused(ConfigError, "rollout_decoding to dynamic", rollout_decoding="static")
    server.url = "http://127.0.0.1:1"
    refused(RolloutServerError, "cannot be reached.*start it", rollout_timeout_s=5.0)
    with serving(Server()) as server:
        tiny_model().save_pretrained(tmp_path / "llama")
        tiny_tokenizer().save_pretrained(tmp_path / "llama")
        refused(UnsupportedModelError, "llama model", model=str(tmp_path / "llama"))
    assert settings_from(ConvertSettings, {}).rollout_server == ""
