"""Requests from settings."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from opdlm.config import CONSTRAINTS, GenerationSettings
from opdlm.errors import UsageError
from opdlm.sampling.request import Grammar, Request, continuation, filling

Value = TypeVar("Value")


def continuations(
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    seeds: Sequence[int] | None = None,
    watched: bool = False,
    alternatives: int = 0,
    grammar: Grammar | None = None,
) -> list[Request]:
    """A request for a response to each prompt. Row i draws from `seeds[i]` (default: settings.seed + i).

    `watched`, `alternatives`: as in Request. `grammar`: what `settings.constraint` says, compiled; UsageError if it is
    missing (`DiffusionLM.requests` compiles it).
    """
    if settings.constraint is not None and grammar is None:
        raise UsageError(f"{settings.constraint[0]} is not compiled; take DiffusionLM.requests")
    controls = _controls(settings) | {"watched": watched, "alternatives": alternatives, "grammar": grammar}
    controls["max_new_tokens"] = settings.max_new_tokens
    rows = zip(prompts, _seeds(settings, len(prompts), seeds), strict=True)
    return [continuation(prompt, seed=seed, **controls) for prompt, seed in rows]


def fillings(
    texts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    mask_token_id: int,
    block_size: int,
    seeds: Sequence[int] | None = None,
    watched: bool = False,
) -> list[Request]:
    """A request for each text whose mask tokens are to be replaced; seeds as in `continuations`.

    UsageError with a schema, a regular expression or a grammar.
    """
    if settings.constraint is not None:
        raise UsageError(f"{settings.constraint[0]} says what a whole response is, not what fills gaps; leave one out")
    controls = _controls(settings) | {"mask_token_id": mask_token_id, "block_size": block_size, "watched": watched}
    rows = zip(texts, _seeds(settings, len(texts), seeds), strict=True)
    return [filling(text, seed=seed, **controls) for text, seed in rows]


def in_order(finished: Iterable[tuple[int, Value]]) -> Iterator[Value]:
    """What comes as (index from 0, value) in any order: each value as soon as all before it are there."""
    ready: dict[int, Value] = {}
    following = 0
    for index, value in finished:
        ready[index] = value
        while following in ready:
            yield ready.pop(following)
            following += 1


def _controls(settings: GenerationSettings) -> dict[str, Any]:
    return settings.model_dump(exclude={"max_new_tokens", "seed", *CONSTRAINTS})


def _seeds(settings: GenerationSettings, count: int, seeds: Sequence[int] | None) -> Sequence[int]:
    return range(settings.seed, settings.seed + count) if seeds is None else seeds
