"""Counters for Prometheus, of one server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from opdlm.serve.loop import EngineLoop

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """What `/metrics` shows. Outcomes of a request: finished, gone (the client), failed."""

    def __init__(self, loop: EngineLoop) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("model", "endpoint")
        self._requests = Counter("opdlm_requests", "Requests that were let in", (*labels, "outcome"), registry=registry)
        self._refused = Counter(
            "opdlm_refused", "Requests that were refused, by status", ("status",), registry=registry
        )
        self._seconds = Histogram(
            "opdlm_request_seconds", "Time of a request", labels, buckets=_SECONDS, registry=registry
        )
        self._first = Histogram("opdlm_first_token_seconds", "Until text", labels, buckets=_SECONDS, registry=registry)
        self._read = Counter("opdlm_prompt_tokens", "Tokens of prompts", labels, registry=registry)
        self._written = Counter("opdlm_generated_tokens", "Tokens of responses", labels, registry=registry)
        self._forwards = Counter(
            "opdlm_forwards", "Forward passes of texts, each counted alone", labels, registry=registry
        )
        writing = Gauge("opdlm_texts_writing", "Texts that are being written", ("model",), registry=registry)
        waiting = Gauge("opdlm_texts_waiting", "Texts that wait", ("model",), registry=registry)
        for name in loop.engines:
            writing.labels(name).set_function(lambda name=name: loop.engines[name].writing)
            waiting.labels(name).set_function(lambda name=name: loop.engines[name].waiting)

    def first(self, model: str, endpoint: str, seconds: float) -> None:
        """Text has come."""
        self._first.labels(model, endpoint).observe(seconds)

    def ended(
        self, model: str, endpoint: str, outcome: str, seconds: float, read: int, written: int, forwards: int
    ) -> None:
        """A request that was let in, with its tokens and forwards."""
        self._requests.labels(model, endpoint, outcome).inc()
        self._seconds.labels(model, endpoint).observe(seconds)
        self._read.labels(model, endpoint).inc(read)
        self._written.labels(model, endpoint).inc(written)
        self._forwards.labels(model, endpoint).inc(forwards)

    def refused(self, status: int) -> None:
        """A request that was not let in."""
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
