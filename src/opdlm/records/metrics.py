"""What one rollout with its updates came to: a line of metrics.jsonl."""

from typing import Self

from opdlm.records.record import Part, Record
from opdlm.records.worth import Validation


class Flops(Part):
    """Floating-point operations by part: 2 for each parameter and token of a forward pass, 6 with the backward pass."""

    rollout: float
    teacher: float
    student: float

    def sum(self) -> float:
        return self.rollout + self.teacher + self.student


class Totals(Part):
    """Sums over all rollouts so far. Tokens are response tokens; seconds are wall time, evaluation included."""

    tokens_trained: int = 0
    tokens_rolled_out: int = 0
    flops: float = 0
    seconds: float = 0.0


class StepMetrics(Record):
    """Attributes:
    rollout: its number, from 1. rollouts: those of the whole run. updates: optimiser updates so far.
    loss: nats a supervised position, mean over the rollout's updates. gradient_norm: before clipping, likewise.
    learning_rate: of the last update.
    tokens_trained, positions_supervised, stopped_rows: response tokens, masked positions in the loss, responses that
        ended with a stop token.
    tokens_per_forward: of the rollout's decoding; 0 where nobody decoded.
    flops, seconds: by part; seconds are wall time.
    peak_memory_bytes: of the device, or of the process, so far.
    total: sums up to here.
    evaluation: what the caller's own evaluation returned. validation: how the student wrote a few prompts, where due.
    """

    rollout: int
    rollouts: int
    loss: float
    gradient_norm: float
    learning_rate: float
    updates: int
    tokens_trained: int
    positions_supervised: int
    stopped_rows: int
    tokens_per_forward: float
    flops: Flops
    seconds: dict[str, float]
    peak_memory_bytes: int
    total: Totals
    evaluation: dict[str, object] | None = None
    validation: Validation | None = None

    def spent(self, **seconds: float) -> Self:
        """The same with more wall seconds by part, and in the total."""
        more = {part: round(value, 4) for part, value in seconds.items()}
        total = self.total.model_copy(update={"seconds": round(self.total.seconds + sum(seconds.values()), 3)})
        return self.model_copy(update={"seconds": self.seconds | more, "total": total})
