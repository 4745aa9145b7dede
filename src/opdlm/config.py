"""Every setting, written once: its type, default, unit and meaning.

Never imports torch, so that `--help` and configuration errors are instant. Unknown keys are errors. Defaults are the
paper's (arXiv 2606.06712, Tables 13 and 14, and its launchers where the two differ).
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from opdlm.errors import ConfigError

Method = Literal["opd", "onpolicy_text", "offpolicy_kd", "sft"]
StateSelection = Literal["one_per_block", "all", "one_per_rollout", "random_mask"]
Prediction = Literal["same", "shifted"]
Context = Literal["block", "causal"]


class Settings(BaseModel):
    """Base of all settings: immutable, and a key that does not exist is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- how masked tokens are committed ------------------------------------------------------------------------------


class StaticDecoding(Settings):
    """A fixed number of tokens a round, the most confident first."""

    kind: Literal["static"] = "static"
    tokens_per_round: int = Field(default=1, ge=1, description="tokens committed in each round of a block")


class SequentialDecoding(Settings):
    """A fixed number of tokens a round, from left to right."""

    kind: Literal["sequential"] = "sequential"
    tokens_per_round: int = Field(default=1, ge=1, description="tokens committed in each round of a block")


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
    drift: float = Field(default=0.01, gt=0, description="nats by which its distribution moved less in each round")
    history: int = Field(default=2, ge=1, description="rounds for which that must hold")


Decoding = Annotated[
    StaticDecoding
    | SequentialDecoding
    | DynamicDecoding
    | PrefixDecoding
    | FactorDecoding
    | EntropyDecoding
    | KlassDecoding,
    Field(discriminator="kind"),
]


def _decoding_from_text(value: Any) -> Any:
    """`static:2` as the short form of {"kind": "static", "tokens_per_round": 2}: the number is the kind's first."""
    if not isinstance(value, str):
        return value
    kind, _, argument = value.partition(":")
    kinds = {choice.model_fields["kind"].default: choice for choice in get_args(get_args(Decoding)[0])}
    if not argument or kind not in kinds:
        return {"kind": kind}
    return {"kind": kind, list(kinds[kind].model_fields)[1]: argument}


def as_text(decoding: Decoding) -> str:
    """The short form, `static:2`, without the kind's other numbers."""
    kind, number, *_ = decoding.model_dump().values()
    return f"{kind}:{number}"


DecodingField = Annotated[Decoding, BeforeValidator(_decoding_from_text)]


def _bias_from_text(value: Any) -> Any:
    """`17:-5,23:2.5` as the short form of {17: -5.0, 23: 2.5}."""
    if not isinstance(value, str):
        return value
    return {token: bias for token, _, bias in (pair.partition(":") for pair in value.split(",") if pair)}


def _strings_from_text(value: Any) -> Any:
    """One string is a list of one."""
    return (value,) if isinstance(value, str) else value


# --- what is minimised --------------------------------------------------------------------------------------------


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


def _divergence_from_text(value: Any) -> Any:
    """`forward_kl`, `reverse_kl`, `jsd:0.3`, `mixed_kl:0.5` as short forms."""
    if not isinstance(value, str):
        return value
    kind, _, argument = value.partition(":")
    if not argument:
        return {"kind": kind}
    return {"kind": kind, ("beta" if kind == "jsd" else "reverse_weight"): argument}


Divergence = Annotated[
    ForwardKL | ReverseKL | GeneralisedJSD | MixedKL,
    Field(discriminator="kind"),
]
DivergenceField = Annotated[Divergence, BeforeValidator(_divergence_from_text)]


# --- groups -------------------------------------------------------------------------------------------------------


