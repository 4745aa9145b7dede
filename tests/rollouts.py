"""Tiny students, prompts and rollouts shared by the tests of the sampler and of training."""

from collections.abc import Sequence
from functools import cache

import torch

from opdlm.config import GenerationSettings
from opdlm.core.states import Selection, StateChoice, select_states
from opdlm.core.types import NEVER, Geometry, Rollout, StateBatch
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine, Step
from opdlm.sampling.requests import continuations
from support import MASK, tiny_model

TOKENS = SpecialTokens(MASK, 0, (2, 3, 5))
"""Three stop tokens of 97: some random texts stop, some reach the length cap."""

Visits = dict[tuple[int, int, int], torch.Tensor]
"""(row, first position of the block, step) -> logits [S, V] that the sampler saw."""


@cache
def ar_model(seed: int = 0, layers: int = 2):
    """A random Llama whose argmax is not always the same token. Shared: its gradients are whoever ran last's."""
    return tiny_model(seed=seed, num_hidden_layers=layers, initializer_range=0.35)


def student(size: int = 4, prediction: str = "same", context: str = "block", seed: int = 0) -> BlockDiffusionModel:
    return BlockDiffusionModel(ar_model(seed), Geometry(size, prediction, context), MASK)  # type: ignore[arg-type]


def fresh_student(geometry: Geometry = Geometry(4), **changes: object) -> BlockDiffusionModel:  # noqa: B008
    """One of its own, to train."""
    return BlockDiffusionModel(tiny_model(num_hidden_layers=2, initializer_range=0.35, **changes), geometry, MASK)


def random_prompts(lengths: Sequence[int] = (1, 3, 4, 6, 9), seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(6, MASK, (length,), generator=generator).tolist() for length in lengths]


def written(
    model: BlockDiffusionModel,
    prompts: Sequence[Sequence[int]] | None = None,
    batch_size: int = 3,
    **settings: object,
) -> tuple[Rollout, Visits]:
    """The engine's rollout at temperature 1, and the logits of each step."""
    visits: Visits = {}

    def keep(seen: Step) -> None:
        for slot, row in enumerate(seen.request.tolist()):
            if row >= 0:
                visits[row, int(seen.start[slot]), int(seen.step[slot])] = seen.logits[slot].clone()

    chosen = {"temperature": 1.0, "max_new_tokens": 18, "decoding": "dynamic:0.5"} | settings
    engine = Engine(model, TOKENS, batch_size, observer=keep)
    settings = GenerationSettings(**chosen)  # type: ignore[arg-type]
    return engine.write(continuations(random_prompts() if prompts is None else prompts, settings)), visits


def scripted(rows: Sequence[tuple[str, int]], size: int = 4, stopped: bool = False) -> Rollout:
    """A rollout by hand. Each row: its steps, one character a column ("p" prompt, "." never), and its length.

    Token ids are 10 + column.
    """
    width = -(-max(len(steps) for steps, _ in rows) // size) * size
    known = {"p": -1, ".": NEVER}
    table = [[known[c] if c in known else int(c) for c in steps.ljust(width, ".")] for steps, _ in rows]
    return Rollout(
        input_ids=torch.arange(10, 10 + width).expand(len(rows), -1).clone(),
        prompt_length=torch.tensor([steps.count("p") for steps, _ in rows]),
        length=torch.tensor([length for _, length in rows]),
        end=torch.tensor([-(-len(steps) // size) * size for steps, _ in rows]),
        commit_step=torch.tensor(table, dtype=torch.int16),
        stopped=torch.full((len(rows),), stopped),
        forwards=torch.ones(len(rows), dtype=torch.int64),
    )


def states_of(
    rollout: Rollout,
    geometry: Geometry,
    selection: Selection,
    seeds: torch.Tensor | None = None,
    capacity: float = 0,
    **choice: bool | float,
) -> StateBatch:
    """States of all rows; row i has the seed i, if no others are given."""
    seeds = torch.arange(len(rollout.length)) if seeds is None else seeds
    chosen = StateChoice(selection, **choice)  # type: ignore[arg-type]
    return select_states(rollout, geometry, chosen, seeds, mask_token_id=MASK, capacity=capacity)


def pair_of(model: BlockDiffusionModel, teacher: Teacher | None = None) -> Pair:
    """The student `model` with a teacher of other weights."""
    return Pair.of(model, teacher or Teacher(student(seed=3)), TOKENS)
