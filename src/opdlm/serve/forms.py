"""The three things a client can ask for: what it sends becomes requests, what is written becomes choices."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from opdlm.config import GenerationSettings
from opdlm.errors import UsageError
from opdlm.models.gaps import GapText
from opdlm.models.tokens import check_beginning, encode_prompt, encode_text
from opdlm.models.tool_calls import tool_call_grammar
from opdlm.sampling.api import DiffusionLM
from opdlm.sampling.request import Request
from opdlm.serve.calling import CallingText, call_entries
from opdlm.serve.failures import ApiError, refused
from opdlm.serve.loop import Snapshot
from opdlm.serve.protocol import ChatBody, CompletionBody, Continuing, InfillBody, Sampling
from opdlm.serve.replies import TokenTexts, finish_reason
from opdlm.serve.text import GrowingText

_SEEDS = 2**62


@dataclass(frozen=True)
class Model:
    """A model that is served. name: by which clients ask for it. texts: of its single tokens."""

    name: str
    lm: DiffusionLM
    texts: TokenTexts


class Form(Protocol):
    """One answer, as its endpoint has it.

    Attributes:
        kind: of its objects. prompts: token ids. requests: one for each choice.
    """

    kind: str
    prompts: list[list[int]]
    requests: list[Request]

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream begins a choice with."""
        ...

    def choice(self, index: int, snapshot: Snapshot) -> dict[str, Any]:
        """A finished choice."""
        ...

    def news(self, index: int, snapshot: Snapshot) -> list[dict[str, Any]]:
        """What a stream adds to a choice; nothing where there is nothing new."""
        ...


class Continuation:
    """What chat and text completions share: text behind prompts.

    `say` puts text into a choice or a part of one.
    """

    kind: str

    def __init__(self, model: Model, body: Continuing, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.body, self.prompts = model, body, [list(prompt) for prompt in prompts]
        settings, many = self.settings(), body.n or 1
        self.requests = []
        for place, prompt in enumerate(self.prompts):
            seeds = range(settings.seed + place * many, settings.seed + (place + 1) * many)
            fitting = _fitting(settings, body, model.lm, len(prompt))
            rows, watched, alternatives = [prompt] * many, bool(body.stream), body.alternatives or 0
            try:
                self.requests += model.lm.requests(rows, fitting, seeds, watched, alternatives)
            except UsageError as error:  # in what the response must be
                raise refused(error, body.constrained_by) from error
        self._texts = [self._text(request) for request in self.requests]
        self._sent = [request.first for request in self.requests]  # tokens of which the client has heard

    def settings(self) -> GenerationSettings:
        """How it is written."""
        return settings_of(self.model.lm.settings, self.body)

    def say(self, text: str, streamed: bool) -> dict[str, Any]:
        """As this endpoint has it."""
        raise NotImplementedError

    def logprobs(self, snapshot: Snapshot, begin: int) -> dict[str, Any]:
        """As this endpoint has them, of the tokens from `begin` on."""
        raise NotImplementedError

    def opening(self, index: int) -> dict[str, Any] | None:
        """Nothing."""
        return None

    def choice(self, index: int, snapshot: Snapshot) -> dict[str, Any]:
        """With all of its text."""
        text = self._texts[index].more(snapshot.ids[snapshot.first :], last=True)
        logprobs = None if self.body.alternatives is None else self.logprobs(snapshot, snapshot.first)
        return {"index": index, **self.say(text, False), "logprobs": logprobs, "finish_reason": finish_reason(snapshot)}

    def news(self, index: int, snapshot: Snapshot) -> list[dict[str, Any]]:
        """New text, and the draft; then, alone, why it ended."""
        text = self._texts[index].more(snapshot.ids[snapshot.first : snapshot.sure], last=snapshot.done)
        asked = self.body.alternatives is not None
        logprobs = self.logprobs(snapshot, self._sent[index]) if asked and self._sent[index] < snapshot.sure else None
        said = self.say(text, True)
        if self.body.diffusing:
            said = _beside(said, "draft", self.model.texts.draft(snapshot, self._sent[index]))
        self._sent[index] = snapshot.sure
        parts = []
        if text or logprobs or self.body.diffusing:
            parts.append(said | {"logprobs": logprobs, "finish_reason": None})
        if snapshot.done:
            parts.append(self.say("", True) | {"logprobs": None, "finish_reason": finish_reason(snapshot)})
        return [{"index": index, **part} for part in parts]

    def _text(self, request: Request) -> GrowingText:
        return GrowingText(self.model.lm.tokenizer, request.stop_strings)


class Chat(Continuation):
    """POST /v1/chat/completions."""

    kind = "chat.completion"

    def __init__(self, model: Model, body: ChatBody) -> None:
        for message in body.messages:
            if message.get("role") != "assistant":  # of whose words templates may leave some out
                check_beginning(model.lm.tokenizer, message.get("content"), model.lm.model.max_length)
        super().__init__(model, body, [encode_prompt(model.lm.tokenizer, body.messages, tools=body.offered)])

    def opening(self, index: int) -> dict[str, Any] | None:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def say(self, text: str, streamed: bool) -> dict[str, Any]:
        if streamed:
            return {"delta": {"content": text} if text else {}}
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, snapshot: Snapshot, begin: int) -> dict[str, Any]:
        return self.model.texts.chat_logprobs(snapshot, begin)