class GenerationSettings(Settings):
    """How text is written: the same settings for rollouts, evaluation and users."""

    decoding: DecodingField = Field(
        default=DynamicDecoding(),
        description="static[:N], sequential[:N], dynamic[:THRESHOLD], prefix[:THRESHOLD], factor[:F], entropy[:NATS] "
        "or klass[:THRESHOLD]",
    )
    max_new_tokens: int = Field(default=256, ge=1, description="most tokens written after the prompt")
    temperature: float = Field(default=0.0, ge=0, description="0 takes the most probable token")
    top_k: int = Field(default=0, ge=0, description="sample among the k most probable tokens; 0 is off")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample among the smallest set with this much probability"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="sample what is at least this share of the most probable; 0 is off"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="above 1: tokens that the text already has become less likely"
    )
    logit_bias: Annotated[dict[int, FiniteFloat], BeforeValidator(_bias_from_text)] = Field(
        default={}, description="added to the logits of tokens, several divided by commas"
    )
    stop_strings: Annotated[tuple[str, ...], BeforeValidator(_strings_from_text)] = Field(
        default=(), description="the text ends with the token that completes this string"
    )
    seed: int = Field(default=0, ge=0, lt=2**62, description="row i of a batch draws from seed + i")


class LengthRamp(Settings):
    """Longest response of a rollout, growing from `start` to `end`."""

    start: int = Field(default=100, ge=1, description="tokens at the first rollout")
    end: int = Field(default=4000, ge=1, description="tokens from the last ramp rollout on")
    rollouts: int = Field(default=100, ge=0, description="rollouts until the full length; 0 starts with it")
    shape: Literal["cosine", "linear"] = Field(
        default="cosine", description="the launchers use cosine, the paper says linear"
    )

    @model_validator(mode="after")
    def _grows(self) -> "LengthRamp":
        if self.start > self.end:
            raise ValueError(f"the ramp starts at {self.start} tokens, above its end {self.end}; lower start too")
        return self


class OptimiserSettings(Settings):
    """AdamW with warm-up and cosine decay."""

    learning_rate: float = Field(default=1e-5, gt=0, description="peak learning rate")
    final_learning_rate: float = Field(default=1e-6, ge=0, description="learning rate at the last update")
    warmup_updates: int = Field(default=5, ge=0, description="updates of linear warm-up")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    pull_to_original: float = Field(
        default=0.0, ge=0, description="decoupled decay towards the ARLM's weights, in place of zero (L2-SP)"
    )
    clip_norm: float = Field(default=1.0, gt=0, description="largest gradient norm")


