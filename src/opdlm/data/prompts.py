"""Prompts from a file or the hub: strings or chat messages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opdlm.data.chats import Messages, as_messages
from opdlm.data.files import Row, load_rows
from opdlm.data.hub_set import WHOLE, HubPart
from opdlm.errors import ContextLengthError, PromptsError

Prompt = str | Messages
COLUMNS = (
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "question",
    "instruction",
    "problem",
    "text",
    "story",
    "content",
)
_GOES_WITH = {"instruction": "input"}
"""Alpaca's instruction is often about an input, in a column of its own."""


def load_prompts(
    source: str,
    column: str | None = None,
    limit: int | None = None,
    part: HubPart = WHOLE,
    on_found: Callable[[str], None] = lambda text: None,
) -> list[Prompt]:
    """Prompts of `source`, in its order.

    Args:
        source: a file, or the name of a hub data set (`load_rows`).
        column: where rows are records: the column with strings or chat messages, or several with strings, divided by
            commas, which are joined by a blank line. Default: the first of COLUMNS; "instruction" with "input".
        limit: only the first ones.
        part: of a hub data set.
        on_found: called with one line that says how many prompts there are and what they were taken from.

    Raises:
        PromptsError: missing or empty file, unreadable row, no such column, a prompt that is neither text nor messages.
    """
    rows = load_rows(source, part)
    if not rows:
        raise PromptsError(f"{source} holds no prompts; give a file with at least one")
    first = rows[0][1]
    columns = _columns(first, column, source) if isinstance(first, dict) else ()
    prompts = [_prompt(row, columns) for row in rows[:limit]]
    on_found(f"prompts: {len(prompts):,} from {source}{_taken(first, columns)}")
    return prompts


def _columns(row: Mapping[str, Any], asked: str | None, source: str) -> tuple[str, ...]:
    """The columns that make up a prompt."""
    if asked is None and {"role", "content"} <= row.keys():
        raise PromptsError(
            f"a row of {source} is a single chat message; put the messages of a chat into one list a row"
        )
    if asked is None:
        found = next((name for name in COLUMNS if name in row), None)
        also = _GOES_WITH.get(found or "")
        columns = tuple(name for name in (found, also) if name is not None and name in row)
    else:
        columns = (asked,) if asked in row else tuple(name.strip() for name in asked.split(","))
    missing = next((name for name in columns if name not in row), None)
    if missing is not None or not columns:
        raise PromptsError(
            f"{source} has no column {repr(missing) if missing else 'of a known name'}; "
            f"name one of its columns with --prompts-column: {', '.join(row)}"
        )
    return columns


def _prompt(row: Row, columns: tuple[str, ...]) -> Prompt:
    where, value = row
    if isinstance(value, dict):
        values = [value.get(name) for name in columns]
        value = values[0] if len(values) == 1 else _joined(values)
    return as_prompt(value, where, "correct it or choose another column with --prompts-column")


def _joined(values: Sequence[Any]) -> str | None:
    """The texts that are not blank; None where one is no text."""
    if not all(value is None or isinstance(value, str) for value in values):
        return None
    return "\n\n".join(value for value in values if value and value.strip())


def _taken(row: Any, columns: tuple[str, ...]) -> str:
    if not columns:
        return ""
    others = ", ".join(name for name in row if name not in columns)
    return f", column {' + '.join(columns)}" + (f" (not used: {others})" if others else "")


def load_responses(source: str, column: str, limit: int | None = None, part: HubPart = WHOLE) -> list[str]:
    """Given responses, in the order of the prompts. Raises PromptsError if a row has none."""
    rows = load_rows(source, part)[:limit]
    for where, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            raise PromptsError(f"{where} has no text in column {column!r}; name another --responses-column")
    return [row[column] for _, row in rows]


def as_prompt(value: Any, where: str, fix: str = "correct it") -> Prompt:
    """A string or a list of messages; anything else raises PromptsError with the place and the fix."""
    if isinstance(value, str) and value.strip():
        return value
    messages = as_messages(value)
    if messages is not None:
        # A prompt ends with the user's turn: an answer that the data set brings along is not used.
        asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if asked:
            return asked
    raise PromptsError(f"{where} is neither text nor a list of messages with role and content; {fix}")


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
