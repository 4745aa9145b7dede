"""The seam for several processes: what is summed over all of them, and who writes. Scripted ranks stand for them."""

from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn

from opdlm.config import ConvertSettings
from opdlm.distill.loop import Trainer
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from rollouts import TOKENS, fresh_student, random_prompts, student

_Module = TypeVar("_Module", bound=nn.Module)


class Twins:
    """As if a second process did exactly the same work."""

    def __init__(self, saves: bool = True) -> None:
        self.saves = saves
        self.wrapped_modules: list[nn.Module] = []

    def sum(self, *values: float) -> list[float]:
        return [2 * value for value in values]

    def wrapped(self, module: _Module) -> _Module:
        self.wrapped_modules.append(module)
        return module


def trained(folder: Path, ranks: Twins | None) -> tuple[StepMetrics, dict[str, torch.Tensor], list[torch.Tensor]]:
    """Metrics, weights, and the gradients that the optimiser saw."""
    settings = ConvertSettings(
        output=str(folder),
        prompts_per_rollout=4,
        rows_per_update=4,
        rollouts=1,
        response_length={"start": 12, "end": 12, "rollouts": 0},  # type: ignore[arg-type]
        optimiser={"learning_rate": 1e-3, "clip_norm": 1e9},  # type: ignore[arg-type]
    )
    model = fresh_student()
    pair = Pair.of(model, Teacher(student(seed=3)), TOKENS, ranks)
    gradients = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    extra = {} if ranks is None else {"ranks": ranks}
    prompts = random_prompts((1, 3, 4, 6))
    with RunFolder.created(folder, settings) as run:
        work = Trainer(pair, prompts, settings, run=run, save_model=lambda _: lambda path: path.mkdir(), **extra)
        return work.train(), model.state_dict(), gradients


def test_counts_and_divisor_are_those_of_all_ranks(tmp_path: Path) -> None:
    """Else each rank would divide by its own count, and unequal ranks would weigh tokens unequally.

    With a twin that does the same, the loss is the same, each rank's gradient is half of it, and all counts double.
    """
    plain, _, alone = trained(tmp_path / "alone", None)
    twins = Twins()
    both, _, half = trained(tmp_path / "twins", twins)
    assert both.loss == pytest.approx(plain.loss, rel=1e-5)
    for name in ("tokens_trained", "positions_supervised", "stopped_rows"):
        assert getattr(both, name) == 2 * getattr(plain, name)
    assert both.tokens_per_forward == plain.tokens_per_forward
    assert both.flops.sum() == 2 * plain.flops.sum()
    assert both.total.tokens_rolled_out == 2 * plain.total.tokens_rolled_out
    assert any(gradient.abs().max() > 1e-4 for gradient in alone)
    for one, other in zip(half, alone, strict=True):
        torch.testing.assert_close(2 * one, other, atol=1e-6, rtol=1e-4)


def test_the_student_is_trained_through_the_wrapped_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else DDP or FSDP around it would see no forward pass, and no gradient would be exchanged."""
    twins, calls = Twins(), []
    original = nn.Module.__call__

    def watch(self: nn.Module, *args: object, **kwargs: object) -> object:
        if self in twins.wrapped_modules:
            calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", watch)
    trained(tmp_path / "run", twins)
    assert len(twins.wrapped_modules) == 1
    assert len(calls) == 1, "one backward pass"
    head = next(p for name, p in twins.wrapped_modules[0].named_parameters() if "lm_head" in name)
    assert head.requires_grad


def test_only_one_rank_writes(tmp_path: Path) -> None:
    """Else several processes would write the same checkpoint at once."""
    trained(tmp_path / "writer", Twins())
    trained(tmp_path / "silent", Twins(saves=False))
    assert len(RunFolder(tmp_path / "writer").logged()) == 1
    assert RunFolder(tmp_path / "writer").latest() is not None
    assert not (tmp_path / "silent" / "metrics.jsonl").exists() or not RunFolder(tmp_path / "silent").logged()
    assert RunFolder(tmp_path / "silent").latest() is None
