"""Command-line flags, made from the settings in `opdlm.config`: one definition of every setting."""

import textwrap
from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from opdlm.config import Settings
from opdlm.errors import UsageError

_WIDTH = 110


class Parser(ArgumentParser):
    """argparse for one command; mistakes raise UsageError, and an unknown flag gets the nearest name."""

    def __init__(self, command: str, description: str, examples: Sequence[str], usage: str) -> None:
        lines = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            prog=f"opdlm {command}",
            usage=f"opdlm {command} {usage}",
            description=textwrap.fill(" ".join(description.split()), _WIDTH),
            epilog=f"examples:\n{lines}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def read(self, words: Sequence[str]) -> Namespace:
        """Positional arguments and flags in any order."""
        arguments, rest = self.parse_known_intermixed_args(list(words))
        unknown = next((word for word in rest if word.startswith("-")), None)
        if unknown is not None:
            raise UsageError(self._unknown(unknown.partition("=")[0]))
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}; quote a text that has spaces, see {self.prog} --help")
        return arguments

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def _unknown(self, flag: str) -> str:
        known = list(self._option_string_actions)
        near = get_close_matches(flag, known, 1)
        if not near:  # a group's member by its own name: --learning-rate for --optimiser.learning-rate
            near = [name for name in known if name.endswith("." + flag.lstrip("-"))]
        return f"unknown flag {flag}; " + (f"did you mean {near[0]}" if near else f"see {self.prog} --help")


class _Formatter(RawDescriptionHelpFormatter):
    """Descriptions as they are written; room for long flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=_WIDTH)


def add_settings(
    parser: Parser,
    kind: type[Settings],
    *,
    title: str = "settings",
    without: Collection[str] = (),
    aliases: Mapping[str, str] | None = None,
    by_recipe: Collection[str] = (),
    as_saved: bool = False,
) -> None:
    """A flag for every field of `kind`; a group of settings becomes dotted flags.

    Only what the user types is in the namespace afterwards, so that a recipe's value is never replaced by a default.
    Values stay text: pydantic converts and checks them.

    Args:
        without: fields that get no flag. aliases: field -> a second flag. by_recipe: fields whose default the recipe
            gives, as "group.member" where there are groups. as_saved: the defaults are the model's, none is shown.
    """

    def default(path: str, field: FieldInfo) -> str:
        if as_saved:
            return ""
        return " (default: the recipe's)" if path in by_recipe else _default(field.default)

    plain = parser.add_argument_group(title)
    own_first = {**kind.__annotations__, **kind.model_fields}  # then those of the classes that it extends
    for name, field in ((name, kind.model_fields[name]) for name in own_first if name not in without):
        group = _group_of(field)
        if group is None:
            _add_flag(plain, name, field, default(name, field), (aliases or {}).get(name))
            continue
        section = parser.add_argument_group((group.__doc__ or name).rstrip("."))
        for part, inner in group.model_fields.items():
            _add_flag(section, f"{name}.{part}", inner, default(f"{name}.{part}", inner))


def given(arguments: Namespace, kind: type[Settings]) -> dict[str, Any]:
    """The settings that the user typed, nested as in `kind`."""
    values: dict[str, Any] = {}
    for path in _paths(kind):
        if not hasattr(arguments, path):
            continue
        group, _, name = path.rpartition(".")
        target = values.setdefault(group, {}) if group else values
        target[name] = getattr(arguments, path)
    return values


def add_device(parser: Parser) -> None:
    """Where a model writes, and in which number type."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (default)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights; auto: bfloat16 on a CUDA GPU, else float32 (default: auto)",
    )


def add_trust(parser: Parser) -> None:
    """The flag that lets a model's own code run; `main` reads it."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with a model, with your rights; without this flag none runs",
    )


def flag(path: str) -> str:
    """`response_length.end` -> `--response-length.end`."""
    return "--" + path.replace("_", "-")


def _paths(kind: type[Settings]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        group = _group_of(field)
        if group is None:
            yield name
        else:
            yield from (f"{name}.{part}" for part in group.model_fields)


def _group_of(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _add_flag(section: Any, path: str, field: FieldInfo, default: str, alias: str | None = None) -> None:
    names = [flag(path), alias] if alias else [flag(path)]
    text = (field.description or path.rpartition(".")[2].replace("_", " ")) + default
    common: dict[str, Any] = {"dest": path, "default": SUPPRESS, "help": text.replace("%", "%%")}
    if field.annotation is bool:
        section.add_argument(*names, action=BooleanOptionalAction, **common)
        return
    optional = NoneType in get_args(field.annotation)
    section.add_argument(*names, type=_text_or_none if optional else str, metavar=_metavar(field.annotation), **common)


def _text_or_none(text: str) -> str | None:
    """`none` takes back what a recipe sets."""
    return None if text == "none" else text


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is dict:
        return "ID:BIAS"
    members = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    return {int: "N", float: "X", str: "TEXT"}.get(members[0], "KIND")


def _default(value: Any) -> str:
    if value is None or value in ("", {}, ()):
        return ""
    if isinstance(value, Settings):
        value = ":".join(str(part) for part in value.model_dump().values())
    if isinstance(value, bool):
        value = "on" if value else "off"
    return f" (default: {value})"
