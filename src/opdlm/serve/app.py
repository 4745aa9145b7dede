"""The routes: OpenAI's, ours beside them, and what operators ask."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST

import opdlm
from opdlm.config import ServeSettings, as_text
from opdlm.models.block_diffusion import NO_MASK
from opdlm.sampling.api import DiffusionLM
from opdlm.sampling.ways import kinds_of
from opdlm.serve.answering import Answering
from opdlm.serve.failures import ApiError, BodyLimit, answer_errors
from opdlm.serve.forms import Model
from opdlm.serve.loop import EngineLoop
from opdlm.serve.metrics import Metrics
from opdlm.serve.playground import playground
from opdlm.serve.protocol import ChatBody, CompletionBody, InfillBody
from opdlm.serve.replies import TokenTexts


def make_loop(models: dict[str, DiffusionLM], settings: ServeSettings) -> EngineLoop:
    """The engines of all models; nothing runs yet."""
    makers = {name: lambda lm=lm: lm.engine(settings.batch_size) for name, lm in models.items()}
    return EngineLoop(makers, settings.batch_size + settings.queue_limit, settings.timeout_s)


def make_app(
    models: dict[str, DiffusionLM], settings: ServeSettings, loop: EngineLoop, ended: Callable[[], None]
) -> FastAPI:
    """The application: the loop's thread starts and stops with it. `ended`: called when that thread has ended."""
    metrics = Metrics(loop)
    served = {name: Model(name, lm, TokenTexts(lm.tokenizer, lm.tokens)) for name, lm in models.items()}

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        loop.start(ended)
        yield
        await loop.stop()

    app = FastAPI(
        title="opdlm",
        version=opdlm.__version__,
        lifespan=life,
        docs_url=None,  # these two load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    answer_errors(app, metrics.refused)
    if settings.cors_origins:
        origins = list(settings.cors_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.include_router(_api(Answering(served, loop, metrics)), dependencies=_keys(settings.api_key))
    app.include_router(_operations(loop, metrics))
    app.include_router(playground())
    return app


def _api(answering: Answering) -> APIRouter:
    """What clients call."""
    router, started = APIRouter(prefix="/v1"), int(time.time())

    def card(name: str) -> dict[str, Any]:
        lm = answering.models[name].lm
        model, own = lm.model, lm.defaults
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "opdlm",
            "max_model_len": model.max_length,
            "block_size": model.geometry.block_size,
            "decodings": kinds_of(model),
            "infill": model.mask_token_id != NO_MASK,
            "defaults": {
                "decoding": as_text(own.decoding),
                "temperature": own.temperature,
                "max_tokens": own.max_new_tokens,
            },
        }

    @router.get("/models")
    async def models() -> Any:
        return {"object": "list", "data": [card(name) for name in answering.models]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> Any:
        if name not in answering.models:
            raise ApiError(404, f"there is no model {name!r}", "model", "model_not_found")
        return card(name)

    @router.post("/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        return await answering.answer(body, request)

    @router.post("/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await answering.answer(body, request)

    @router.post("/infill")
    async def infill(body: InfillBody, request: Request) -> Response:
        return await answering.answer(body, request)

    return router


def _operations(loop: EngineLoop, metrics: Metrics) -> APIRouter:
    """What is asked of a server, not of a model: open to all."""
    router = APIRouter()

    @router.get("/health")
    @router.head("/health", include_in_schema=False)
    async def health() -> Response:
        return JSONResponse({"status": "ok"} if loop.alive else {"status": "stopped"}, 200 if loop.alive else 503)

    @router.get("/metrics")
    @router.head("/metrics", include_in_schema=False)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _keys(expected: str | None) -> list[Any]:
    """What a request must pass: nothing, or the key."""
    if expected is None:
        return []

    bearer = HTTPBearer(auto_error=False)

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        sent = "" if given is None else given.credentials
        # Headers are read as Latin-1, whatever their bytes say.
        if not secrets.compare_digest(sent.encode("latin-1"), expected.encode()):
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    return [Depends(check)]
