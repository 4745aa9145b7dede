"""Right programs of real data sets pass, and the user hears how a model's programs are kept apart."""

import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opdlm.cli.main import main
from opdlm.evals import sandbox_search
from opdlm.evals.graders import grade
from opdlm.evals.problem import Problem
from opdlm.evals.sandbox_search import confinement
from opdlm.tiny.weights import ar_model_path, student_path

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HUMANEVAL, MBPP = SHARED / "humaneval" / "HumanEval.jsonl.gz", SHARED / "mbpp" / "mbpp.jsonl"


def human_eval():
    for line in gzip.decompress(HUMANEVAL.read_bytes()).decode().splitlines():
        row = json.loads(line)
        more = {"tests": row["test"], "prelude": row["prompt"]}
        yield Problem("code", row["prompt"], row["prompt"] + row["canonical_solution"], row["entry_point"], **more)


def mbpp():
    for line in MBPP.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tests = "\n".join([row["test_setup_code"], *row["test_list"]])
        entry = next(name for name in re.findall(r"def (\w+)", row["code"])[::-1] if f"{name}(" in tests)
        yield Problem("code", row["text"], row["code"], entry, tests=tests)


@pytest.mark.slow
@pytest.mark.skipif(
    not (HUMANEVAL.is_file() and MBPP.is_file()), reason="needs HumanEval and MBPP in a folder `shared`"
)
@pytest.mark.parametrize("problems", [human_eval, mbpp])
def test_reference_solutions_pass(problems):
    """Without it the split between program and tests could fail right programs of the data sets that people use."""
    chosen = list(problems())[::8]
    within = confinement(allow_unconfined=True)
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda problem: grade(problem, problem.response, within), chosen))
        wrong = list(pool.map(lambda problem: grade(problem, f"def {problem.answer}(*_):\n    pass", within), chosen))
    assert [problem.prompt for problem, passed in zip(chosen, right, strict=True) if not passed] == []
    assert not any(wrong)


@pytest.fixture
def problem_file(tmp_path):
    row = {"prompt": "Write f, which adds one.", "answer": "f", "family": "code", "calls": [["f(1)", "2"]]}
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return path


def evaluate(problem_file, *flags):
    models = [str(student_path()), "--against", str(ar_model_path())]
    size = ["--decoding", "static", "--max-new-tokens", "4"]
    return main(["eval", *models, "--problems", str(problem_file), *size, *flags])


def test_unconfined_code_is_refused_before_anything_is_loaded(problem_file, monkeypatch, capsys):
    """Without it a model's programs would run with the user's rights and nobody would have been asked."""
    monkeypatch.setattr(sandbox_search, "_strongest", lambda: None)
    assert evaluate(problem_file) == 2
    assert "--allow-unconfined-code" in capsys.readouterr().err
    assert evaluate(problem_file, "--allow-unconfined-code") == 0
    assert "UNCONFINED" in capsys.readouterr().err


def test_the_packages_own_tasks_need_no_confinement(monkeypatch, capsys):
    """Without it the first command that people try would fail on a system without namespaces."""
    monkeypatch.setattr(sandbox_search, "_strongest", lambda: None)
    assert main(["eval", "--per-family", "2", "--decoding", "static"]) == 0
    assert "programs" not in capsys.readouterr().err
