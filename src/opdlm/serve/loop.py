"""The thread that writes: it owns the engines, and takes requests in and gives them up between any two steps.

Clients live in an event loop. What they ask for goes to the thread through a queue; what is written comes back as
`Snapshot`, of which a client that reads slowly gets only the newest.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from opdlm.sampling.engine import Completion, Draft, Engine, Event
from opdlm.sampling.request import Request
from opdlm.serve.failures import ApiError, broken, busy, late, stopping

_LOG = logging.getLogger(__name__)
_Alternatives = list[list[tuple[int, float]]]


@dataclass(frozen=True)
class Snapshot:
    """A text as it is.

    Attributes:
        ids: from the prompt's first token; mask tokens where nothing is known, and drafts that are not verified yet.
        first: of them, where the response begins. sure: how many of them, from the first, will stay.
        confidence: of each; 0 for those that are given, not known, or not verified.
        top: the most probable tokens and their log-probabilities, where they were asked for.
        forwards: that it took. done: nothing follows. stopped: by a stop token or a stop string.
    """

    ids: list[int]
    first: int
    sure: int
    confidence: list[float]
    top: _Alternatives | None
    forwards: int
    done: bool = False
    stopped: bool = False


class Job:
    """The texts of one client: an asynchronous iterator over (index, newest snapshot) until all are done."""

    def __init__(self, model: str, requests: Sequence[Request], timeout_s: float) -> None:
        self.model, self.requests, self.left = model, requests, len(requests)
        self._timeout_s, self._deadline = timeout_s, asyncio.get_running_loop().time() + timeout_s
        self._changed, self._news = asyncio.Event(), dict[int, Snapshot]()
        self._failure: ApiError | None = None
        self.closed = False

    def tell(self, index: int, snapshot: Snapshot) -> None:
        """Called in the event loop."""
        self._news[index] = snapshot
        self._changed.set()

    def fail(self, failure: ApiError) -> None:
        """Likewise."""
        self._failure = failure
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Snapshot]]:
        """Raises ApiError: the engine failed, or it took too long."""
        waiting = len(self.requests)
        while waiting:
            try:
                async with asyncio.timeout_at(self._deadline):
                    await self._changed.wait()
            except TimeoutError as error:
                raise late(self._timeout_s) from error
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            news, self._news = self._news, {}
            for index, snapshot in news.items():
                waiting -= snapshot.done
                yield index, snapshot


class EngineLoop:
    """One thread for all models: each step moves every text of one of them.

    Attributes:
        engines: by the model's name. capacity: texts of a model that wait or are written at once.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Engine]], capacity: int, timeout_s: float) -> None:
        """`makers`: of each model's engine."""
        self._makers, self.capacity, self._timeout_s = makers, capacity, timeout_s
        self.engines = {name: maker() for name, maker in makers.items()}
        self._open = dict.fromkeys(makers, 0)  # texts of clients, by the event loop's account
        self._written: dict[tuple[str, int], tuple[Job, int]] = {}  # (model, number) -> client; the thread's own
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- the event loop's side ----------------------------------------------------------------------------------

    def start(self, ended: Callable[[], None]) -> None:
        """`ended` is called in the event loop when the thread has ended, for whatever reason."""
        self._loop, self._ended = asyncio.get_running_loop(), ended
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread; texts that are not finished fail. Twice is once."""
        self._commands.put(self._end)
        await asyncio.to_thread(self._thread.join)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, model: str, requests: Sequence[Request]) -> Job:
        """Requests that `Engine.check` has found right. ApiError where too many texts wait already, or it has ended."""
        if not self.alive:
            raise stopping()
        if self._open[model] + len(requests) > self.capacity:
            raise busy(self._open[model])
        job = Job(model, requests, self._timeout_s)
        self._open[model] += job.left
        self._commands.put(partial(self._add, job))
        return job

    def close(self, job: Job) -> None:
        """The client is gone, or has all: what is not finished is given up before the next step; twice is once."""
        if not job.closed:
            job.closed = True
            self._open[job.model] -= job.left
            self._commands.put(partial(self._cancel, job))

    def _tell_all(self, news: Sequence[tuple[Job, int, Snapshot]]) -> None:
        for job, index, snapshot in news:
            if snapshot.done and not job.closed:
                job.left -= 1
                self._open[job.model] -= 1
            job.tell(index, snapshot)

    # --- the thread's side --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                for name, engine in self.engines.items():
                    if not engine.idle:
                        self._step(name, engine)
        finally:
            for _ in range(self._commands.qsize()):
                self._commands.get()()
            for name in self.engines:
                self._fail(name, stopping())
            self._loop.call_soon_threadsafe(self._ended)

    def _obey(self) -> None:
        """Whatever was asked for meanwhile; with nothing to write, waits for it."""
        if all(engine.idle for engine in self.engines.values()):
            self._commands.get()()
        for _ in range(self._commands.qsize()):
            self._commands.get()()

    def _add(self, job: Job) -> None:
        engine = self.engines[job.model]
        try:
            for index, request in enumerate(job.requests):
                self._written[job.model, engine.add(request)] = job, index
        except Exception as error:  # noqa: BLE001 - `check` let it through: one client's matter, not that of all
            _LOG.exception("a request for %s could not be taken in", job.model)
            self._tell(partial(job.fail, broken(str(error))))

    def _cancel(self, job: Job) -> None:
        for key in [key for key, (owner, _) in self._written.items() if owner is job]:
            self.engines[job.model].cancel(key[1])
            del self._written[key]

    def _end(self) -> None:
        self._stopping = True

    def _step(self, name: str, engine: Engine) -> None:
        try:
            self._tell_of(name, engine.step())
        except Exception as error:  # noqa: BLE001 - memory that is short, above all; the other models go on
            _LOG.exception("the engine of %s failed; its texts are lost", name)
            self._fail(name, broken(str(error).partition("\n")[0]))
            self.engines[name] = self._makers[name]()

    def _tell_of(self, name: str, events: Sequence[Event]) -> None:
        """Clients hear of their texts."""
        news = [(self._written[name, event.request], event) for event in events]
        for event in events:
            if isinstance(event, Completion):
                del self._written[name, event.request]
        if news:
            told = [(job, index, _snapshot(event, job.requests[index])) for (job, index), event in news]
            self._tell(partial(self._tell_all, told))

    def _fail(self, name: str, failure: ApiError) -> None:
        """All texts of a model are lost."""
        jobs = {id(job): job for (model, _), (job, _) in self._written.items() if model == name}
        self._written = {key: client for key, client in self._written.items() if key[0] != name}
        for job in jobs.values():
            self._tell(partial(job.fail, failure))

    def _tell(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)


def _snapshot(event: Event, request: Request) -> Snapshot:
    """As lists: the event loop asks nothing of the device."""
    if isinstance(event, Draft):
        top = _pairs(event.top_ids, event.top_log_probability)
        ids, confidence = event.input_ids.tolist(), event.confidence.tolist()
        return Snapshot(ids, request.first, event.sure, confidence, top, event.forwards)
    row = event.rollout
    assert row.confidence is not None
    length = int(row.length)
    ids, confidence = row.input_ids[0, :length].tolist(), row.confidence[0, :length].tolist()
    top = _pairs(row.top_ids, row.top_log_probability)
    forwards, stopped = int(row.forwards), bool(row.stopped)
    return Snapshot(ids, request.first, length, confidence, top, forwards, done=True, stopped=stopped)


def _pairs(ids: torch.Tensor | None, log_probability: torch.Tensor | None) -> _Alternatives | None:
    """Of each position of one text, [n, A] or [1, n, A]: (token, log-probability), the most probable first."""
    if ids is None or log_probability is None:
        return None
    rows = zip(ids.flatten(0, -2).tolist(), log_probability.flatten(0, -2).tolist(), strict=True)
    return [list(zip(tokens, logs, strict=True)) for tokens, logs in rows]
