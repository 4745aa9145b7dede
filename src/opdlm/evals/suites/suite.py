"""What a suite is."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from opdlm.data.files import load_rows
from opdlm.data.hub_set import HubPart
from opdlm.errors import OpdlmError, PromptsError, UsageError
from opdlm.evals.graders import check_gradable
from opdlm.evals.problem import Problem


@dataclass(frozen=True)
class HubSet:
    """Where the hub has the data."""

    name: str
    config: str | None = None
    split: str = "test"


@dataclass(frozen=True)
class Suite:
    """One of the field's tests. Its grader is `graders.GRADERS[name]`.

    Attributes:
        name: the family of its problems. source: who asks and grades it so.
        read: (record, where it stands) -> a problem; None for a record that is not part of the test.
        hub: its data on the hub; None where there are none, or the data come with a package (`make`).
        make: problems that need no file.
        max_new_tokens: longest answer, unless the user says otherwise.
        chooses: answered by the likeliest option; no text is written.
        known_only: only what the AR model itself answers counts.
        check: raises MissingExtraError where something that it needs is not installed.
    """

    name: str
    source: str
    max_new_tokens: int
    read: Callable[[Any, str], Problem | None] | None = None
    hub: HubSet | None = None
    make: Callable[[], list[Problem]] | None = None
    chooses: bool = False
    known_only: bool = False
    check: Callable[[], None] = lambda: None


def load(suite: Suite, data: str | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of a suite, in the order of the data.

    Args:
        data: a file or the name of a hub data set in the suite's format; default: the suite's own.
        limit: only the first ones.

    Raises:
        PromptsError: no data, or a record that is none of this suite.
        UsageError: data for a suite that has its own.
        MissingExtraError: the suite needs a package that is not installed.
    """
    suite.check()
    if suite.make is not None:
        if data is not None:
            raise UsageError(f"the suite {suite.name} takes no data; leave --data out")
        return suite.make()[:limit]
    read = (_read(suite, row, where) for where, row in _rows(suite, data))
    problems = list(islice((problem for problem in read if problem is not None), limit))
    if not problems:
        raise PromptsError(f"{data or suite.name} holds no problems of the suite {suite.name}; check the file")
    return problems


def _read(suite: Suite, row: Any, where: str) -> Problem | None:
    assert suite.read is not None
    try:
        problem = suite.read(row, where)
        if problem is not None:
            check_gradable(problem, where)
    except OpdlmError as error:
        raise PromptsError(str(error)) from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise PromptsError(f"{where} is no record of the suite {suite.name} ({error}); check --data") from error
    return problem


def _rows(suite: Suite, data: str | None) -> list[tuple[str, Any]]:
    if data is None and suite.hub is None:
        raise PromptsError(f"the suite {suite.name} has no data of its own; give a file: --data {suite.name}=FILE")
    if data is not None and (suite.hub is None or data != suite.hub.name):
        return load_rows(data)
    assert suite.hub is not None
    try:
        return load_rows(suite.hub.name, HubPart(suite.hub.config, suite.hub.split, holds="problems"))
    except PromptsError as error:
        raise PromptsError(f"{error}; or give a file: --data {suite.name}=FILE") from error


def field(row: Any, where: str, *names: str) -> Any:
    """The value of the first of these columns that the record has. PromptsError if it has none."""
    found = next((name for name in names if isinstance(row, dict) and row.get(name) is not None), None)
    if found is None:
        has = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise PromptsError(f"{where} needs the column {' or '.join(names)}, it has {has}; check --data")
    return row[found]


def text_field(row: Any, where: str, *names: str) -> str:
    """The same, which must be text."""
    value = field(row, where, *names)
    if not isinstance(value, str) or not value.strip():
        raise PromptsError(f"{where} has no text in the column {' or '.join(names)}; correct it")
    return value
