"""What clients send: the bodies of the OpenAI API and ours, and what they say of how text is written.

A field that the API does not have is an error, as at OpenAI. Of those that it has and we do not, some change nothing
about the text (`user`, `store`, ...) and are ignored; the others, in `_UNSUPPORTED`, are refused.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

_NOTHING: tuple[Any, ...] = (None, [], {}, False)
_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "response_format": (lambda given: given == {"type": "text"}, "only text is written, leave it out"),
    "tools": (lambda _: False, "this server calls no tools, leave them out"),
    "tool_choice": (lambda given: given in ("none", "auto"), "this server calls no tools, leave it out"),
    "functions": (lambda _: False, "this server calls no functions, leave them out"),
    "function_call": (lambda given: given in ("none", "auto"), "this server calls no functions, leave it out"),
    "modalities": (lambda given: given == ["text"], "only text is written, leave it out"),
    "audio": (lambda _: False, "only text is written, leave it out"),
    "reasoning_effort": (lambda given: given == "none", "models here have no such setting, leave it out"),
    "verbosity": (lambda given: given == "medium", "models here have no such setting, leave it out"),
    "web_search_options": (lambda _: False, "this server searches nothing, leave it out"),
    "moderation": (lambda _: False, "this server moderates nothing, leave it out"),
    "suffix": (lambda given: given == "", "to fill a gap, use /v1/infill"),
    "echo": (lambda _: False, "the prompt is not repeated, leave it out"),
}
"""Field -> (whether a value asks for nothing, what to do instead)."""


def mistake(name: str, message: str, code: str = "invalid_value") -> PydanticCustomError:
    """What is wrong with the field `name`."""
    return PydanticCustomError("mistake", "{message}", {"name": name, "message": message, "code": code})


class _Body(BaseModel):
    """Base of all: no other fields, and no numbers in quotes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, frozen=True)


class StreamOptions(_Body):
    """`include_usage`: a last chunk says what was used."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(_Body):
    """What all requests have in common; what is left out is as the model was saved.

    Attributes:
        decoding: as in GenerationSettings. diffusing: a stream also has every draft. Both are ours, and so are top_k,
            min_p, repetition_penalty and hold_end.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    diffusing: bool | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    decoding: str | dict[str, Any] | None = None

    user: Any = None
    metadata: Any = None

    @model_validator(mode="after")
    def _supported(self) -> "Sampling":
        for name, (harmless, instead) in _UNSUPPORTED.items():
            given = getattr(self, name, None)
            if given not in _NOTHING and not harmless(given):
                raise mistake(name, f"{name} is not supported; {instead}", "unsupported_parameter")
        return self

    def settings(self) -> dict[str, Any]:
        """Fields of GenerationSettings, without those that the request leaves out; the seed is another matter."""
        return {name: value for name in _SETTINGS if (value := getattr(self, name)) is not None}


_SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "decoding",
)


class Continuing(Sampling):
    """A request for text behind a prompt."""

    stop: str | list[str] | None = None
    hold_end: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1)

    @property
    def limit(self) -> int | None:
        """Most new tokens, where the request says it."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many tokens to name beside each written one; None: no log-probabilities at all."""
        return None

    def settings(self) -> dict[str, Any]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        own = {"hold_end": self.hold_end, "max_new_tokens": self.limit, "stop_strings": stops or None}
        return super().settings() | {name: value for name, value in own.items() if value is not None}


class ChatBody(Continuing):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None
    parallel_tool_calls: Any = None

    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    moderation: Any = None

    @model_validator(mode="after")
    def _asked_for(self) -> "ChatBody":
        if self.top_logprobs and not self.logprobs:
            raise mistake("top_logprobs", "top_logprobs needs logprobs; set it to true")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionBody(Continuing):
    """POST /v1/completions. prompt: text, or token ids, or a list of either."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=1)
    suffix: str | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _all_of_them(self) -> "CompletionBody":
        if self.best_of not in (None, self.n or 1):
            raise mistake("best_of", "best_of other than n is not supported; leave it out", "unsupported_parameter")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """One by one."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class InfillBody(Sampling):
    """POST /v1/infill, ours. text: [[MASK:12]] in it stands for twelve tokens, which are written."""

    text: str


BODIES: dict[str, type[Sampling]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/infill": InfillBody,
}
