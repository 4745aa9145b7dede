"""What clients send: the bodies of the OpenAI API and ours, and what they say of how text is written.

A field that the API does not have is an error, as at OpenAI. Of those that it has and we do not, some change nothing
about the text (`user`, `store`, ...) and are ignored; the others, in `_UNSUPPORTED`, are refused.
"""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from opdlm.config import CONSTRAINTS

_NOTHING: tuple[Any, ...] = (None, [], {}, False)
_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "functions": (lambda _: False, "name them in tools"),
    "function_call": (lambda given: given in ("none", "auto"), "say it in tool_choice"),
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

_STOP_CHARACTERS = 256
"""Each is looked for in every token of the vocabulary: 25 ms of a large one, while nobody comes in."""


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


class Function(_Body):
    """A function that a model may call. parameters: a JSON schema of its arguments; without it they may be any."""

    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    """What `tools` lists."""

    type: Literal["function"]
    function: Function

    def shown(self) -> dict[str, Any]:
        """As a chat template takes it."""
        return self.model_dump(include={"type": True, "function": self.function.model_fields_set - {"strict"}})


class NamedSchema(_Body):
    """A JSON schema. It is always kept to: `strict` changes nothing."""

    name: str
    description: str | None = None
    content: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """What a response is: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            message = "response_format has json_schema where, and only where, its type is json_schema; correct it"
            raise mistake("response_format", message)
        return self

    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema of the response; None: it is text."""
        if self.json_schema is not None:
            return self.json_schema.content
        return {"type": "object"} if self.type == "json_object" else None


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

    @property
    def texts(self) -> int:
        """How many it asks for."""
        return self.n or 1

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
    """A request for text behind a prompt. json_schema, regex, grammar: as in GenerationSettings, and ours."""

    stop: str | list[str] | None = None
    hold_end: bool | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _short_stops(self) -> "Continuing":
        if sum(map(len, self.stop or ())) > _STOP_CHARACTERS:
            message = f"stop has at most {_STOP_CHARACTERS} characters, all strings together; shorten it"
            raise mistake("stop", message)
        return self

    @property
    def limit(self) -> int | None:
        """Most new tokens, where the request says it."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many tokens to name beside each written one; None: no log-probabilities at all."""
        return None

    @property
    def constrained_by(self) -> str | None:
        """The field that says what the response must be."""
        return next((name for name in CONSTRAINTS if getattr(self, name) is not None), None)

    def settings(self) -> dict[str, Any]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        own = {"hold_end": self.hold_end, "max_new_tokens": self.limit, "stop_strings": stops or None}
        own |= {name: getattr(self, name) for name in CONSTRAINTS}
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

    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
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

    @model_validator(mode="after")
    def _one_form(self) -> "ChatBody":
        own = super().constrained_by
        if own and self.response_format and self.response_format.type != "text":
            raise mistake(own, f"response_format and {own} both say what the response must be; leave one of them out")
        if own and self.offered:
            raise mistake(
                own, f"{own} leaves no room for tool calls; leave it or the tools out, or use response_format"
            )
        return self

    @model_validator(mode="after")
    def _choice_exists(self) -> "ChatBody":
        match self.tool_choice:
            case None | "none" | "auto":
                return self
            case "required":
                if self.tools:
                    return self
                raise mistake("tool_choice", "tool_choice needs tools; name some, or leave it out")
            case {"type": "function", "function": {"name": name}}:
                if any(tool.function.name == name for tool in self.tools or []):
                    return self
                raise mistake("tool_choice", f"there is no tool {name!r} to choose; name it in tools")
        allowed = '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
        raise mistake("tool_choice", f"tool_choice is {allowed}; choose one")

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the model hears of."""
        return [] if self.tool_choice == "none" else [tool.shown() for tool in self.tools or []]

    @property
    def demanded(self) -> list[dict[str, Any]]:
        """Of them those of which one must be called; none: the model is free."""
        match self.tool_choice:
            case "required":
                return self.offered
            case {"function": {"name": name}}:
                return [tool for tool in self.offered if tool["function"]["name"] == name]
        return []

    @property
    def most_calls(self) -> int | None:
        """How many the response may have; None: any number."""
        named = isinstance(self.tool_choice, dict)
        return 1 if named or self.parallel_tool_calls is False else None

    @property
    def constrained_by(self) -> str | None:
        if self.demanded:
            return "tools"
        return super().constrained_by or "response_format"

    def settings(self) -> dict[str, Any]:
        schema = self.response_format.schema_asked() if self.response_format else None
        return super().settings() | ({} if schema is None else {"json_schema": schema})

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

    @property
    def texts(self) -> int:
        return super().texts * len(self.prompts())

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
