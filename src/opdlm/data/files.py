"""The rows of a file or a hub data set: one reader, one set of errors."""

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

from opdlm.data.hub_set import WHOLE, HubPart, load_hub_set
from opdlm.errors import PromptsError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}

Row = tuple[str, Any]
"""Where it stands, for messages, and the string or record itself."""


def load_rows(source: str, part: HubPart = WHOLE) -> list[Row]:
    """The rows of `source`, in its order.

    Args:
        source: a file: .jsonl, .json (a list), .csv or .tsv (the first line names the columns), .txt (a row a line),
            each also as .gz, or .parquet; or the name of a hub data set.
        part: of a hub data set.

    Raises:
        PromptsError: it is missing or cannot be read.
    """
    path = Path(source)
    kind = _kind(path)
    if kind not in SUFFIXES and not _exists(path):
        return _numbered(source, load_hub_set(source, part))
    if part.flags:
        raise PromptsError(f"{source} is no data set of the hub, so it has no parts; leave out {part.flags[0]}")
    if not _exists(path):
        raise PromptsError(f"the file {source} does not exist; check the path")
    if path.is_dir():
        raise PromptsError(f"{source} is a folder; name a file in it, one of {_kinds()}")
    if kind not in SUFFIXES:
        raise PromptsError(f"{path} is not of a known kind; use one of {_kinds()}")
    if kind == ".parquet":
        return _numbered(source, _load_parquet(path))
    text = _text(path)
    if kind == ".json":
        return _numbered(source, _load_json(path, text))
    if kind in _DELIMITERS:
        return _load_table(path, text, _DELIMITERS[kind])
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if kind == ".txt":
        return [(where, line.strip()) for where, line in lines]
    return [(where, _parse(line, where)) for where, line in lines]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that no file can have
        raise PromptsError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _kind(path: Path) -> str:
    """The suffix that says how to read the file: `.jsonl` of `a.jsonl` and of `a.jsonl.gz`."""
    inner = Path(path.stem).suffix.lower()
    return inner if path.suffix.lower() == ".gz" and inner != ".parquet" else path.suffix.lower()


def _kinds() -> str:
    return f"{', '.join(SUFFIXES)} (text also as .gz)"


def _numbered(source: str, rows: list[Any]) -> list[Row]:
    return [(f"row {index} of {source}", row) for index, row in enumerate(rows)]


def _text(path: Path) -> str:
    """UTF-8, with or without a byte-order mark; line ends as they are."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix.lower() == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PromptsError(f"{path} is not a whole gzip file ({error}); write it again") from error
    except OSError as error:
        raise PromptsError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _load_json(path: Path, text: str) -> list[Any]:
    rows = _parse(text, f"{path}") if text.strip() else []
    if not isinstance(rows, list):
        raise PromptsError(f"{path} is not a JSON list; wrap its content in [ ], or use .jsonl")
    return rows


def _load_table(path: Path, text: str, delimiter: str) -> list[Row]:
    """A record of strings for each row below the line that names the columns."""
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        columns = reader.fieldnames or ()
        if len(set(columns)) < len(columns):
            raise PromptsError(f"{path} names a column twice in its first line; rename one")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise PromptsError(
                    f"{where} has more cells than the first line has names; quote cells that hold {delimiter!r}"
                )
            rows.append((where, row))
    except csv.Error as error:
        raise PromptsError(f"{path}, line {reader.reader.line_num}: {error}; correct it, or write .jsonl") from error
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
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too deeply nested
        raise PromptsError(f"{where} is JSON that cannot be read ({error}); correct it") from error
