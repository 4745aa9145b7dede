"""Several processes come to what one comes to, whether each holds all weights (DDP) or they share them (FSDP2).

Equal up to rounding, never bit by bit: n processes add the same gradients in another order, and floating-point sums
depend on theirs. (The texts are the same: a text depends on its request alone.)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opdlm.distill.step import micro_batches
from opdlm.parallel.ranks import OneProcess
from processes import Conversion, gradients, in_processes, shares
from support import tiny_model, tiny_tokenizer

PROMPTS = ["abc", "what is 2+2?", "one, two, ", "xyz!", "a=b", "0", "def f(x):"]
SETTINGS: dict[str, Any] = {
    "prompts": PROMPTS,
    "device": "cpu",
    "threads": 1,
    "rollouts": 2,
    "prompts_per_rollout": 5,  # 5 and 2 of 7, in updates of 3, 2 and 2 rows: never as many for each process
    "rows_per_update": 3,
    "rows_per_micro_batch": 1,
    "response_length": {"start": 12, "end": 12, "rollouts": 0},
    "optimiser": {"learning_rate": 1e-3, "warmup_updates": 2},
}
KINDS: dict[str, dict[str, Any]] = {
    "all weights": {"recipe": "small", "normalisation": "per_row_mean"},  # with L2-SP
    "lora": {"lora_rank": 2},
    "lossless": {"recipe": "lossless", "lora_rank": 2, "window": 3},
    # The LM head is the embedding, which FSDP must keep together; the teacher writes the first text.
    "tied": {"model": "qwen2", "warm_start_rollouts": 1, "gradient_checkpointing": True},
}
WAYS = [pytest.param(n, how, marks=pytest.mark.slow if n > 2 else ()) for n in (2, 4) for how in ("none", "full")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two AR models in it."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("llama", "qwen2"):
        tiny_model(name, num_hidden_layers=2, initializer_range=0.35).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def conversion(folder: Path, kind: str, count: int, sharding: str) -> Conversion:
    settings = SETTINGS | {"model": "llama", "sharding": sharding} | KINDS[kind]
    return folder / f"{kind}-{count}-{sharding}", settings | {"model": str(folder / settings["model"])}


Gradients = Callable[[str, int, str], list[list[torch.Tensor]]]


@pytest.fixture(scope="module")
def found(folder: Path) -> Gradients:
    """The gradients of a conversion; all of a number of processes are made at once."""
    made: dict[tuple[str, int, str], list[list[torch.Tensor]]] = {}

    def find(kind: str, count: int, sharding: str) -> list[list[torch.Tensor]]:
        if (kind, count, sharding) not in made:
            keys = [(one, count, how) for how in ("none", "full")[:count] for one in KINDS]
            answers = in_processes(count, gradients, *(conversion(folder, *key) for key in keys))
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            made.update(zip(keys, answers[-1], strict=True))
        return made[kind, count, sharding]

    return find


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in (run / "model").glob("*.safetensors") for name, value in load_file(file).items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "sharding"), WAYS)
def test_processes_come_to_what_one_comes_to(
    folder: Path, found: Gradients, kind: str, count: int, sharding: str
) -> None:
    """Else a conversion on 8 GPUs would be another one than on 1: a rank would divide by its own count, DDP's mean
    would stand for a sum, rows would be lost or trained on twice, or a shard would be taken for the whole.
    """
    alone, several = (conversion(folder, kind, *way)[0] for way in ((1, "none"), (count, sharding)))
    expected = found(kind, 1, "none")
    assert len(expected) == 3
    assert all(max(float(gradient.abs().max()) for gradient in update) > 1e-2 for update in expected)
    for ours, theirs in zip(found(kind, count, sharding), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(several)[name], value, atol=2e-5, rtol=1e-4)
    for ours, theirs in zip(metrics(several), metrics(alone), strict=True):
        for name in ("loss", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
        for name in ("tokens_trained", "positions_supervised", "stopped_rows", "tokens_per_forward", "updates"):
            assert ours[name] == theirs[name], name
        assert ours.get("validation") == theirs.get("validation")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "sharding"), WAYS)
def test_what_is_kept_of_a_rollout_is_the_same(
    folder: Path, found: Gradients, kind: str, count: int, sharding: str
) -> None:
    """Else the saving process would look at its own rows alone, or through a wrapper for which others must wait."""
    alone, several = (conversion(folder, kind, *way)[0] for way in ((1, "none"), (count, sharding)))
    assert found(kind, 1, "none")
    assert found(kind, count, sharding)
    files = sorted(path.name for path in (alone / "rollouts").iterdir())
    assert files == sorted(path.name for path in (several / "rollouts").iterdir())
    assert len(files) == 2
    for file in files:
        ours, theirs = (json.loads((run / "rollouts" / file).read_text()) for run in (several, alone))
        assert [row["token_ids"] for row in ours] == [row["token_ids"] for row in theirs]
        assert len(ours) == min(4, 5 if file == files[0] else 2)
        for one, other in zip(ours, theirs, strict=True):
            assert one.get("kl") == pytest.approx(other.get("kl"), abs=2e-4)


@pytest.mark.parametrize("kind", ["all weights", "lora"])
def test_processes_share_weights_gradients_and_the_optimisers_state(folder: Path, tmp_path: Path, kind: str) -> None:
    """Else a model that is too large for one device would be too large for eight. All that is kept is float32; what
    is gathered to compute with is bfloat16.
    """
    _, settings = conversion(folder, kind, 2, "full")
    one, other = in_processes(2, shares, tmp_path / "run", settings | {"precision": "bfloat16"})
    whole = sum(p.numel() for p in tiny_model(num_hidden_layers=2).parameters())
    for name in ("student", "teacher", "gradients", "optimiser"):
        entries = one[name][0] + other[name][0]
        assert abs(one[name][0] - entries / 2) < 0.02 * entries, name  # some matrices have an odd number of rows
        assert one[name][1] == {torch.float32}
        if kind == "all weights":
            assert entries == whole
    assert one["layer"][1] == {torch.bfloat16}
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}


class Numbered(OneProcess):
    """One of several, as far as shares go."""

    def __init__(self, number: int, count: int) -> None:
        self.number, self.count = number, count  # type: ignore[misc]


@pytest.mark.parametrize("size", [None, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_row_counts_once_and_every_process_has_as_many_micro_batches(count: int, size: int | None) -> None:
    """Else a row would be lost or trained on twice, or a process would wait for a pass that no other makes."""
    for rows in range(1, 10):
        shares = [micro_batches(torch.arange(rows), size, Numbered(number, count)) for number in range(count)]
        assert len({len(share) for share in shares}) == 1
        counted = [row for share in shares for part in share if part.counts for row in part.rows.tolist()]
        assert sorted(counted) == list(range(rows))
        assert all(len(part.rows) <= (size or rows) for share in shares for part in share)
        if size is None:
            assert len(shares[0]) == 1, "no more passes than there must be"
