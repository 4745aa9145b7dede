"""Prompts from a file or the hub: strings or chat messages."""

from collections.abc import Sequence
from typing import Any

from opdlm.data.files import load_rows
from opdlm.errors import ContextLengthError, PromptsError

Prompt = str | list[dict[str, str]]
COLUMNS = ("messages", "prompt", "question", "instruction", "problem", "text", "story", "content")


def load_prompts(source: str, column: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Prompts of `source`, in its order.

    Args:
        source: a .jsonl, .json (a list), .parquet or .txt (a prompt a line) file, or the name of a hub data set.
        column: where rows are records: the column with strings or chat messages. Default: the first of COLUMNS.
        limit: only the first ones.

    Raises:
        PromptsError: missing or empty file, unreadable row, no such column, a prompt that is neither text nor messages.
    """
    rows = [row for _, row in load_rows(source)]
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
    rows = [row for _, row in load_rows(source)][:limit]
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise PromptsError(
                f"row {index} of {source} has no text in column {column!r}; name another --responses-column"
            )
    return [row[column] for row in rows]


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
    if 2 * block_size > context:  # shorter responses would not help: one is a whole block at least
        raise ContextLengthError(
            f"a prompt and its response take two blocks of {block_size} tokens or more, but the model's context is "
            f"{context}; lower --block-size"
        )
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    needed = -(-(len(prompts[longest]) + longest_response) // block_size) * block_size
    if needed > context:
        raise ContextLengthError(
            f"prompt {longest} has {len(prompts[longest])} tokens and its response up to {longest_response}, "
            f"but the model's context is {context}; lower response_length.end or cut prompts with --prompt-tokens"
        )
