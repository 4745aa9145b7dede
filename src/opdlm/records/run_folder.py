"""The folder of a run: config.toml, metrics.jsonl, rollouts/, checkpoints/, model/. Files are whole or not there."""

import json
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import tomli_w

from opdlm.config import ConvertSettings, settings_from
from opdlm.errors import CheckpointError, OutputExistsError, PromptsError, RecordError, StorageError
from opdlm.records import durable, lock
from opdlm.records.checkpoints import Checkpoints
from opdlm.records.evaluation import Comparison
from opdlm.records.history import Resumption
from opdlm.records.metrics import StepMetrics
from opdlm.records.trajectory import Trajectory
from opdlm.records.worth import Worth


class RunFolder(Checkpoints):
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config, self.metrics, self.history = path / "config.toml", path / "metrics.jsonl", path / "history.jsonl"
        self.rollouts, self.model = path / "rollouts", path / "model"
        self.prompts, self.evaluation = path / "prompts.jsonl", path / "evaluation.json"
        self.sample, self.worth = self.rollouts / "sample.json", path / "worth.json"
        self.fingerprint = path / "prompts.sha256"
        self.needed = (self.config, self.metrics, self.history, self.prompts, self.fingerprint, self.worth)

    @classmethod
    @contextmanager
    def created(
        cls, path: Path, settings: ConvertSettings, prompts: Sequence[str | list] | None = None
    ) -> "Iterator[RunFolder]":
        """A new run, locked for this process as long as the body runs.

        `prompts` that came as a Python list are kept with it, so that it can be resumed.

        Raises:
            OutputExistsError: the folder holds anything. StorageError: it cannot be written.
            RunInUseError: another process made it just now.
        """
        cls.check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        with lock.held(path):
            cls.check_free(path)
            yield cls._written(path, settings, prompts)

    @classmethod
    def _written(cls, path: Path, settings: ConvertSettings, prompts: Sequence[str | list] | None) -> "RunFolder":
        """Its first files, or none."""
        run = cls(path)
        try:
            run.rollouts.mkdir()
            run.checkpoints.mkdir()
            if prompts is not None:
                lines = (json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
                run.prompts.write_text("".join(lines), encoding="utf-8")
                settings = settings.model_copy(update={"prompts": str(run.prompts), "prompts_column": None})
            run._write_settings(_with_absolute_paths(settings))
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # it was new or empty
            raise _unwritable(path, error) from error
        return run

    @staticmethod
    def check_free(path: Path) -> None:
        """Known before a model is loaded; nothing is made.

        Raises:
            OutputExistsError: the folder holds anything. StorageError: it cannot be made, or not be written.
        """
        try:
            taken = path.exists() and (not path.is_dir() or any(one.name not in lock.FILES for one in path.iterdir()))
            if not taken:
                nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
                TemporaryFile(dir=nearest).close()
        except OSError as error:
            raise _unwritable(path, error) from error
        if taken and not path.is_dir():
            raise OutputExistsError(f"{path} is a file, and a run needs a folder; choose another --output")
        if taken:
            raise OutputExistsError(f"{path} is not empty; choose another --output, or continue it with --resume")

    @classmethod
    def found(cls, path: Path) -> "RunFolder":
        """An existing run, to be read. Raises CheckpointError if there is none."""
        run = cls(path)
        if not run.config.is_file():
            raise CheckpointError(f"{path} holds no run to resume (no config.toml); start one without --resume")
        return run

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> "Iterator[RunFolder]":
        """An existing run to resume, locked for this process as long as the body runs; half a checkpoint is removed.

        Raises:
            CheckpointError: there is none. RunInUseError: another process writes it.
        """
        run = cls.found(path)
        with lock.held(path):
            run.clear()
            yield run

    def settings(self) -> ConvertSettings:
        """The settings of the run: those that it was started with, but for what was changed since."""
        try:
            values = tomllib.loads(self.config.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.config} is damaged ({error}); correct it, or start a new run") from error
        if missing := {"model", "method", "optimiser"} - values.keys():  # the writer leaves out nothing that is set
            raise CheckpointError(f"{self.config} is damaged ({min(missing)} is gone); correct it, or start a new run")
        if self.prompts.is_file():  # wherever the run is now
            values["prompts"] = str(self.prompts.absolute())
        return settings_from(ConvertSettings, values)

    def keep_fingerprint(self, sha256: str) -> None:
        """That of the prompts as they are trained on, prompts.sha256."""
        self._written_whole(self.fingerprint, sha256 + "\n")

    def check_fingerprint(self, sha256: str, source: str) -> None:
        """Raises PromptsError if the run was started with other prompts. Earlier versions kept no fingerprint."""
        if not self.fingerprint.is_file():
            self.keep_fingerprint(sha256)
        elif self.fingerprint.read_text(encoding="utf-8", errors="replace").strip() != sha256:
            raise PromptsError(
                f"the prompts in {source} are not those that {self.path} was started with; put the earlier ones back, "
                f"or delete {self.fingerprint} to go on with the new ones"
            )

    def change(self, settings: ConvertSettings, resumption: Resumption) -> None:
        """From now on the run has these `settings`; history.jsonl keeps what they were."""
        try:
            durable.appended(self.history, json.dumps(resumption.to_json()))
            self._write_settings(settings)
        except OSError as error:
            raise self._full(self.config, error) from error

    def changes(self) -> list[Resumption]:
        """What `change` kept, in order, a line that was cut left out. Raises RecordError if a line is damaged."""
        if not self.history.is_file():
            return []
        lines = enumerate(_whole_lines(self.history), start=1)
        places = ((line, f"{self.history}, line {number}") for number, line in lines)
        return [Resumption.from_json(_parsed(line, where), where) for line, where in places]

    def _write_settings(self, settings: ConvertSettings) -> None:
        durable.written(self.config, tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))

    # --- metrics ------------------------------------------------------------------------------------------------

    def log(self, metrics: StepMetrics) -> None:
        """Append one line to metrics.jsonl."""
        try:
            durable.appended(self.metrics, json.dumps(metrics.to_json()))
        except OSError as error:
            raise self._full(self.metrics, error) from error

    def logged(self) -> list[StepMetrics]:
        """All lines of metrics.jsonl; the last is left out if it was cut while it was written.

        Raises:
            RecordError: there is no such file, or a line is damaged.
        """
        if not self.metrics.is_file():
            raise RecordError(f"{self.path} holds no metrics.jsonl; give the folder of a run")
        lines = _whole_lines(self.metrics)
        places = (f"{self.metrics}, line {number}" for number in range(1, len(lines) + 1))
        pairs = zip(lines, places, strict=True)
        return [StepMetrics.from_json(_parsed(line, where), where) for line, where in pairs]

    def forget_after(self, rollouts_done: int, last: StepMetrics | None = None) -> None:
        """Drop metrics of rollouts that a resumed run will do again, and a line that was cut while it was written.

        `last`: those of the checkpoint, added if the run ended between the checkpoint and its line.
        """
        logged = self.logged() if self.metrics.exists() else []
        kept = [metrics for metrics in logged if metrics.rollout <= rollouts_done]
        if last is not None and (not kept or kept[-1].rollout < rollouts_done):
            kept.append(last)
        self._written_whole(self.metrics, "".join(json.dumps(metrics.to_json()) + "\n" for metrics in kept))

    # --- trajectories and evaluation ----------------------------------------------------------------------------

    def keep_rollout(self, rollouts_done: int, rows: Sequence[Trajectory]) -> None:
        """Some rows of a rollout as rollouts/rollout-N.json."""
        self._write(self.rollouts / f"rollout-{rollouts_done:06d}.json", [row.to_json() for row in rows])

    def kept_rollouts(self) -> dict[int, list[Trajectory]]:
        """What `keep_rollout` wrote, by the number of the rollout. Raises RecordError if a file is damaged."""
        found = {}
        for path in sorted(self.rollouts.glob("rollout-*.json")):
            rows = _parsed(_read(path), str(path))
            if not isinstance(rows, list):
                raise RecordError(f"{path} holds no list of rows; delete it or restore it")
            found[int(path.stem.rpartition("-")[2])] = [Trajectory.from_json(row, str(path)) for row in rows]
        return found

    def keep_sample(self, sample: Trajectory) -> None:
        """The finished student's answer to one question, rollouts/sample.json."""
        self._write(self.sample, sample.to_json())

    def kept_sample(self) -> Trajectory | None:
        """What `keep_sample` wrote; None if there is none. Raises RecordError if it is damaged."""
        if not self.sample.is_file():
            return None
        where = str(self.sample)
        return Trajectory.from_json(_parsed(_read(self.sample), where), where)

    def keep_evaluation(self, comparison: Comparison) -> None:
        """Teacher and student side by side, evaluation.json."""
        self._write(self.evaluation, comparison.to_json())

    def kept_evaluation(self) -> Comparison | None:
        """What `keep_evaluation` wrote; None if there is none. Raises RecordError if it is damaged."""
        if not self.evaluation.is_file():
            return None
        where = str(self.evaluation)
        return Comparison.from_json(_parsed(_read(self.evaluation), where), where)

    def keep_worth(self, worth: Worth) -> None:
        """What the run is worth, worth.json."""
        self._write(self.worth, worth.to_json())

    def kept_worth(self) -> Worth | None:
        """What `keep_worth` wrote; None if there is none. Raises RecordError if it is damaged."""
        if not self.worth.is_file():
            return None
        where = str(self.worth)
        return Worth.from_json(_parsed(_read(self.worth), where), where)

    def _write(self, path: Path, content: Any) -> None:
        self._written_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _written_whole(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            durable.written(path, text)
        except OSError as error:
            raise self._full(path, error) from error

    @staticmethod
    def _full(path: Path, error: OSError) -> StorageError:
        return StorageError(f"cannot write {path} ({error.strerror}); free some room, then use --resume")


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot write to {path} ({error.strerror}); choose another --output")


def _with_absolute_paths(settings: ConvertSettings) -> ConvertSettings:
    """So that a run can be resumed from any folder. What is no file here is a name of the hub, and stays."""
    named = {name: getattr(settings, name) for name in ("model", "prompts", "eval_prompts", "gate_from")}
    here = {name: str(Path(value).absolute()) for name, value in named.items() if value and Path(value).exists()}
    output = {"output": str(Path(settings.output).absolute())} if settings.output else {}
    return settings.model_copy(update=here | output)


def _whole_lines(path: Path) -> list[str]:
    """Without what follows the last newline: nothing, or a line that was cut while it was written."""
    return _read(path).split("\n")[:-1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is damaged (not UTF-8 at byte {error.start}); delete it or restore it") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number of 5,000 digits, or 100,000 lists in each other
        raise RecordError(f"{where} is damaged ({error}); delete or restore it") from error
