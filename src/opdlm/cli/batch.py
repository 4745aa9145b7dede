"""`opdlm generate MODEL --prompts FILE --output FILE`: a response to each row of a file.

Rows are kept in a file `OUTPUT.partial` as they are written, in their order (`partial.py`).
"""

import hashlib
import json
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from opdlm.cli.outputs import JsonLines
from opdlm.cli.partial import (
    WEIGHTS,
    check_output,
    damaged,
    finish,
    kept_lines,
    more_lines,
    partial_of,
    where_of,
)
from opdlm.cli.terminal import duration, make_console
from opdlm.config import GenerationSettings, settings_from
from opdlm.errors import OpdlmError

if TYPE_CHECKING:
    from opdlm.sampling.api import Answer, DiffusionLM

_EVERY_S = 5.0
_OURS = ("response", "tokens", "forwards", "finish_reason")


def write_file(model: "DiffusionLM", name: str, arguments: Namespace, settings: dict[str, Any]) -> None:
    """Answers every row of `arguments.prompts` into `arguments.output`.

    Raises:
        OpdlmError: a row has no prompt that the model can read; the message says which.
        RecordError: with --resume, the rows that are there were made from other prompts or with other settings.
    """
    from opdlm.models.sampled_hash import sampled_hash

    output = Path(arguments.output)
    check_output(output, arguments.resume)
    records, prompts = _read(model, arguments)
    renamed = _renamed(records)
    rows = [{renamed.get(name, name): value for name, value in record.items()} for record in records]
    chosen = settings_from(GenerationSettings, {**model.defaults.model_dump(), **settings})
    text = json.dumps(prompts)
    made_with = {"model": name, "settings": chosen.model_dump(mode="json"), "prompts": len(prompts)}
    made_with["prompts_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    made_with[WEIGHTS] = sampled_hash(model.model)
    kept = kept_lines(output, made_with)
    _check_kept(kept, rows, partial_of(output))
    try:
        with closing(more_lines(output, made_with)) as lines, _Progress(len(kept), len(rows)) as progress:
            _answer(model, rows, prompts, chosen, arguments.batch_size, lines, progress)
    except KeyboardInterrupt:
        make_console(stderr=True).print(
            f"the rows so far are in {partial_of(output)}; go on with --resume", soft_wrap=True
        )
        raise
    finish(output)
    make_console().print(f"{len(rows)} responses in {output}", markup=False, soft_wrap=True)
    for name, other in renamed.items():
        make_console().print(f"the field {name} of the prompts is called {other} there", markup=False, soft_wrap=True)


def _check_kept(kept: list[dict[str, Any]], rows: list[dict[str, Any]], partial: Path) -> None:
    """RecordError for a line that is not of its row: one before it was taken away."""
    for index, (line, row) in enumerate(zip(kept, rows, strict=False)):
        if any(json.dumps(line.get(name)) != json.dumps(value, default=str) for name, value in row.items()):
            raise damaged(where_of(partial, index), f"is no response to row {index + 1} of the prompts")
    if len(kept) > len(rows):
        raise damaged(where_of(partial, len(rows)), "is behind the last row of the prompts")


def _read(model: "DiffusionLM", arguments: Namespace) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """The fields of each row, and its prompt as token ids, all checked."""
    from opdlm.data.files import load_rows
    from opdlm.data.prompts import load_prompts
    from opdlm.models.tokens import encode_prompt

    prompts = load_prompts(arguments.prompts, arguments.prompts_column, arguments.prompt_limit)
    rows, ids = load_rows(arguments.prompts)[: len(prompts)], []
    for (where, _), prompt in zip(rows, prompts, strict=True):
        try:
            ids.append(encode_prompt(model.tokenizer, prompt))
        except OpdlmError as error:
            raise type(error)(f"{where}: {error}") from error
    return [row if isinstance(row, dict) and "role" not in row else {"prompt": row} for _, row in rows], ids


def _renamed(records: list[dict[str, Any]]) -> dict[str, str]:
    """Of each field that has the name of one of ours: a name that no field has."""
    taken = {name for record in records for name in record}
    return {name: _free(name, taken) for name in _OURS if name in taken}


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"input_{name}"
    return name


def _answer(
    model: "DiffusionLM",
    rows: list[dict[str, Any]],
    prompts: list[list[int]],
    settings: GenerationSettings,
    batch_size: int,
    lines: JsonLines,
    progress: "_Progress",
) -> None:
    """Writes the rows that are not there, in their order, each as soon as all before it are."""
    from opdlm.sampling.requests import in_order

    done = progress.finished

    def counted() -> "Iterator[tuple[int, Answer]]":
        for index, answer in model.answers(prompts[done:], batch_size, first=done, **settings.model_dump()):
            progress.add(answer.tokens)
            yield index, answer

    for row, answer in zip(rows[done:], in_order(counted()), strict=True):
        lines.write({**row, **answer.as_fields()})


class _Progress:
    """A line that is redrawn on a terminal, and one every few seconds elsewhere; on the standard error."""

    def __init__(self, done: int, total: int) -> None:
        self.finished, self._first, self._total, self._tokens = done, done, total, 0
        self._console = make_console(stderr=True)
        self._began = self._shown = time.monotonic()
        self._status = self._console.status("writing")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def add(self, tokens: int) -> None:
        """One more response."""
        self.finished, self._tokens, now = self.finished + 1, self._tokens + tokens, time.monotonic()
        seconds, open_ = max(1e-9, now - self._began), self._total - self.finished
        left = f", {duration(seconds / (self.finished - self._first) * open_)} left" if open_ else ""
        text = f"{self.finished}/{self._total} responses, {self._tokens / seconds:,.0f} tokens/s{left}"
        if self._console.is_terminal:
            self._status.update(text)
        elif now - self._shown >= _EVERY_S or not open_:
            self._shown = now
            self._console.print(text, markup=False, soft_wrap=True)
