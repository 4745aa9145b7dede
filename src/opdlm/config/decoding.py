"""How many masked tokens a denoising step unmasks, and which."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from opdlm.config.base import Settings


class StaticDecoding(Settings):
    """A fixed number of tokens a denoising step, the most confident first."""

    kind: Literal["static"] = "static"
    tokens_per_step: int = Field(default=1, ge=1, description="tokens committed in each denoising step")


class SequentialDecoding(Settings):
    """A fixed number of tokens a denoising step, from left to right."""

    kind: Literal["sequential"] = "sequential"
    tokens_per_step: int = Field(default=1, ge=1, description="tokens committed in each denoising step")


class DynamicDecoding(Settings):
    """Every token whose probability is above the threshold, at least the single best one."""

    kind: Literal["dynamic"] = "dynamic"
    threshold: float = Field(default=0.9, ge=0, le=1, description="probability above which a token is committed")


class PrefixDecoding(Settings):
    """From left to right, every token up to the first whose probability is not above the threshold, at least one."""

    kind: Literal["prefix"] = "prefix"
    threshold: float = Field(default=0.9, ge=0, le=1, description="probability above which a token is committed")


class FactorDecoding(Settings):
    """The n most confident tokens, n the largest for which (n + 1)(1 - the n-th confidence) is below the factor."""

    kind: Literal["factor"] = "factor"
    factor: float = Field(default=1.0, gt=0, description="the larger, the more tokens at once")


class EntropyDecoding(Settings):
    """As many tokens as may be fixed at once without knowing more than the bound about each other."""

    kind: Literal["entropy"] = "entropy"
    bound: float = Field(default=0.1, ge=0, description="nats; the larger, the more tokens at once")
    by_confidence: bool = Field(default=False, description="rank the tokens by confidence, not by entropy")


class KlassDecoding(Settings):
    """Every token that is probable and whose distribution has settled, else the single best one."""

    kind: Literal["klass"] = "klass"
    threshold: float = Field(default=0.9, ge=0, le=1, description="probability above which a token may be committed")
    drift: float = Field(default=0.01, gt=0, description="nats by which its distribution moved less in each step")
    history: int = Field(default=2, ge=1, le=64, description="denoising steps for which that must hold")


MOST_DRAFTS = 64


def _auto_from_word(values: Any) -> Any:
    """`auto` in place of a number of drafts."""
    if isinstance(values, dict) and values.get("drafts") == "auto":
        return {**values, "drafts": MOST_DRAFTS, "auto": True}
    return values


class VerifiedDecoding(Settings):
    """Exactly the AR model's text: a lossless model drafts tokens and its own original weights check them.

    `auto` measures while it writes and chooses the drafts by the clock. That changes the speed, never the text.
    """

    kind: Literal["verified"] = "verified"
    drafts: int = Field(
        default=MOST_DRAFTS,
        ge=0,
        le=MOST_DRAFTS,
        description="most drafts of a forward; the model's window limits them",
    )
    every: bool = Field(default=True, description="a window behind each draft; no: behind the last alone")
    auto: bool = Field(default=False, description="choose drafts and windows by measured speed; the text is the same")

    _word = model_validator(mode="before")(_auto_from_word)


class TypicalDecoding(Settings):
    """As verified, but a draft also counts where the AR model gives it at least this probability: not lossless."""

    kind: Literal["typical"] = "typical"
    least: float = Field(default=0.3, gt=0, le=1, description="probability from which a draft is accepted")
    drafts: int = Field(
        default=MOST_DRAFTS,
        ge=0,
        le=MOST_DRAFTS,
        description="most drafts of a forward; the model's window limits them",
    )


class CheckedDecoding(Settings):
    """What the student writes from left to right, in fewer forwards: it checks its own drafts. Not the AR model's text.

    For students with prediction shifted and context causal. `auto` as in `verified`.
    """

    kind: Literal["checked"] = "checked"
    drafts: int = Field(
        default=MOST_DRAFTS, ge=0, le=MOST_DRAFTS, description="most drafts of a forward; the block limits them"
    )
    auto: bool = Field(default=False, description="choose drafts by measured speed; the text is the same")

    _word = model_validator(mode="before")(_auto_from_word)


LOSSLESS = ("verified", "typical")
"""Kinds of a model that drafts and checks itself; `sequential` goes without drafts."""

Decoding = Annotated[
    StaticDecoding
    | SequentialDecoding
    | DynamicDecoding
    | PrefixDecoding
    | FactorDecoding
    | EntropyDecoding
    | KlassDecoding
    | VerifiedDecoding
    | TypicalDecoding
    | CheckedDecoding,
    Field(discriminator="kind"),
]


def _decoding_from_text(value: Any) -> Any:
    """`static:2` as the short form of {"kind": "static", "tokens_per_step": 2}: the number is the kind's first."""
    if not isinstance(value, str):
        return value
    kind, _, argument = value.partition(":")
    kinds = {choice.model_fields["kind"].default: choice for choice in get_args(get_args(Decoding)[0])}
    if kind not in kinds:
        near, choices = get_close_matches(kind, kinds, 1), ", ".join(map(repr, kinds))
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown decoding {kind!r}; {hint}choose one of {choices}")
    if not argument:
        return {"kind": kind}
    return {"kind": kind, list(kinds[kind].model_fields)[1]: argument}


def as_text(decoding: Decoding) -> str:
    """The short form, `static:2`, without the kind's other numbers."""
    kind, number, *_ = decoding.model_dump().values()
    if isinstance(decoding, VerifiedDecoding | CheckedDecoding):
        number = "auto" if decoding.auto else number
        return kind if number == MOST_DRAFTS else f"{kind}:{number}"
    return f"{kind}:{number}"


DecodingField = Annotated[Decoding, BeforeValidator(_decoding_from_text)]
