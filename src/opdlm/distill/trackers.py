"""The metrics of a run in tensorboard, wandb or trackio, by the trackers of accelerate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from opdlm.config import ConvertSettings
from opdlm.distill.loop import OnStep
from opdlm.errors import MissingExtraError
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from opdlm.records.worth import Validation

_PROJECT = "opdlm"


def check_trackers(names: Sequence[str]) -> None:
    """Raises MissingExtraError if one of them, or accelerate, is not installed."""
    for name in names:
        try:
            from accelerate.tracking import get_available_trackers
        except ImportError as error:
            raise MissingExtraError(
                f"--tracker {name} needs accelerate; install it with: pip install 'opdlm[track]'"
            ) from error
        if name not in map(str, get_available_trackers()):
            raise MissingExtraError(f"--tracker {name} needs {name}; install it with: pip install {name}")


class Trackers:
    """All trackers of a run; none is a valid number of them."""

    def __init__(self, trackers: Sequence[Any]) -> None:
        self._trackers = trackers

    def begin(self, settings: ConvertSettings, before: Validation | None) -> None:
        """The settings, and the validation before the first rollout as step 0."""
        values = {name: value for name, value in _flat(settings.model_dump(mode="json"), ".") if value is not None}
        for tracker in self._trackers:
            # A list is no value to any of them.
            tracker.store_init_configuration({k: str(v) if isinstance(v, list) else v for k, v in values.items()})
        if before is not None:
            self._log({"validation": before.model_dump(mode="json")}, 0)

    def step(self, metrics: StepMetrics) -> None:
        """All numbers of a rollout."""
        self._log(metrics.to_json(), metrics.rollout)

    def then(self, on_step: OnStep) -> OnStep:
        """`on_step`, with the trackers told first."""

        def both(metrics: StepMetrics) -> None:
            self.step(metrics)
            on_step(metrics)

        return both

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        numbers = {name: value for name, value in _flat(values, "/") if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(numbers, step=step)


@contextmanager
def tracking(names: Sequence[str], folder: RunFolder) -> Iterator[Trackers]:
    """The trackers with these names, closed at the end, also of a run that fails. tensorboard's is in the run."""
    check_trackers(names)
    with ExitStack() as stack:
        made = []
        for name in names:
            made.append(_started(name, folder))
            stack.callback(made[-1].finish)
        yield Trackers(made)


def _started(name: str, folder: RunFolder) -> Any:
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it who writes; this process does
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        tracker = kind(name, logging_dir=str(folder.path))
    else:
        tracker = kind(_PROJECT, name=folder.path.resolve().name)
    tracker.start()
    return tracker


def _flat(values: Mapping[str, Any], divider: str, front: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under joined names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, divider, f"{front}{name}{divider}")
        else:
            yield f"{front}{name}", value