class ToolChat(Chat):
    """A chat with tools: the response may call them, or must."""

    def __init__(self, model: Model, body: ChatBody) -> None:
        self._chat, self._names = body, [tool["function"]["name"] for tool in body.offered]
        super().__init__(model, body)

    def settings(self) -> GenerationSettings:
        """Held to calls where one must be made, and where an answer would have to be JSON, to either."""
        settings, body = super().settings(), self._chat
        answer = None if body.demanded else settings.json_schema
        if not body.demanded and answer is None:
            return settings
        tools, several = body.demanded or body.offered, body.most_calls is None
        grammar = tool_call_grammar(tools, self.model.lm.tokenizer, several, answer)
        return settings.model_copy(update={"json_schema": None, "grammar": grammar})

    def choice(self, index: int, snapshot: Snapshot) -> dict[str, Any]:
        """With its calls beside the text; without text, None is in its place."""
        choice = super().choice(index, snapshot)
        if calls := self._calls(index):
            choice["message"] |= {"content": choice["message"]["content"] or None, "tool_calls": calls}
            choice["finish_reason"] = self._reason(snapshot)
        return choice

    def news(self, index: int, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The calls come last, whole, in a part of their own."""
        parts = super().news(index, snapshot)
        if calls := self._calls(index):
            numbered = [{"index": place, **call} for place, call in enumerate(calls)]
            parts[-1:] = [parts[-1] | {"delta": {"tool_calls": numbered}, "finish_reason": None}, parts[-1]]
            parts[-1]["finish_reason"] = self._reason(snapshot)
        return parts

    def _calls(self, index: int) -> list[dict[str, Any]]:
        return call_entries(self._texts[index].calls[: self._chat.most_calls])

    def _reason(self, snapshot: Snapshot) -> str | None:
        return "tool_calls" if snapshot.stopped else finish_reason(snapshot)

    def _text(self, request: Request) -> GrowingText:
        return CallingText(self.model.lm.tokenizer, request.stop_strings, self._names)


def chat(model: Model, body: ChatBody) -> Chat:
    """With tools, or without."""
    return ToolChat(model, body) if body.offered else Chat(model, body)


class TextCompletion(Continuation):
    """POST /v1/completions."""

    kind = "text_completion"

    def __init__(self, model: Model, body: CompletionBody) -> None:
        tokenizer = model.lm.tokenizer
        given = body.prompts()
        for one in given:
            check_beginning(tokenizer, one, model.lm.model.max_length)
        prompts = [encode_text(tokenizer, one) if isinstance(one, str) else one for one in given]
        if not prompts or not all(prompts):
            raise ApiError(400, "a prompt has no token; write some text", "prompt", "invalid_value")
        super().__init__(model, body, prompts)

    def say(self, text: str, streamed: bool) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, snapshot: Snapshot, begin: int) -> dict[str, Any]:
        return self.model.texts.completion_logprobs(snapshot, begin)


class Infill:
    """POST /v1/infill: a text with gaps, filled."""

    kind = "infill"

    def __init__(self, model: Model, body: InfillBody) -> None:
        self.model, self.body = model, body
        self.gaps: GapText = model.lm.gaps(body.text)
        self.prompts = [self.gaps.ids]
        requests = model.lm.fillings([self.gaps.ids] * (body.n or 1), settings_of(model.lm.filling_settings, body))
        self.requests = [replace(request, watched=bool(body.stream and body.diffusing)) for request in requests]

    def opening(self, index: int) -> dict[str, Any] | None:
        """Nothing."""
        return None

    def choice(self, index: int, snapshot: Snapshot) -> dict[str, Any]:
        """The whole text; it always has the length that was asked for."""
        rest = self.gaps.ids[len(snapshot.ids) :]
        return {"index": index, "text": self.gaps.filled([*snapshot.ids, *rest]), "finish_reason": "stop"}

    def news(self, index: int, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The draft, from the first gap to the end of the current block; the text once it is complete."""
        draft = {"draft": self.model.texts.draft(snapshot, snapshot.first)} if self.body.diffusing else {}
        if snapshot.done:
            return [self.choice(index, snapshot) | draft]
        return [{"index": index, "text": "", "finish_reason": None, **draft}]


FORMS: dict[type[Sampling], Callable[[Model, Any], Form]] = {
    ChatBody: chat,
    CompletionBody: TextCompletion,
    InfillBody: Infill,
}


def settings_of(merged: Callable[[dict[str, Any]], GenerationSettings], body: Sampling) -> GenerationSettings:
    """The model's own, `merged` with what the request says; without a seed, another one each time. ConfigError."""
    settings = merged(body.settings())
    if body.seed is not None:
        return settings.model_copy(update={"seed": body.seed % _SEEDS})
    return settings.model_copy(update={"seed": secrets.randbelow(_SEEDS)}) if settings.temperature > 0 else settings


def _fitting(settings: GenerationSettings, body: Continuing, lm: DiffusionLM, length: int) -> GenerationSettings:
    """Where the request names no length: the model's own default, or what its context has room for."""
    limit, size = lm.model.max_length, lm.model.geometry.block_size
    if body.limit is not None or limit is None:
        return settings
    room = max(1, limit // size * size - length)
    return settings.model_copy(update={"max_new_tokens": min(settings.max_new_tokens, room)})


def _beside(said: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """`value` in the delta, or beside the text: never in its place, so that clients that append go on working."""
    return said | {"delta": said["delta"] | {name: value}} if "delta" in said else said | {name: value}
