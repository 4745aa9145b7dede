"""The rows of a file or a hub data set: one reader, one set of errors."""

import json
from pathlib import Path
from typing import Any

from opdlm.errors import PromptsError

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")

Row = tuple[str, Any]
"""Where it stands, for messages, and the string or record itself."""


def load_rows(source: str) -> list[Row]:
    """The rows of `source`, in its order.

    Args:
        source: a .jsonl, .json (a list), .parquet or .txt (a row a line) file, or the name of a hub data set.

    Raises:
        PromptsError: it is missing or cannot be read.
    """
    path = Path(source)
    if path.suffix not in SUFFIXES and not path.exists():
        return _numbered(source, _load_hub(source))
    if not path.is_file():
        raise PromptsError(f"the file {source} does not exist; check the path")
    if path.suffix not in SUFFIXES:
        raise PromptsError(f"{path} is not of a known kind; use one of {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        return _numbered(source, _load_parquet(path))
    text = _text(path)
    if path.suffix == ".json":
        return _numbered(source, _load_json(path, text))
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".txt":
        return [(where, line.strip()) for where, line in lines]
    return [(where, _parse(line, where)) for where, line in lines]


def _numbered(source: str, rows: list[Any]) -> list[Row]:
    return [(f"row {index} of {source}", row) for index, row in enumerate(rows)]


def _text(path: Path) -> str:
    """UTF-8, with or without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _load_json(path: Path, text: str) -> list[Any]:
    rows = _parse(text, f"{path}") if text.strip() else []
    if not isinstance(rows, list):
        raise PromptsError(f"{path} is not a JSON list; wrap its content in [ ], or use .jsonl")
    return rows


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
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 lists in each other
        raise PromptsError(f"{where} cannot be read ({error}); correct it") from error


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
