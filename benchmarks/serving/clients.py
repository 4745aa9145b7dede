"""Many clients at once: OpenAI's own asynchronous client, in a closed loop, well behaved or not."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import httpx2
import openai
import psutil

WARM_UP_S = 5.0
MALFORMED: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"model": "student"}', 400),
    (b'{"model": "student", "messages": [{"role": "user", "content": "a"}], "temprature": 1}', 400),
    (b'{"model": "nobody", "messages": [{"role": "user", "content": "a"}]}', 404),
    (b'{"model": "student", "messages": [{"role": "user", "content": "a"}], "max_tokens": 100000}', 400),
)


@dataclass(frozen=True)
class Question:
    """What is asked, and the response that `generate` gives to it."""

    text: str
    response: str


@dataclass
class Outcome:
    """What came of it. counts: of requests by kind. seconds: of those that were answered in full."""

    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def client(url: str, clients: int) -> openai.AsyncOpenAI:
    """One that tries nothing twice and waits for nobody."""
    limits = httpx2.Limits(max_connections=2 * clients, max_keepalive_connections=2 * clients)
    http = openai.DefaultAsyncHttpxClient(limits=limits)
    return openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=120, http_client=http)


@dataclass(frozen=True)
class Rate:
    """tokens: of responses that were finished. seconds: of the clock. cpu: seconds of the processor, of who wrote."""

    tokens: int
    seconds: float
    cpu: float


async def throughput(
    url: str, model: str, texts: Sequence[str], clients: int, seconds: float, server: psutil.Process, **more: Any
) -> Rate:
    """Of `clients` at once, until the server has used `seconds` of the processor, after a warm-up.

    Responses that are not finished then are given up.
    """
    asked, tokens, counting = cycle(texts), 0, False

    async def one(made: openai.AsyncOpenAI) -> None:
        nonlocal tokens
        while True:
            messages: Any = [{"role": "user", "content": next(asked)}]
            answer = await made.chat.completions.create(model=model, messages=messages, **more)
            tokens += answer.usage.completion_tokens if counting and answer.usage else 0

    async with client(url, clients) as made:
        running = [asyncio.ensure_future(one(made)) for _ in range(clients)]
        await asyncio.sleep(WARM_UP_S)
        began, cpu, counting = time.perf_counter(), cpu_of(server), True
        while cpu_of(server) - cpu < seconds and not any(task.done() for task in running):
            await asyncio.sleep(0.05)
        rate = Rate(tokens, time.perf_counter() - began, cpu_of(server) - cpu)
        failed = [task for task in running if task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    for task in failed:
        task.result()
    return rate


def cpu_of(process: psutil.Process) -> float:
    """Seconds of the processor that it has used."""
    used = process.cpu_times()
    return used.user + used.system


async def rough_weather(
    url: str, questions: Sequence[Question], clients: int, seconds: float, server: psutil.Process
) -> Outcome:
    """Clients that ask, stream, hang up in the middle and send nonsense, for `seconds`."""
    outcome, end = Outcome(), time.perf_counter() + seconds

    async def one(made: openai.AsyncOpenAI, number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() < end:
            kind = chance.choices(("whole", "stream", "hang up", "cancel", "malformed"), (4, 3, 1, 1, 1))[0]
            question = chance.choice(questions)
            outcome.counts["sent: " + kind] += 1
            await _KINDS[kind](made, question, outcome, chance)

    async def watch() -> None:
        while time.perf_counter() < end:
            outcome.memory.append(server.memory_info().rss)
            await asyncio.sleep(0.25)

    async with client(url, clients) as made:
        await asyncio.gather(watch(), *(one(made, number) for number in range(clients)))
    return outcome


def _ask(question: Question) -> dict[str, Any]:
    return {"model": "student", "messages": [{"role": "user", "content": question.text}], "temperature": 0}


def _note(outcome: Outcome, question: Question, text: str, tokens: int, began: float) -> None:
    outcome.counts["right" if text == question.response else "wrong"] += 1
    outcome.tokens += tokens
    outcome.seconds.append(time.perf_counter() - began)


async def _whole(made: Any, question: Question, outcome: Outcome, _chance: random.Random) -> None:
    began = time.perf_counter()
    answer = await made.chat.completions.create(**_ask(question))
    _note(outcome, question, answer.choices[0].message.content, answer.usage.completion_tokens, began)


async def _stream(made: Any, question: Question, outcome: Outcome, _chance: random.Random) -> None:
    began, text, tokens = time.perf_counter(), "", 0
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await made.chat.completions.create(**_ask(question), **options):
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        tokens += chunk.usage.completion_tokens if chunk.usage else 0
    _note(outcome, question, text, tokens, began)


async def _hang_up(made: Any, question: Question, outcome: Outcome, chance: random.Random) -> None:
    """After a few events of a long stream."""
    stream = await made.chat.completions.create(**_ask(question), stream=True, max_tokens=400, logit_bias={"3": -100})
    left = chance.randrange(1, 8)
    async for _ in stream:
        left -= 1
        if not left:
            break
    await stream.close()
    outcome.counts["hung up"] += 1


async def _cancel(made: Any, question: Question, outcome: Outcome, chance: random.Random) -> None:
    """While nothing has come yet."""
    asking = asyncio.ensure_future(
        made.chat.completions.create(**_ask(question), max_tokens=400, logit_bias={"3": -100})
    )
    await asyncio.sleep(chance.random() * 0.5)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    outcome.counts["cancelled"] += 1


async def _malformed(made: Any, _question: Question, outcome: Outcome, chance: random.Random) -> None:
    body, status = chance.choice(MALFORMED)
    url, headers = str(made.base_url) + "chat/completions", {"Content-Type": "application/json"}
    answer = await made._client.post(url, content=body, headers=headers)
    right = answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    outcome.counts["refused" if right else "wrong"] += 1


_KINDS = {"whole": _whole, "stream": _stream, "hang up": _hang_up, "cancel": _cancel, "malformed": _malformed}
