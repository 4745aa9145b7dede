"""Prompts from a file or the hub: strings or chat messages, then token ids."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opdlm.errors import ContextLengthError, PromptsError

Prompt = str | list[dict[str, str]]
COLUMNS = ("messages", "prompt", "question", "instruction", "problem", "text", "story", "content")
_SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")


def load_prompts(source: str, column: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Prompts of `source`, in its order.

    Args:
        source: a .jsonl, .json (a list), .parquet or .txt (a prompt a line) file, or the name of a hub data set.
        column: where rows are records: the column with strings or chat messages. Default: the first of COLUMNS.
        limit: only the first ones.

    Raises:
        PromptsError: missing or empty file, unreadable row, no such column, a prompt that is neither text nor messages.
    """
    rows = load_rows(source)
    if not rows:
        raise PromptsError(f"{source} holds no prompts; give a file with at least one")
    if isinstance(rows[0], dict) and "role" not in rows[0]:
        column = column or next((name for name in COLUMNS if name in rows[0]), None)
        if column is None or column not in rows[0]:
            raise PromptsError(
                f"{source} has no column {column or 'of a known name'!r}; "
                f"name one of its columns with --prompts-column: {', '.join(rows[0])}"
            )
    picked = rows[:limit]
    return [as_prompt(row.get(column) if isinstance(row, dict) else row, i, source) for i, row in enumerate(picked)]


def load_responses(source: str, column: str, limit: int | None = None) -> list[str]:
    """Given responses, in the order of the prompts. Raises PromptsError if a row has none."""
    rows = load_rows(source)[:limit]
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise PromptsError(
                f"row {index} of {source} has no text in column {column!r}; name another --responses-column"
            )
    return [row[column] for row in rows]


def load_rows(source: str) -> list[Any]:
    """The rows of a file or data set: strings or records."""
    path = Path(source)
    if path.suffix in _SUFFIXES or path.exists():
        if not path.is_file():
            raise PromptsError(f"prompts file {source} does not exist; check the path")
        return _load_file(path)
    return _load_hub(source)


def _load_file(path: Path) -> list[Any]:
    if path.suffix not in _SUFFIXES:
        raise PromptsError(f"{path} is not a prompts file; use one of {', '.join(_SUFFIXES)}")
    if path.suffix == ".parquet":
        return _load_parquet(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix == ".json":
        rows = _parse(text, f"{path}") if text.strip() else []
        if not isinstance(rows, list):
            raise PromptsError(f"{path} is not a JSON list; wrap its content in [ ], or use .jsonl")
        return rows
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [_parse(line, f"{path}, line {number}") for number, line in lines]


def _load_parquet(path: Path) -> list[Any]:
    import pyarrow.parquet as pq  # comes with datasets, which would copy the file into its cache first
    from pyarrow import ArrowInvalid

    try:
        return pq.read_table(path).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise PromptsError(f"{path} is not a readable parquet file ({error}); write it again") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptsError(f"{where} is not JSON ({error.msg}, column {error.colno}); correct it") from error


def _load_hub(name: str) -> list[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, split="train").to_list()
    except (DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PromptsError(
            f"{name} is neither a file nor a data set of the hub that can be read ({reason}); check the name"
        ) from error


def as_prompt(value: Any, index: int, source: str) -> Prompt:
    """A string or a list of messages; anything else raises PromptsError."""
    if isinstance(value, str) and value.strip():
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    ):
        # A prompt ends with the user's turn: an answer that the data set brings along is not used.
        end = len(value) - 1 if value[-1]["role"] == "assistant" else len(value)
        if end > 0:
            return [{"role": m["role"], "content": m["content"]} for m in value[:end]]
    raise PromptsError(
        f"row {index} of {source} is neither text nor a list of messages with role and content; "
        "correct it or choose another column with --prompts-column"
    )


def check_lengths(
    prompts: Sequence[Sequence[int]], longest_response: int, context: int | None, block_size: int
) -> None:
    """Raises ContextLengthError if a prompt and its longest response do not fit into the model's context."""
    if context is None:
        return
    if block_size > context:
        raise ContextLengthError(
            f"a block of {block_size} tokens is longer than the context of {context}; lower --block-size"
        )
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    needed = -(-(len(prompts[longest]) + longest_response) // block_size) * block_size
    if needed > context:
        raise ContextLengthError(
            f"prompt {longest} has {len(prompts[longest])} tokens and its response up to {longest_response}, "
            f"but the model's context is {context}; lower response_length.end or cut prompts with --prompt-tokens"
        )
