"""What goes wrong, as the OpenAI API says it: a status, and `{"error": {message, type, param, code}}`."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opdlm.config import CONSTRAINTS
from opdlm.errors import ConfigError, ContextLengthError, OpdlmError, UsageError
from opdlm.serve.protocol import BODIES

_TYPES = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error"}
_NAMES = {"max_new_tokens": "max_tokens", "stop_strings": "stop"}
"""Settings that the API calls otherwise."""


class ApiError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP. message: what is wrong and what to do. param: the field. code: for programs.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def content(self) -> dict[str, Any]:
        """The body, also of an event in a stream."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(error: OpdlmError, param: str | None = None) -> ApiError:
    """A mistake in a request that our own code has found; `param`: the field, where the message names no setting."""
    message = " ".join(str(error).split())
    for ours, theirs in _NAMES.items():
        message = message.replace(ours, theirs)
    named = re.match(r"setting (\w+)", message)
    if isinstance(error, ConfigError) or (named and named[1] not in CONSTRAINTS):
        return ApiError(400, message, named and named[1], "invalid_value")
    if isinstance(error, ContextLengthError):
        return ApiError(400, message.replace("--max-new-tokens", "max_tokens"), param, "context_length_exceeded")
    return ApiError(400 if isinstance(error, UsageError) else 500, message, param)


def busy(limit: int) -> ApiError:
    """Too many texts wait. Clients of OpenAI try again by themselves."""
    message = f"the server is busy: {limit} texts wait or are being written; try again later"
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": "1"})


def late(seconds: float) -> ApiError:
    """A request that took too long; trying again would take as long."""
    message = f"the text was not finished within {seconds:g} s; ask for fewer tokens"
    return ApiError(504, message, code="timeout", headers={"x-should-retry": "false"})


def stopping() -> ApiError:
    """The server has been told to stop, and the time of its last requests is over."""
    return ApiError(503, "the server stops; try again when it is back", code="server_stopping")


def unexpected() -> ApiError:
    """An error of our own."""
    return ApiError(500, "the server failed at this request; its log says why", code="internal_error")


def broken(reason: str) -> ApiError:
    """The engine has failed."""
    return ApiError(500, f"the model could not write ({reason}); try again", code="engine_error")


def answer_errors(app: FastAPI, count: Callable[[int], None]) -> None:
    """Makes every error of `app` one of the OpenAI API; `count` is told each status."""

    async def own(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        count(error.status)
        return JSONResponse(error.content(), error.status, headers=error.headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return await own(request, _invalid(request.url.path, error.errors()))

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return await own(request, _of_http(request, error))

    async def any_other(request: Request, _error: Exception) -> JSONResponse:
        return await own(request, unexpected())  # the framework raises it again, and uvicorn logs it

    app.add_exception_handler(ApiError, own)
    app.add_exception_handler(Exception, any_other)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)


class BodyLimit:
    """Reads no more of a body than `most` bytes. That of the framework answers in plain text."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)


def _invalid(path: str, errors: Sequence[Any]) -> ApiError:
    """The first mistake in a body."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON ({first['ctx']['error']} at character {where[0]})")
    if first["type"] == "mistake":
        return ApiError(400, first["msg"], first["ctx"]["name"], first["ctx"]["code"])
    if not where:
        return ApiError(400, "the body is no JSON object; send one with the content type application/json")
    name = where[0]
    if first["type"] == "extra_forbidden" and len(where) == 1:
        known = BODIES[path].model_fields if path in BODIES else ()
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return ApiError(400, f"unknown parameter: {name!r}{hint}", name, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"missing parameter: {'.'.join(where)!r}", name, "missing_required_parameter")
    reason = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"invalid {name!r}: {reason}", name, "invalid_value")


def _of_http(request: Request, error: HTTPException) -> ApiError:
    """What the framework finds: no such path, a body that is too large or no text, ..."""
    messages = {
        400: "the body cannot be read; send UTF-8 JSON",
        404: f"there is nothing at {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
        413: "the body is too large; shorten it",
    }
    return ApiError(error.status_code, messages.get(error.status_code, str(error.detail)))
