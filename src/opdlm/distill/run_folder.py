"""The folder of a run: config.toml, metrics.jsonl, rollouts/, checkpoints/, model/. Writes are whole or not there."""

import json
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import tomli_w
import torch

from opdlm.config import ConvertSettings, settings_from
from opdlm.core.types import Rollout
from opdlm.distill.data import Prompt
from opdlm.errors import CheckpointError, OutputExistsError, StorageError

_STATE = "training_state.pt"
_UNFINISHED = "unfinished-"


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.toml", path / "metrics.jsonl"
        self.rollouts, self.checkpoints, self.model = path / "rollouts", path / "checkpoints", path / "model"
        self.prompts = path / "prompts.jsonl"

    @classmethod
    def create(cls, path: Path, settings: ConvertSettings, prompts: Sequence[Prompt] | None = None) -> "RunFolder":
        """A new run; `prompts` that came as a Python list are kept with it, so that it can be resumed.

        Raises:
            OutputExistsError: the folder holds anything. StorageError: it cannot be written.
        """
        cls.check_free(path)
        run = cls(path)
        try:
            run.rollouts.mkdir(parents=True)
            run.checkpoints.mkdir()
            if prompts is not None:
                lines = (json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
                run.prompts.write_text("".join(lines), encoding="utf-8")
                settings = settings.model_copy(update={"prompts": str(run.prompts.resolve()), "prompts_column": None})
            run.config.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # it was new or empty
            raise StorageError(f"cannot write to {path} ({error.strerror}); choose another --output") from error
        return run

    @staticmethod
    def check_free(path: Path) -> None:
        """Raises OutputExistsError if the folder holds anything: known before a model is loaded."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputExistsError(f"{path} is not empty; choose another --output, or continue it with --resume")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run, to resume."""
        run = cls(path)
        if not run.config.is_file():
            raise CheckpointError(f"{path} holds no run to resume (no config.toml); start one without --resume")
        for leftover in run.checkpoints.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        return run

    def settings(self) -> ConvertSettings:
        """The settings that the run was started with."""
        try:
            values = tomllib.loads(self.config.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.config} is damaged ({error}); correct it, or start a new run") from error
        return settings_from(ConvertSettings, values)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self.metrics} ({error.strerror}); free some room, then use --resume"
            ) from error

    def keep_sample(self, rollouts_done: int, sample: Rollout) -> None:
        """Some rows of a rollout as rollouts/rollout-N.json: ids of prompt and response, and the commit rounds."""
        lengths = zip(sample.prompt_length.tolist(), sample.length.tolist(), strict=True)
        rows = [
            {
                "prompt_ids": sample.input_ids[row, :begin].tolist(),
                "response_ids": sample.input_ids[row, begin:end].tolist(),
                "commit_round": sample.commit_round[row, begin:end].tolist(),
            }
            for row, (begin, end) in enumerate(lengths)
        ]
        try:
            (self.rollouts / f"rollout-{rollouts_done:06d}.json").write_text(json.dumps(rows))
        except OSError as error:
            raise StorageError(
                f"cannot write to {self.rollouts} ({error.strerror}); free some room, then use --resume"
            ) from error

    def forget_after(self, rollouts_done: int, last_line: dict[str, Any] | None = None) -> None:
        """Drop metrics of rollouts that a resumed run will do again, and a line that was cut while it was written.

        `last_line`: that of the checkpoint, added if the run ended between the checkpoint and its line.
        """
        written = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        lines = [line for text in written if (line := _parsed(text)) is not None and line["rollout"] <= rollouts_done]
        if last_line is not None and (not lines or lines[-1]["rollout"] < rollouts_done):
            lines.append(last_line)
        whole = self.metrics.with_suffix(".partial")
        whole.write_text("".join(json.dumps(line) + "\n" for line in lines))
        whole.replace(self.metrics)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = sorted(self.checkpoints.glob("rollout-*"))
        return found[-1] if found else None

    def save_state(self, rollouts_done: int, state: dict[str, Any], save_model: Any, keep: int) -> Path:
        """A checkpoint: `save_model(folder)` writes the model, then the training state; renamed when both are there.

        Raises:
            StorageError: no room; earlier checkpoints stay as they are.
        """
        name = f"rollout-{rollouts_done:06d}"
        unfinished, final = self.checkpoints / f"{_UNFINISHED}{name}", self.checkpoints / name
        try:
            save_model(unfinished)
            torch.save(state, unfinished / _STATE)
            if final.exists():
                shutil.rmtree(final)
            unfinished.replace(final)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            raise StorageError(
                f"cannot write checkpoint {final} ({error}); free some room, then use --resume"
            ) from error
        for old in sorted(self.checkpoints.glob("rollout-*"))[:-keep]:
            shutil.rmtree(old)
        return final

    @staticmethod
    def load_state(checkpoint: Path) -> dict[str, Any]:
        """The training state of a checkpoint. Raises CheckpointError if it is damaged."""
        try:
            return torch.load(checkpoint / _STATE, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise CheckpointError(
                f"{checkpoint / _STATE} is damaged or missing; delete {checkpoint} and resume"
            ) from error


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of metrics, or None if it is not whole."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
