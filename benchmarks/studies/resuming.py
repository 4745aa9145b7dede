"""What an arm that was stopped goes on from: a folder beside the results, gone when the arm is done."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from opdlm.distill.loop import Trainer
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder

_WEIGHTS = "student.pt"
CHECKPOINTS = 20  # of an arm


def folder_of(results: Path, name: str, seed: int, definition: dict[str, Any]) -> Path:
    """Where the arm is kept while it runs. What another definition left there is refused."""
    folder = results / "under_way" / f"{name}-seed{seed}"
    about, text = folder / "definition.json", json.dumps(definition)
    folder.mkdir(parents=True, exist_ok=True)
    if about.is_file() and about.read_text("utf-8") != text:
        raise SystemExit(f"{folder} holds another run of this arm; remove it")
    about.write_text(text, encoding="utf-8")
    return folder


def keep_points(folder: Path, points: Sequence[dict[str, Any]]) -> None:
    """The examinations so far."""
    draft = folder / "points.partial"
    draft.write_text(json.dumps(points), encoding="utf-8")
    draft.rename(folder / "points.json")


def kept_points(folder: Path) -> list[dict[str, Any]]:
    """What `keep_points` wrote."""
    path = folder / "points.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def resumed(trainer: Trainer, folder: Path) -> list[StepMetrics]:
    """The trainer keeps checkpoints in `folder`, and goes on from the newest one.

    Returns the metrics of the rollouts that are done; the student's weights are those behind them.
    """
    run = trainer.run = RunFolder(folder)
    for path in (run.rollouts, run.checkpoints):
        path.mkdir(parents=True, exist_ok=True)
    run.clear()
    every = max(1, trainer.rollouts // CHECKPOINTS)
    trainer.settings = trainer.settings.model_copy(update={"save_every_rollouts": every, "keep_checkpoints": 1})
    trainer.save_model = _saving
    trainer.checkpoint = run.latest()
    if trainer.checkpoint is None:
        return []
    line = run.load_state(trainer.checkpoint)["line"]
    weights = torch.load(trainer.checkpoint / _WEIGHTS, weights_only=True)
    trainer.pair.student.model.load_state_dict(weights)
    if line is None:  # stopped in the first rollout
        return []
    last = StepMetrics.from_json(line, str(folder))
    # Its line may be missing in the file: it is written behind the checkpoint.
    return [*(metrics for metrics in run.logged() if metrics.rollout < last.rollout), last]


def _saving(student: BlockDiffusionModel) -> Callable[[Path], None]:
    return partial(_save, dict(student.model.state_dict()))


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path / _WEIGHTS)
