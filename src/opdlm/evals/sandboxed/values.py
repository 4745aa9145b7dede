"""Values that cross between processes which do not trust each other: plain builtin types, written as JSON.

Whoever reads makes fresh builtin objects, so no method of the writer's classes, such as `__eq__`, ever runs there.
None, bool, int, float, str and list are themselves; every other type is an object of one entry, its name.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

MAX_DEPTH = 100
MAX_ITEMS = 10_000

_SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
)
_SEQUENCES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_LAZY = (map, filter, zip, enumerate, reversed, type(i for i in ()), type({}.keys()), type({}.values()))


def encode(value: Any, keep: Callable[[Any], int], depth: int = 0) -> Any:
    """A JSON value that stands for `value`; a subclass counts as the builtin type that it extends.

    `keep` takes an object of any other type and returns a number that stands for it.

    Raises:
        ValueError: nested deeper than MAX_DEPTH.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    for kind, plain in _SCALARS:
        if isinstance(value, kind):
            return plain(value)

    def inside(items: Any) -> list[Any]:
        return [encode(item, keep, depth + 1) for item in items]

    if isinstance(value, list):
        return inside(list.__iter__(value))
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: inside(kind.__iter__(value))}
    if isinstance(value, dict):
        return {"dict": [inside(pair) for pair in dict.items(value)]}
    if isinstance(value, bytes):
        return {"bytes": list(value)}
    if isinstance(value, bytearray):
        return {"bytearray": list(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, _LAZY) or type(value).__name__.endswith("_iterator"):
        return {"iterator": inside(islice(value, MAX_ITEMS))}
    return {"object": [keep(value)]}


def decode(plain: Any, find: Callable[[int], Any]) -> Any:
    """The value that a JSON value stands for, made of builtin types alone; `find` gives what a kept number stands for.

    Raises:
        ValueError: not written by `encode`, or nested deeper than MAX_DEPTH.
    """
    try:
        return _decode(plain, find, 0)
    except (TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"not a plain value ({error})") from error


def _decode(plain: Any, find: Callable[[int], Any], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested deeper than {MAX_DEPTH}")
    if isinstance(plain, list):
        return [_decode(item, find, depth + 1) for item in plain]
    if not isinstance(plain, dict):
        return plain
    [(name, content)] = plain.items()
    if name == "object":
        return find(content[0])
    items = [_decode(item, find, depth + 1) for item in content]
    return _READERS[name](items)


def _iterator(items: list[Any]) -> Iterator[Any]:
    return iter(items)


_READERS: dict[str, Callable[[list[Any]], Any]] = {
    **_SEQUENCES,
    "dict": dict,
    "bytes": bytes,
    "bytearray": bytearray,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "iterator": _iterator,
}
