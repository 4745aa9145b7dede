"""How text is written."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from opdlm.config.base import Settings
from opdlm.config.decoding import DecodingField, DynamicDecoding

_LONGEST_STOP, _ALL_STOPS = 256, 4096  # characters
_Bias = Annotated[float, Field(ge=-1e30, le=1e30)]  # what float32 can add to a logit


def _bias_from_text(value: Any) -> Any:
    """`17:-5,23:2.5` as the short form of {17: -5.0, 23: 2.5}."""
    if not isinstance(value, str):
        return value
    return {token: bias for token, _, bias in (pair.partition(":") for pair in value.split(",") if pair)}


def _strings_from_text(value: Any) -> Any:
    """One string is a list of one."""
    return (value,) if isinstance(value, str) else value


def _short(strings: tuple[str, ...]) -> tuple[str, ...]:
    """Memory grows with the square of a length, and time with all of them together."""
    longest, together = max(map(len, strings), default=0), sum(map(len, strings))
    if longest > _LONGEST_STOP or together > _ALL_STOPS:
        raise ValueError(
            f"the longest string has {longest} characters and all together {together}, and at most {_LONGEST_STOP} and "
            f"{_ALL_STOPS} can be looked for; give fewer or shorter ones"
        )
    return strings


def _schema_from(value: Any) -> Any:
    """Of a pydantic model its JSON schema; of text, the JSON."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return value.model_json_schema()
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"this is no JSON ({error}); correct it") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply; make it flatter") from error


CONSTRAINTS = ("json_schema", "regex", "grammar")
"""The settings that say what a response must be; at most one is given."""


class GenerationSettings(Settings):
    """How text is written: the same settings for rollouts, evaluation and users."""

    decoding: DecodingField = Field(
        default=DynamicDecoding(),
        description="checked[:N] of shifted, causal students, static[:N], sequential[:N], dynamic[:T], prefix[:T], "
        "factor[:F], entropy[:NATS] or klass[:T]; of a lossless model verified[:N or :auto] or typical[:E]",
    )
    max_new_tokens: int = Field(default=256, ge=1, le=2**20, description="most tokens written after the prompt")
    temperature: float = Field(default=0.0, ge=0, description="0 takes the most probable token")
    top_k: int = Field(default=0, ge=0, lt=2**31, description="sample among the k most probable tokens; 0 is off")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="sample among the smallest set with this much probability"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="sample what is at least this share of the most probable; 0 is off"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="above 1: tokens that the text already has become less likely"
    )
    presence_penalty: float = Field(
        default=0.0, ge=-100, le=100, description="taken off the logits of tokens that the response already has"
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-100, le=100, description="the same, once for each time that the response has the token"
    )
    logit_bias: Annotated[dict[int, _Bias], BeforeValidator(_bias_from_text)] = Field(
        default={}, description="added to the logits of tokens, several divided by commas"
    )
    stop_strings: Annotated[tuple[str, ...], BeforeValidator(_strings_from_text), AfterValidator(_short)] = Field(
        default=(), description="the text ends with the token that completes this string"
    )
    hold_end: bool = Field(default=False, description="commit a stop token only where all before it is known")
    seed: int = Field(default=0, ge=0, lt=2**62, description="row i of a batch draws from seed + i")
    json_schema: Annotated[dict[str, Any] | None, BeforeValidator(_schema_from)] = Field(
        default=None, description="the response is JSON of this schema"
    )
    regex: str | None = Field(default=None, description="the response matches this regular expression, as a whole")
    grammar: str | None = Field(
        default=None, description="the response is a text of this grammar, in llguidance's Lark"
    )

    def of_checkpoint(self) -> dict[str, Any]:
        """What a checkpoint keeps: its own model file knows no constraints."""
        return self.model_dump(mode="json", exclude=set(CONSTRAINTS))

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """(name, value) of the one of CONSTRAINTS that is given."""
        given = ((name, getattr(self, name)) for name in CONSTRAINTS)
        return next((one for one in given if one[1] is not None), None)

    @model_validator(mode="after")
    def _one_constraint(self) -> "GenerationSettings":
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} both say what the response must be; give one of the two")
        return self
