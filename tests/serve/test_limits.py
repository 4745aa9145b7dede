"""What a server meets: bad requests, clients that leave or read slowly, too many of them, an engine that fails."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from live_server import MESSAGES, client_of, diffusion, gauge, serving, until
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.engine import Completion, Engine
from opdlm.serve import answering, forms

LONG: dict[str, Any] = {
    "model": "diffusion",
    "messages": MESSAGES,
    "max_tokens": 100,
    "logit_bias": {"2": -100},
    "decoding": "static",
}
"""A hundred tokens, one a step."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(max_body_bytes=20_000) as address:
        yield address


def posted(url: str, body: Any, path: str = "/chat/completions", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    types = {"Content-Type": "application/json"} | headers
    return httpx2.post(url + path, content=content, headers=types, timeout=120)


def sent(url: str, body: Any, buffer: int | None = None) -> socket.socket:
    """A connection on which a chat has been asked for. `buffer`: bytes that it takes unread."""
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    host, port = httpx2.URL(url).netloc.decode().split(":")
    connection.connect((host, int(port)))
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


BAD: list[tuple[Any, int, str | None, str]] = [
    (b"{", 400, None, "not valid JSON"),
    (b"\xff\xfe{}", 400, None, "not valid JSON"),
    (b'{"a": "\x80"}', 400, None, "UTF-8"),
    (b'{"model": "\xc3\x28"}', 400, None, "UTF-8"),
    (b"[" * 100_00, 400, None, ""),
    (b"null", 400, None, "JSON object"),
    ([], 400, None, "JSON object"),
    ({"messages": MESSAGES}, 400, "model", "missing parameter"),
    ({"model": "diffusion"}, 400, "messages", "missing parameter"),
    ({"model": "difusion", "messages": MESSAGES}, 404, "model", "there is no model"),
    ({"temprature": 1}, 400, "temprature", "did you mean 'temperature'"),
    ({"temperature": "warm"}, 400, "temperature", "valid number"),
    ({"temperature": -1}, 400, "temperature", "temperature"),
    ({"top_p": 0}, 400, "top_p", "top_p"),
    ({"max_tokens": 0}, 400, "max_tokens", "greater than"),
    ({"max_tokens": 10**30}, 400, "max_tokens", "max_tokens"),
    ({"max_tokens": 4000}, 400, "messages", "context of 256"),
    ({"seed": 2**70}, 400, "seed", "less than"),
    ({"n": 0}, 400, "n", "greater than"),
    ({"n": 129}, 400, "n", "less than"),
    ({"stop": [""]}, 400, "stop", "stop string is empty"),
    ({"stop": "\u20ac"}, 400, "stop", "choose another"),
    ({"stop": "x" * 257}, 400, "stop", "at most 256 characters"),
    ({"stop": ["x" * 99] * 3}, 400, "stop", "at most 256 characters"),
    ({"logit_bias": {"12345": 1}}, 400, "logit_bias", "does not exist"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias", "logit_bias"),
    ({"top_logprobs": 3}, 400, "top_logprobs", "needs logprobs"),
    ({"decoding": "dynamc:0.9"}, 400, "decoding", "did you mean 'dynamic'"),
    ({"decoding": "verified"}, 400, "decoding", "lossless"),
    ({"functions": [{"name": "f"}]}, 400, "functions", "name them in tools"),
    ({"reasoning_effort": "high"}, 400, "reasoning_effort", "not supported"),
    ({"messages": []}, 400, "messages", "at least 1"),
    ({"messages": [{"role": "user"}]}, 400, "messages", "needs 'role' and 'content'"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "surrogate"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages",
        "text alone",
    ),
    ({"messages": [{"role": "user", "content": "a" * 300}]}, 400, "messages", "context of 256"),
    ({"user": "u" * 30_000}, 413, None, "too large"),
]


@pytest.mark.parametrize(("body", "status", "param", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_told_what_is_wrong(body: Any, status: int, param: str | None, message: str, url: str) -> None:
    """Else a mistake would be a 500, be ignored, or be reported in a form that no client reads."""
    if isinstance(body, dict) and not body.keys() & {"model"} and "missing" not in message:
        body = {"model": "diffusion", "messages": MESSAGES} | body
    answer = posted(url, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert error["param"] == param
    assert posted(url, {"model": "diffusion", "messages": MESSAGES, "max_tokens": 1}).status_code == 200


def test_what_asks_for_nothing_is_taken(url: str) -> None:
    """Else clients that name every field, or set what has no meaning here, would be refused."""
    harmless = {
        "user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "stream": None, "tools": [],
        "tool_choice": "none", "response_format": {"type": "text"}, "parallel_tool_calls": True, "n": None,
        "prediction": {"type": "content", "content": "x"}, "modalities": ["text"], "temperature": None, "seed": -5,
    }  # fmt: skip
    answer = posted(url, {"model": "diffusion", "messages": MESSAGES} | harmless)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/completions", {"prompt": []}, "no token"),
        ("/completions", {"prompt": [[]]}, "no token"),
        ("/completions", {"prompt": [[1, 5000]]}, "does not exist"),
        ("/completions", {"prompt": "a", "echo": True}, "echo is not supported"),
        ("/completions", {"prompt": "a", "suffix": "b"}, "/v1/infill"),
        ("/completions", {"prompt": "a", "best_of": 3}, "best_of"),
        ("/infill", {"text": "no gap"}, "no gap to fill"),
        ("/infill", {"text": "[[MASK:3]] first"}, "begin the text"),
        ("/infill", {"text": "a [[MASK:3000]]"}, "more than 256"),
        ("/infill", {"text": "a [[MASK:3]]", "stop": "x"}, "unknown parameter: 'stop'"),
        ("/infill", {"text": "a [[MASK:3]]", "model": "autoregressive"}, "fills no gaps"),
    ],
)
def test_the_other_endpoints_refuse_as_well(path: str, body: dict[str, Any], message: str, url: str) -> None:
    """Else what one endpoint finds would stop the engine on another."""
    answer = posted(url, {"model": "diffusion"} | body, path)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/infill"])
def test_a_text_far_too_long_is_never_encoded(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a text of some megabytes would keep the tokenizer from all others, and take a gigabyte."""
    text, sizes, tokenizer = "b " + "a" * 100_000, [], type(diffusion().tokenizer)
    encode = tokenizer._encode_plus

    def noted(self: Any, text: Any, *args: Any, **named: Any) -> Any:
        sizes.append(len(text))
        return encode(self, text, *args, **named)

    monkeypatch.setattr(tokenizer, "_encode_plus", noted)
    body = {"messages": [{"role": "user", "content": text}], "prompt": text, "text": text + "[[MASK:2]]"}
    name = {"/chat/completions": "messages", "/completions": "prompt", "/infill": "text"}[path]
    with serving() as url:
        answer = posted(url, {"model": "diffusion", name: body[name]}, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", name)
    assert "the first 4096 of 100002 characters do not fit" in error["message"]
    assert 0 < max(sizes) <= 4096


def test_paths_and_content_types(url: str) -> None:
    """Else a wrong address would answer with a page, and a web page could post here without asking (CORS)."""
    assert posted(url, {}, "/nothing").json()["error"]["message"] == "there is nothing at /v1/nothing"
    assert httpx2.get(url + "/chat/completions").status_code == 405
    body = json.dumps({"model": "diffusion", "messages": MESSAGES}).encode()
    assert (
        httpx2.post(url + "/chat/completions", content=body, headers={"Content-Type": "text/plain"}).status_code == 400
    )
    answer = httpx2.get(url + "/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    root = url.removesuffix("/v1")
    assert httpx2.get(root + "/health").json() == {"status": "ok"}
    for path in ("/health", "/metrics"):
        head = httpx2.head(root + path)
        assert (head.status_code, head.content) == (200, b"")
    assert httpx2.get(root + "/").headers["content-type"].startswith("text/html")


def test_a_key_and_origins() -> None:
    """Else anybody who reaches the port could use it, or a page that was let in could not."""
    with serving(api_key="secret", cors_origins="http://page.example") as url:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            answer = httpx2.get(url + "/models", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        good = {"Authorization": "Bearer secret", "Origin": "http://page.example"}
        answer = httpx2.get(url + "/models", headers=good)
        assert answer.headers["access-control-allow-origin"] == "http://page.example"
        other = httpx2.get(url + "/models", headers=good | {"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert httpx2.get(url.removesuffix("/v1") + "/health").status_code == 200


@pytest.mark.parametrize("key", ["cl\u00e9", "\u043a\u043b\u044e\u0447"])
def test_a_key_may_have_any_bytes(key: str) -> None:
    """Else every request would fail, or be an error of our own."""
    with serving(api_key=key) as url:
        for sent, status in ((key, 200), (key + "x", 401), ("\u00e9", 401)):
            value = f"Bearer {sent}".encode()
            assert httpx2.get(url + "/models", headers={b"Authorization": value}).status_code == status


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_frees_its_place(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the text would be written to its end for nobody, and keep its place from those who wait."""
    step, finished = Engine.step, []

    def noted(engine: Engine) -> Any:
        events = step(engine)
        finished.extend(event for event in events if isinstance(event, Completion))
        return events

    monkeypatch.setattr(Engine, "step", noted)
    with serving(batch_size=1, queue_limit=4) as url:
        for _ in range(3):
            sock = sent(url, LONG | {"stream": streamed, "max_tokens": 236})
            until(lambda: gauge(url, "opdlm_texts_writing") == 1)
            sock.close()
            until(lambda: gauge(url, "opdlm_texts_writing") == 0)
        assert not finished
        assert posted(url, {"model": "diffusion", "messages": MESSAGES}).status_code == 200
        assert gauge(url, "opdlm_requests_total") == 4


def test_a_full_queue_says_429_and_takes_others_later() -> None:
    """Else a burst would grow the queue without end, or a server that was full once would stay so."""

    async def burst(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            asked = [client.post("/chat/completions", body=LONG, cast_to=object) for _ in range(6)]
            return await asyncio.gather(*asked, return_exceptions=True)

    with serving(batch_size=1, queue_limit=2) as url:
        found = asyncio.run(burst(url))
        refused = [one for one in found if isinstance(one, Exception)]
        assert len(refused) == 3
        for one in refused:
            assert isinstance(one, openai.RateLimitError)
            assert one.response.headers["retry-after"] == "1"
        assert posted(url, LONG | {"max_tokens": 1}).status_code == 200
        assert posted(url, LONG | {"n": 4}).json()["error"]["param"] == "n"


def test_too_many_texts_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a small body, with many prompts and a large n, would take the memory of all their requests."""
    monkeypatch.setattr(answering, "FORMS", {})
    with serving(batch_size=1, queue_limit=2) as url:
        answer = posted(url, {"model": "diffusion", "prompt": ["a", "b"], "n": 2}, "/completions")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_that_takes_too_long_is_given_up(streamed: bool) -> None:
    """Else a client would wait for ever, or be told nothing in the middle of a stream."""
    with serving(timeout_s=0.05) as url, client_of(url) as client:
        asked = {**LONG, "n": 4}
        extra = {"decoding": asked.pop("decoding")}
        if streamed:
            with pytest.raises(openai.APIError, match=r"within 0\.05 s"):
                list(client.chat.completions.create(**asked, stream=True, extra_body=extra))
        else:
            with pytest.raises(openai.InternalServerError) as late:
                client.chat.completions.create(**asked, extra_body=extra)
            assert late.value.status_code == 504
            assert late.value.response.headers["x-should-retry"] == "false"
        until(lambda: gauge(url, "opdlm_texts_writing") == 0)


def test_a_client_that_reads_slowly_gets_everything_and_delays_nobody(url: str) -> None:
    """Else one slow reader would hold up the others, or its unread drafts would pile up in memory."""
    sock = sent(url, LONG | {"stream": True, "diffusing": True, "logprobs": True, "top_logprobs": 20}, buffer=4096)
    until(lambda: gauge(url, "opdlm_texts_writing") == 1)
    for _ in range(3):
        assert posted(url, {"model": "diffusion", "messages": MESSAGES}).status_code == 200
    until(lambda: gauge(url, "opdlm_texts_writing") == 0)  # it is written to its end, and nothing was read
    received = b""
    while part := sock.recv(65536):
        received += part
    sock.close()
    events = [line[6:] for line in received.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    lm = diffusion()
    settings = {"max_new_tokens": 100, "logit_bias": {2: -100}, "decoding": "static"}
    assert text == lm.decode(lm.generate([encode_prompt(lm.tokenizer, MESSAGES)], **settings))[0]


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_an_engine_that_fails_tells_its_clients_and_goes_on(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else memory that runs out once would hang every client, or end the server."""
    step, failing = Engine.step, iter([False, False, True])

    def sometimes(engine: Engine) -> Any:
        if next(failing, False):
            raise kind("out of memory\nand a long story")
        return step(engine)

    with serving() as url:
        monkeypatch.setattr(Engine, "step", sometimes)
        answer = posted(url, LONG)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
        assert "(out of memory)" in answer.json()["error"]["message"]
        assert posted(url, LONG).status_code == 200
        assert httpx2.get(url.removesuffix("/v1") + "/health").status_code == 200


def failing(*_: Any) -> Any:
    raise ZeroDivisionError("of our own")


def test_an_error_of_our_own_is_one_of_the_api(url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Else a client would get plain text or a broken stream, or an operator no traceback, or two."""
    for target, attribute, streamed in (
        (answering.Answering, "_form", False),
        (forms.Chat, "choice", False),
        (forms.Chat, "news", True),
        (Engine, "add", False),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(target, attribute, failing)
            caplog.clear()
            answer = posted(url, {"model": "diffusion", "messages": MESSAGES, "stream": streamed})
            events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
            error = json.loads(events[-1] if streamed else answer.text)["error"]
            assert (answer.status_code, error["type"]) == (200 if streamed else 500, "server_error")
            until(lambda: bool(caplog.records))
            assert [record.exc_info is not None for record in caplog.records] == [True], attribute
        assert posted(url, {"model": "diffusion", "messages": MESSAGES}).status_code == 200


def test_a_stop_tells_open_streams_and_logs_no_trace(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Else a client could take a text that was cut for a whole one, and an operator would look for a fault."""
    step, seen = Engine.step, threading.Event()

    def slowly(engine: Engine) -> Any:
        assert seen.wait(60)
        time.sleep(0.05)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slowly)
    context = serving(stop_timeout_s=0)
    with client_of(context.__enter__()) as client:
        asked = {**LONG, "max_tokens": 236}
        extra = {"decoding": asked.pop("decoding")}
        stream = client.chat.completions.create(**asked, stream=True, extra_body=extra)
        assert next(stream).choices[0].delta.role == "assistant"
        seen.set()
        stopping = threading.Thread(target=context.__exit__, args=(None, None, None))
        stopping.start()
        with pytest.raises(openai.APIError, match="the server stops"):
            list(stream)
        stopping.join()
    assert not caplog.records


def test_a_stop_lets_open_requests_finish(url: str) -> None:
    """Else a restart would cut every answer that is being written."""

    async def ask(url: str) -> str:
        async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
            answer: Any = await client.post("/chat/completions", body=LONG, cast_to=object)
            return answer["choices"][0]["finish_reason"]

    async def ask_while(context: Any, url: str) -> str:
        asking = asyncio.ensure_future(ask(url))
        while await asyncio.to_thread(gauge, url, "opdlm_texts_writing") == 0:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(context.__exit__, None, None, None)
        return await asking

    context = serving()
    assert asyncio.run(ask_while(context, context.__enter__())) == "length"
