"""What is minimised."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from opdlm.config.base import Settings


class ForwardKL(Settings):
    """KL(teacher || student): the paper's loss."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Settings):
    """KL(student || teacher)."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class GeneralisedJSD(Settings):
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student."""

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(default=0.5, gt=0, lt=1, description="weight of the teacher in the mixture")


class MixedKL(Settings):
    """(1 - reverse_weight) forward KL + reverse_weight reverse KL."""

    kind: Literal["mixed_kl"] = "mixed_kl"
    reverse_weight: float = Field(default=0.5, ge=0, le=1, description="share of the reverse KL")


class TotalVariation(Settings):
    """Half the sum of absolute differences: the chance that a draft is refused."""

    kind: Literal["tv"] = "tv"


_NUMBERS = {"jsd": "beta", "mixed_kl": "reverse_weight"}


def _divergence_from_text(value: Any) -> Any:
    """`forward_kl`, `reverse_kl`, `jsd:0.3`, `mixed_kl:0.5` as short forms."""
    if not isinstance(value, str):
        return value
    kind, _, argument = value.partition(":")
    if not argument:
        return {"kind": kind}
    if kind in ("forward_kl", "reverse_kl"):
        raise ValueError(f"{kind} takes no number; write {kind}, or one of jsd:BETA and mixed_kl:W")
    return {"kind": kind, _NUMBERS.get(kind, "number"): argument}


Divergence = Annotated[
    ForwardKL | ReverseKL | GeneralisedJSD | MixedKL | TotalVariation,
    Field(discriminator="kind"),
]
DivergenceField = Annotated[Divergence, BeforeValidator(_divergence_from_text)]