class DistillSettings(Settings):
    """One conversion, without the places where its files are."""

    # geometry
    block_size: int = Field(default=4, ge=1, le=1024, description="tokens in a block")
    prediction: Prediction = Field(
        default="same", description="same: output i is token i; shifted: output i-1 is token i"
    )
    context: Context = Field(default="block", description="attention of finished text: block, or causal as in the ARLM")

    # what is learnt from
    method: Method = Field(default="opd", description="opd, or a control: onpolicy_text, offpolicy_kd, sft")
    states: StateSelection = Field(default="one_per_block", description="which visited states are trained on")
    prompts_per_rollout: int = Field(default=128, ge=1, description="prompts answered with the same weights")
    rollouts: int | None = Field(
        default=None, ge=1, description="number of rollouts; not set: one epoch over the prompts"
    )
    warm_start_rollouts: int = Field(
        default=0, ge=0, description="first rollouts written by the teacher, with random masks"
    )
    rollout_decoding: DecodingField = Field(default=DynamicDecoding(), description="as --decoding of generate")
    rollout_temperature: float = Field(default=1.0, ge=0, description="temperature of rollouts")
    rollout_batch: int = Field(default=32, ge=1, description="rows decoded at once")
    response_length: LengthRamp = LengthRamp()

    # the loss
    divergence: DivergenceField = Field(
        default=ForwardKL(), description="forward_kl, reverse_kl, jsd[:BETA], mixed_kl[:W]"
    )
    top_k: int | None = Field(default=None, ge=1, description="compare only the teacher's k most probable tokens")
    rest_bucket: bool = Field(
        default=True, description="with top_k: all other tokens count as one (else a partial sum)"
    )
    supervise_end: bool = Field(default=True, description="train on the end-of-sequence token")
    normalisation: Literal["global", "per_row_mean"] = Field(
        default="global", description="mean over tokens, or over rows"
    )

    # the update
    rows_per_update: int = Field(default=8, ge=1, description="rollout rows in one optimiser update")
    rows_per_micro_batch: int | None = Field(default=None, ge=1, description="rows in one backward pass; default: all")
    optimiser: OptimiserSettings = OptimiserSettings()
    gradient_checkpointing: bool = Field(default=False, description="trade time for memory in the student's pass")
    lora_rank: int | None = Field(
        default=None, ge=1, description="train an adapter of this rank instead of all weights"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="auto: bfloat16 on a GPU")
    seed: int = Field(default=0, ge=0, lt=2**31, description="decides the order of prompts and every random choice")

    # keeping
    save_every_rollouts: int = Field(default=10, ge=1, description="rollouts between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="checkpoints kept on disk")
    decoding: DecodingField | None = Field(
        default=None, description="how the converted model decodes by default; none: as the rollouts"
    )

    @property
    def usual_decoding(self) -> Decoding:
        """How the converted model decodes by default."""
        return self.decoding or self.rollout_decoding

    @model_validator(mode="after")
    def _consistent(self) -> "DistillSettings":
        if self.method != "opd" and self.states not in ("random_mask", "one_per_block"):
            raise ValueError(f"method {self.method!r} trains on random masks; set states to random_mask")
        if self.lora_rank is not None and self.optimiser.pull_to_original:
            raise ValueError("an adapter has no original weights; use optimiser.weight_decay, not pull_to_original")
        if self.rows_per_update > self.prompts_per_rollout:
            raise ValueError("rows_per_update is larger than prompts_per_rollout; lower it")
        return self


class ConvertSettings(DistillSettings):
    """`opdlm convert`: a conversion with its places."""

    model: str = Field(default="", description="folder or hub name of the autoregressive model")
    prompts: str = Field(default="", description=".jsonl, .json, .parquet or .txt file, or a hub data set")
    prompts_column: str | None = Field(default=None, description="column of strings or chat messages; default: found")
    responses_column: str | None = Field(default=None, description="with method sft: column of given responses")
    prompt_limit: int | None = Field(default=None, ge=1, description="use only the first prompts")
    prompt_tokens: int | None = Field(default=None, ge=1, description="keep only the first tokens of each prompt")
    output: str = Field(default="", description="folder of the run; must be new or empty")
    recipe: str | None = Field(default=None, description="name of a recipe, or a .toml file, that gives the defaults")
    device: str = Field(default="auto", description="cpu, cuda, mps, or auto")

    @model_validator(mode="after")
    def _responses_are_used(self) -> "ConvertSettings":
        if self.responses_column is not None and (self.method != "sft" or not self.prompts):
            raise ValueError("responses_column is for method sft with a prompts file; leave it out, or set both")
        return self


_Chosen = TypeVar("_Chosen", bound=Settings)


def settings_from(kind: type[_Chosen], values: Mapping[str, Any]) -> _Chosen:
    """Validated settings. Raises ConfigError: one line that names the field, and the nearest name if it is unknown."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(_unknown(kind, first["loc"])) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"setting {where}: {reason}" if where else reason) from error


def _unknown(kind: type[Settings], loc: tuple[int | str, ...]) -> str:
    """What to say of a key that does not exist: the nearest one of the table that it stands in."""
    table, path = kind, ""
    choices: list[type[Settings]] = []
    for part in map(str, loc[:-1]):
        if part in table.model_fields:
            annotation = table.model_fields[part].annotation
            choices = list(get_args(annotation)) or [annotation]  # type: ignore[list-item]
            path += f"{part}."
        else:  # pydantic names the chosen kind of a union
            choices = [choice for choice in choices if choice.model_fields["kind"].default == part]
        table = choices[0]
    near = get_close_matches(str(loc[-1]), table.model_fields, 1)
    hint = f"did you mean {path + near[0]!r}" if near else f"known are {', '.join(sorted(table.model_fields))}"
    return f"unknown setting {path + str(loc[-1])!r}; {hint}"
