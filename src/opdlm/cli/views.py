"""How a conversion looks: a live line on a terminal, a plain line every few seconds elsewhere."""

import shutil
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from opdlm.cli.terminal import counted, duration, size

if TYPE_CHECKING:
    from opdlm.distill.loop import Trainer
    from opdlm.records.metrics import StepMetrics
    from opdlm.records.worth import Validation, Worth


_WIDE = 120  # columns from which there is room for a bar


def _fitting(parts: list[tuple[int, str]], room: int) -> str:
    """As many of the first `parts` as fit into `room` columns, in the order of the line."""
    for count in range(len(parts), 0, -1):
        text = "  ".join(text for _, text in sorted(parts[:count]))
        if len(text) <= room:
            return text
    return ""


class ConversionView:
    """Shows the metrics as they come; hand `start` and `step` to `convert`.

    Attributes:
        seconds: by part, over all rollouts seen.
        last: the newest metrics; None before the first. validation: the newest one.
    """

    def __init__(self, console: Console, every_s: float = 5.0) -> None:
        self.console, self.every_s = console, every_s
        self.seconds: dict[str, float] = {}
        self.last: StepMetrics | None = None
        self.validation: Validation | None = None
        self._rollouts_seen = 0
        self._printed_at = float("-inf")
        bar = [BarColumn(bar_width=20)] if console.width >= _WIDE else []
        columns = [SpinnerColumn(), TextColumn("rollout"), MofNCompleteColumn(), *bar, TextColumn("{task.description}")]
        self._live = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._task = self._live.add_task("writing the first responses", total=None)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """A line above the progress."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, trainer: "Trainer", difference: float) -> None:
        """After the checks, before the first rollout."""
        self.note(f"identity check passed: with a causal mask the largest difference of a logit is {difference:.2g}")
        if trainer.checkpoint is not None:
            self.note(f"continuing from {trainer.checkpoint}")
        rows = len(trainer.prompts)
        count, sharding = trainer.ranks.count, trainer.settings.sharding
        processes = "" if count == 1 else f", {count} processes" + (" that share the weights" * (sharding == "full"))
        where = f"{trainer.pair.student.device}{processes}"
        self.note(
            f"{trainer.settings.method}: {counted(trainer.rollouts, 'rollout')}, {counted(rows, 'prompt')}, {where}"
        )
        self.note(self._about_checkpoints(trainer))
        self._live.update(self._task, total=trainer.rollouts)

    @staticmethod
    def _about_checkpoints(trainer: "Trainer") -> str:
        """Their size on the disk and in memory, before any is written."""
        assert trainer.run is not None
        settings, each = trainer.settings, trainer.checkpoint_bytes
        how = (
            f"written beside the training, from a copy of {size(each)} in memory where that has room for it"
            if settings.async_save
            else "training waits for them"
        )
        count = settings.keep_checkpoints + settings.keep_best
        # One more while it is written, before the oldest goes.
        free = shutil.disk_usage(trainer.run.path).free
        little = f"; only {size(free)} are free on that disk" if free < (count + 1) * each else ""
        when = f"every {settings.save_every_rollouts} rollouts"
        return f"checkpoints: {size(each)} each, {when}, {count} kept; {how}{little}"

    def step(self, metrics: "StepMetrics") -> None:
        """One rollout is done."""
        self.last, self.validation = metrics, metrics.validation or self.validation
        self._rollouts_seen += 1
        for part, value in metrics.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + value
        parts = self._parts(metrics)
        text = "  ".join(text for _, text in sorted(parts))
        # The counter, the time and what stands between the columns are never cut off.
        room = self.console.width - 2 * len(str(metrics.rollouts)) - (42 if self.console.width >= _WIDE else 21)
        self._live.update(self._task, completed=metrics.rollout, description=_fitting(parts, room))
        now, done = time.monotonic(), metrics.rollout == metrics.rollouts
        if not self.console.is_terminal and (done or now - self._printed_at >= self.every_s):
            self._printed_at = now
            self.note(f"rollout {metrics.rollout}/{metrics.rollouts}  {text}")

    def _parts(self, metrics: "StepMetrics") -> list[tuple[int, str]]:
        """(place in the line, text), the most important first."""
        speed = metrics.tokens_trained / max(1e-9, sum(metrics.seconds.values()))
        left = (metrics.rollouts - metrics.rollout) * sum(self.seconds.values()) / self._rollouts_seen
        agreement = [] if self.validation is None else [(1, f"agreement {self.validation.agreement:.0%}")]
        return [
            (0, f"loss {metrics.loss:.3f}"),
            *agreement,
            *([(5, f"{duration(left)} left")] if metrics.rollout < metrics.rollouts else []),
            (3, f"{metrics.tokens_per_forward:.2f} tokens/forward"),
            (4, f"{speed:,.0f} tokens/s"),
            (2, f"{metrics.total.tokens_trained:,} tokens"),
        ]

    def worth(self, worth: "Worth") -> None:
        """What the run came to, and what is wrong with it."""
        for name, value in worth.facts().items():
            self.note(f"{name}: {value}")
        for hint in worth.hints():
            self.note(f"note: {hint}")

    def profile(self) -> list[str]:
        """Seconds by part, with shares, the longest first; `rest` is what the loop spent in no part."""
        total = sum(self.seconds.values())
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        lines = [f"  {part:10} {value:9.2f} s  {value / max(total, 1e-9):6.1%}" for part, value in parts]
        return ["seconds by part:", *lines, f"  {'all':10} {total:9.2f} s"]
