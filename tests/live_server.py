"""A server in a thread of its own, with a real socket, and tiny models behind it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx2
from openai import OpenAI

from opdlm.config import GenerationSettings, ServeSettings
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.sampling.api import DiffusionLM
from opdlm.serve.server import address, make_server, take_port
from rollouts import ar_model, student
from support import tiny_tokenizer

MESSAGES: list[Any] = [{"role": "user", "content": "what is it"}]


@cache
def diffusion() -> DiffusionLM:
    """Random weights, one token a character, a context of 256."""
    defaults = GenerationSettings.model_validate({"decoding": "dynamic:0.3", "max_new_tokens": 24})
    return DiffusionLM(student(4, "shifted", "causal"), tiny_tokenizer(chat=True, mask=True), defaults)


@cache
def autoregressive() -> DiffusionLM:
    """The same weights, as they are."""
    plain = BlockDiffusionModel(ar_model(), AUTOREGRESSIVE, NO_MASK)
    defaults = GenerationSettings.model_validate({"decoding": "sequential", "max_new_tokens": 24})
    return DiffusionLM(plain, tiny_tokenizer(chat=True), defaults)


@contextmanager
def serving(models: dict[str, DiffusionLM] | None = None, **settings: Any) -> Iterator[str]:
    """The address of the API of a server with `diffusion` and `autoregressive`, or other models."""
    models = models or {"diffusion": diffusion(), "autoregressive": autoregressive()}
    with take_port("127.0.0.1", 0) as taken:
        ready = threading.Event()
        server = make_server(models, ServeSettings(**settings), taken, lambda _url: ready.set())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            assert ready.wait(30)
            yield address(taken)
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


@contextmanager
def client_of(url: str, **options: Any) -> Iterator[OpenAI]:
    """OpenAI's own client, which tries nothing twice."""
    with OpenAI(base_url=url, api_key="any", max_retries=0, **options) as client:
        yield client


def gauge(url: str, name: str, model: str = "diffusion") -> float:
    """A number of `/metrics`, 0 where there is none yet."""
    text = httpx2.get(url.removesuffix("/v1") + "/metrics", timeout=120).text
    lines = [line for line in text.splitlines() if line.startswith(name) and f'model="{model}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come soon."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")
