"""The flags that say what a response must be: a JSON schema, a regular expression, or a grammar."""

from argparse import SUPPRESS
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdlm.cli.options import Parser, flag
from opdlm.config import CONSTRAINTS, GenerationSettings
from opdlm.errors import UsageError


def add_constraints(parser: Parser) -> None:
    """`--json-schema FILE`, `--regex TEXT`, `--grammar FILE`; one of them at most."""
    group = parser.add_argument_group("what the response must be (one of these)").add_mutually_exclusive_group()
    what = {name: GenerationSettings.model_fields[name].description or "" for name in CONSTRAINTS}
    what["json_schema"] += ": a file, or the schema itself, which begins with a brace"
    for name, metavar in zip(CONSTRAINTS, ("FILE", "TEXT", "FILE"), strict=True):
        group.add_argument(flag(name), metavar=metavar, default=SUPPRESS, help=what[name])


def read_constraints(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, with the text of the files. UsageError for a file that cannot be read."""
    read = dict(settings)
    for name in ("json_schema", "grammar"):
        if name in read and not (name == "json_schema" and read[name].lstrip().startswith("{")):
            read[name] = _text(Path(read[name]), flag(name))
    return read


def _text(path: Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UsageError(f"{flag}: cannot read {path} ({reason}); name another file") from error
