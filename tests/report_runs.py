"""Folders of runs, written by the records alone: no model is trained for them."""

from pathlib import Path
from typing import Any

from opdlm.config import ConvertSettings
from opdlm.records.evaluation import Comparison, Evaluation, Score
from opdlm.records.metrics import Flops, StepMetrics, Totals
from opdlm.records.run_folder import RunFolder
from opdlm.records.trajectory import Candidate, Trajectory
from opdlm.records.worth import Validation, Worth

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'>"
WORDS = ("The", " cat", " sat", " on", " the", " mat", ".\n", HOSTILE)
STEPS = (0, 1, 0, 2, 0, 0, 1, 0)


def trajectory(**changes: Any) -> Trajectory:
    """Eight tokens in two blocks of four: three forwards for the first block, two for the second."""
    known: dict[str, Any] = {
        "prompt_ids": (1, 2, 3, 4),
        "positions": tuple(range(4, 12)),
        "token_ids": tuple(range(10, 18)),
        "commit_steps": STEPS,
        "confidences": (*(0.3 + 0.1 * i for i in range(7)), 1.0),
        "block_size": 4,
        "forwards": 5,
        "decoding": "dynamic:0.9",
        "prompt": f"Where did it sit? {HOSTILE}",
        "texts": WORDS,
        "kl": (0.1, 0.02, None, 0.4, 2.5, 0.0, 0.3, 0.2),
        "alternatives": tuple(
            (
                Candidate(token_id=10 + i, text=WORDS[i], probability=0.7),
                Candidate(token_id=50, text="<b>bold</b>", probability=0.2),
            )
            for i in range(8)
        ),
    }
    return Trajectory(**{**known, **changes})


def drafted(**changes: Any) -> Trajectory:
    """The same text by verified decoding: three forwards, of which the second refused two drafts."""
    refused = tuple(
        (Candidate(token_id=60, text=" dog"), Candidate(token_id=61, text=" ran")) if i == 4 else () for i in range(8)
    )
    known = {"commit_steps": (0, 0, 1, 1, 1, 2, 2, 2), "forwards": 3, "verified": True, "refused": refused}
    return trajectory(decoding="verified", alternatives=None, kl=None, **{**known, **changes})


def metrics(rollout: int, rollouts: int, **changes: Any) -> StepMetrics:
    known: dict[str, Any] = {
        "rollout": rollout,
        "rollouts": rollouts,
        "loss": 4.0 / rollout,
        "gradient_norm": 1.0 + rollout % 3,
        "learning_rate": 2e-5 * rollout,
        "updates": 2 * rollout,
        "tokens_trained": 1000,
        "positions_supervised": 500,
        "stopped_rows": 7,
        "tokens_per_forward": 1.0 + 0.1 * rollout,
        "flops": Flops(rollout=1e12, teacher=1e11, student=2e12),
        "seconds": {"rollout": 2.0, "student": 3.0, "rest": 0.5},
        "peak_memory_bytes": 2**30 + rollout,
        "total": Totals(
            tokens_trained=1000 * rollout,
            tokens_rolled_out=900 * rollout,
            flops=3.1e12 * rollout,
            seconds=5.5 * rollout,
        ),
    }
    return StepMetrics(**{**known, **changes})


def evaluation(correct: int, forwards: int, decoding: str = "", **more: Any) -> Evaluation:
    rows = (
        Score(family="maths", tag=None, n=50, correct=correct, tokens=1000, forwards=forwards),
        Score(family="recall", tag=None, n=50, correct=correct - 2, tokens=500, forwards=forwards // 2),
        Score(family="recall", tag="unseen", n=25, correct=correct // 2, tokens=250, forwards=forwards // 4),
    )
    name = "student" if decoding else "teacher"
    return Evaluation(name=name, rows=rows, seconds=1.5, decoding=decoding, **more)


def comparison() -> Comparison:
    students = (evaluation(48, 500, "prefix:0.95"), evaluation(40, 300, "dynamic:0.8"), evaluation(47, 900, "static"))
    return Comparison(teacher=evaluation(49, 1000), students=students, batch_size=32)


def write_run(path: Path, rollouts: int = 4, evaluated: bool = True, lossless: bool = False) -> Path:
    """A run with `rollouts` of 4 rollouts done."""
    more: dict[str, Any] = {"method": "lossless", "lora_rank": 8, "rollout_decoding": "verified"} if lossless else {}
    settings = ConvertSettings.model_validate({"model": "some/model", "output": str(path), "rollouts": 4, **more})
    with RunFolder.created(path, settings) as run:
        for number in range(1, rollouts + 1):
            run.log(metrics(number, 4))
            run.keep_rollout(number, [drafted() if lossless else trajectory()])
        seen = Validation.of([5, 5], tokens=10, agreed=7, forwards=6)
        run.keep_worth(Worth(held_out=True, updates=8, before=seen, after=seen))
        if evaluated:
            run.keep_evaluation(comparison())
    return path
