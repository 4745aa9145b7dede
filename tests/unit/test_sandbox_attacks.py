"""Programs written to pass without the answer: each fails, whatever it does, and the evaluation goes on."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attacks import FORGED, HARMFUL, HIGHER, MARK, REACHING
from opdlm.evals.answers import answered
from opdlm.evals.problem import Problem
from opdlm.evals.sandbox import run_calls, run_tests
from opdlm.evals.sandbox_confinement import Confinement
from opdlm.evals.sandbox_search import confinement, works
from opdlm.evals.writers import Answer

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
TIMEOUT_S = 3.0
PATIENT_S = 20.0
ANSWER = f"{MARK}x{secrets.token_hex(8)}"
WITHIN = confinement(allow_unconfined=True)
CONFINED = pytest.mark.skipif(WITHIN.kind == "limits", reason="this system allows no namespaces: nothing confines")


@pytest.fixture(params=["bubblewrap", "namespaces"])
def kind(request):
    """Each confinement that works here."""
    if request.param == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    made = Confinement(request.param)
    if not works(made):
        pytest.skip(f"this system does not allow {request.param}")
    return made


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """What a user has: a problems file, a process with the answer in its command line, ports that listen."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "problems.jsonl").write_text(MARK)
    script = f"import time; time.sleep(600)  # {MARK}"
    process = subprocess.Popen([sys.executable, "-S", "-c", script], env={"SECRET": MARK})
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        port = server.getsockname()[1]
        if sys.platform == "linux":
            local.bind(f"\0opdlm-{port}")
            local.listen()
        yield {"file": folder / "problems.jsonl", "folder": folder, "pid": process.pid, "port": port}
    process.kill()
    process.wait()


@LINUX
@pytest.mark.parametrize("name", FORGED)
def test_without_the_answer_a_program_fails(name):
    """Without it a program could pass by what it says of itself, or end the evaluation by what it writes."""
    result = run_calls(FORGED[name], [("attack()", repr(ANSWER))], timeout_s=TIMEOUT_S, within=WITHIN)
    assert result.passed == (False,)


@LINUX
@pytest.mark.parametrize("name", [name for name in FORGED if "equals" in name or "says" in name or "encoder" in name])
def test_without_the_answer_a_program_fails_its_tests(name):
    """Without it the same tricks could turn an assert in the tests."""
    tests = f"def check(candidate):\n    assert candidate() == '{ANSWER}'\n    assert candidate() in ['{ANSWER}']"
    result = run_tests(FORGED[name], tests, "attack", timeout_s=TIMEOUT_S, within=WITHIN)
    assert result.passed == (False,)


@pytest.mark.parametrize("name", [*REACHING, *HIGHER])
def test_nothing_is_within_reach(name, kind, user):
    """Without it a program could read the answers, harm the user's files or processes, or call home."""
    source = {**REACHING, **HIGHER}[name].format(**user)
    result = run_calls(source, [("attack()", "True")], timeout_s=PATIENT_S, within=kind)
    assert not result.all_passed
    assert result.kind in ("ok", "exception"), "stopped for another reason than that it was out of reach"
    assert user["file"].read_text() == MARK
    assert list(user["folder"].iterdir()) == [user["file"]]


@LINUX
@pytest.mark.parametrize("name", sorted(set(REACHING) - HARMFUL))
def test_the_attacks_are_real(name, user):
    """Without it an attack with a slip in it would be stopped by the slip, and its test would show nothing."""
    if name == "starts a process" and os.getuid() != 0:
        pytest.skip("a limit on processes stops it, unless the user is root")
    source = REACHING[name].format(**user)
    result = run_calls(source, [("attack()", "True")], timeout_s=PATIENT_S, within=Confinement("limits"))
    assert result.all_passed, result


GRANDCHILD = """
import os, time
for _ in range(2):
    if os.fork():
        time.sleep(60)
    os.setsid()
os.mkdir(f"{folder}/{{os.getpid()}}")
time.sleep(60)
"""


@LINUX
@pytest.mark.skipif(os.getuid() != 0, reason="the limit on processes, which does not bind root, stops it before")
def test_a_process_with_a_session_of_its_own_does_not_outlive_the_limit(tmp_path):
    """Without it a daemon of a model's program would stay on the user's machine, confined or not."""
    source = GRANDCHILD.format(folder=tmp_path)
    assert run_calls(source, [("1", "1")], timeout_s=TIMEOUT_S, within=Confinement("limits")).kind == "timeout"
    [made] = tmp_path.iterdir()
    with pytest.raises(ProcessLookupError):
        os.kill(int(made.name), 0)


@CONFINED
def test_a_child_is_gone_when_its_parent_is_killed(tmp_path):
    """Without it Ctrl-C or SIGKILL in the middle of an evaluation would leave a program running."""
    script = (
        "from opdlm.evals.sandbox import run_calls\n"
        "run_calls('import time\\ntime.sleep(600)', [('1', '1')], timeout_s=600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        try:
            deadline = time.monotonic() + PATIENT_S
            while len(started := _below(parent.pid)) < 2 and time.monotonic() < deadline:  # who waits, and the program
                time.sleep(0.05)
            assert len(started) == 2
        finally:
            parent.kill()
    deadline = time.monotonic() + PATIENT_S
    while started & _children().keys() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not started & _children().keys()


def _below(ancestor: int) -> set[int]:
    """Children of the sandbox that descend from a process; others on this machine are not ours."""
    parents = _children()

    def descends(process: int) -> bool:
        return parents.get(process) == ancestor or (process in parents and descends(parents[process]))

    return set(filter(descends, parents))


def _children() -> dict[int, int]:
    """Processes that run a child of the sandbox -> their parents."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if b"sandboxed.child" in (process / "cmdline").read_bytes():
                found[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return found


@LINUX
def test_the_evaluation_goes_on():
    """Without it one hostile program among many would cost the answers of all."""
    right = "def attack():\n    return 7"
    sources = [right, *list(FORGED.values())[:6], right]
    problems = [Problem("code", str(n), "", "attack", (("attack()", "7"),)) for n in range(len(sources))]
    written = {problem.prompt: Answer(source, 1, 1) for problem, source in zip(problems, sources, strict=True)}
    report = answered(
        "all", lambda prompts: enumerate(written[p] for p in prompts), problems, allow_unconfined_code=True
    )
    assert report.total.correct == 2
