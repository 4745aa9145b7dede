"""One request, from its body to its answer: whole, or as a stream of events."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from opdlm.errors import OpdlmError
from opdlm.sampling.request import Request as TextRequest
from opdlm.serve.failures import ApiError, refused, stopping, unexpected
from opdlm.serve.forms import FORMS, Form, Model
from opdlm.serve.loop import EngineLoop, Job, Snapshot
from opdlm.serve.metrics import Metrics
from opdlm.serve.protocol import ChatBody, CompletionBody, Sampling
from opdlm.serve.replies import Head, usage

_LOG = logging.getLogger(__name__)
_GONE = 499
"""Nobody reads it: what the log has where a client hangs up."""
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Answering:
    """Answers requests with the models that are served."""

    def __init__(self, models: dict[str, Model], loop: EngineLoop, metrics: Metrics) -> None:
        self.models, self.loop, self.metrics = models, loop, metrics
        # Tokenizers are slow for long texts, and not made for several threads: one of their own.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")

    async def answer(self, body: Sampling, request: Request) -> Response:
        """Raises ApiError where it is not let in."""
        if body.model not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"there is no model {body.model!r}; choose {known}", "model", "model_not_found")
        if body.texts > (most := self.loop.capacity):
            raise ApiError(400, f"the server takes {most} texts at once; ask for fewer", "n", "invalid_value")
        model = self.models[body.model]
        form = await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._form, model, body)
        answer = _Answer(self, model, form, body, self.loop.submit(body.model, form.requests))
        if body.stream:
            return _Events(answer)
        return await answer.whole(request)

    def _form(self, model: Model, body: Sampling) -> Form:
        """The request as the engine takes it, checked."""
        if not self.loop.alive:
            raise stopping()
        try:
            form = FORMS[type(body)](model, body)
            for request in form.requests:
                self.loop.engines[model.name].check(request)
        except OpdlmError as error:
            field = {ChatBody: "messages", CompletionBody: "prompt"}.get(type(body), "text")
            raise refused(error, field) from error
        return form


class _Answer:
    """An answer that is being written; its texts are given up as soon as nobody waits for them."""

    def __init__(self, server: Answering, model: Model, form: Form, body: Sampling, job: Job) -> None:
        self._server, self._model, self._form, self._body, self._job = server, model, form, body, job
        self._head = Head(form.kind, model.name)
        self._began, self._heard = perf_counter(), False
        self._newest: dict[int, Snapshot] = {}
        self._outcome, self._closed = "gone", False

    async def whole(self, request: Request) -> Response:
        """All choices in one body."""
        reading, leaving = asyncio.ensure_future(self._all()), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return Response(status_code=_GONE)
            reading.result()
        finally:
            for task in (reading, leaving):
                task.cancel()
            self.close()
        choices = [self._form.choice(index, self._newest[index]) for index in range(len(self._form.requests))]
        return JSONResponse(self._head.of(choices, usage=self._usage()))

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events; an error is one of them, since the status has been sent before."""
        options = self._body.stream_options
        counted = bool(options and options.include_usage)
        suffix = "" if self._form.kind == "text_completion" else ".chunk"
        more = {"usage": None} if counted else {}
        try:
            for index in range(len(self._form.requests)):
                if (opening := self._form.opening(index)) is not None:
                    yield _event(self._head.of([opening], suffix, **more))
            async for index, snapshot in self._heard_of():
                for choice in self._form.news(index, snapshot):
                    yield _event(self._head.of([choice], suffix, **more))
            if counted:
                yield _event(self._head.of([], suffix, usage=self._usage()))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.content())
        except Exception:  # noqa: BLE001 - the client has its status already, and is to hear of it all the same
            _LOG.exception("a stream of %s failed", self._model.name)
            yield _event(unexpected().content())

    async def _all(self) -> None:
        async for _ in self._heard_of():
            pass

    async def _heard_of(self) -> AsyncIterator[tuple[int, Snapshot]]:
        """The newest snapshots; how it ends is noted."""
        try:
            async for index, snapshot in self._job:
                self._newest[index] = snapshot
                if not self._heard and snapshot.sure > snapshot.first:
                    self._heard = True
                    self._server.metrics.first(self._model.name, self._form.kind, perf_counter() - self._began)
                yield index, snapshot
        except ApiError:
            self._outcome = "failed"
            raise
        self._outcome = "finished"

    def _usage(self) -> dict[str, Any]:
        written = sum(_written(self._form.requests[index], one) for index, one in self._newest.items())
        return usage(self._form.prompts, list(self._newest.values()), written)

    def close(self) -> None:
        """Nobody waits for it any more, or it is complete."""
        if self._closed:
            return
        self._closed = True
        self._server.loop.close(self._job)
        took, seconds = self._usage(), perf_counter() - self._began
        counts = took["prompt_tokens"], took["completion_tokens"], took["forwards"]
        self._server.metrics.ended(self._model.name, self._form.kind, self._outcome, seconds, *counts)


class _Events(StreamingResponse):
    """A stream; where the client hangs up, its texts are given up at once, whatever it was waiting for."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.events(), media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(asyncio.CancelledError):  # a stop, and a client that reads nothing
                await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


def _written(request: TextRequest, snapshot: Snapshot) -> int:
    """Tokens of the response so far: in a text with gaps, those that stood in gaps."""
    return sum(chance > 0 for chance in snapshot.confidence[request.first :])


async def _gone(request: Request) -> None:
    """Returns when the client hangs up; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
