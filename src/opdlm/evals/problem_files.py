"""Problems from a file."""

from typing import Any

from opdlm.data.files import load_rows
from opdlm.data.hub_set import WHOLE, HubPart
from opdlm.data.prompts import as_prompt
from opdlm.errors import PromptsError, UsageError
from opdlm.evals.graders import check_gradable
from opdlm.evals.problem import Problem

_NEEDED = ("prompt", "answer", "family")


def load_problems(source: str, part: HubPart = WHOLE) -> list[Problem]:
    """Problems of a file or a data set of the hub: records with "prompt", "answer" and "family".

    For code also "calls" or "tests"; "prelude" and "tag" where wanted.

    A prompt is text or a list of chat messages, an answer text or a number. What is not needed may be null.

    Raises:
        PromptsError: missing, empty, or a record that is no problem.
    """
    rows = load_rows(source, part)
    if not rows:
        raise PromptsError(f"{source} holds no problems; give a file with at least one")
    return [_problem(fields, where) for where, fields in rows]


def _problem(fields: Any, where: str) -> Problem:
    missing = [name for name in _NEEDED if name not in fields] if isinstance(fields, dict) else _NEEDED
    if missing:
        raise PromptsError(f"{where} needs prompt, answer and family, missing: {', '.join(missing)}; add them")
    calls = fields.get("calls")
    if calls is not None and not _are_pairs(calls):
        raise PromptsError(f"{where} needs calls: a list of [call, repr of its result] pairs; correct it")
    problem = Problem(
        family=_text(fields, "family", where),
        prompt=as_prompt(fields["prompt"], f"the prompt of {where}"),
        response=_text(fields, "response", where),
        answer=_text(fields, "answer", where),
        calls=tuple((call, expected) for call, expected in calls or ()),
        tag=_text(fields, "tag", where),
        tests=_program(fields, "tests", where),
        prelude=_program(fields, "prelude", where),
    )
    try:
        check_gradable(problem, where)
    except UsageError as error:
        raise PromptsError(str(error)) from error
    return problem


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    """Text, or a number as text; "" where the record has none and needs none."""
    value = fields.get(name)
    if value is None and name not in _NEEDED:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        shown = "null" if value is None else f"a {type(value).__name__}"
        raise PromptsError(f"{where} has {shown} as {name}; it must be text or a number, correct it")
    return str(value)


def _program(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields.get(name) or ""
    if not isinstance(value, str):
        raise PromptsError(f"{where} needs {name}: one text of Python; correct it")
    return value


def _are_pairs(calls: Any) -> bool:
    if not isinstance(calls, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in calls):
        return False
    return all(isinstance(part, str) for pair in calls for part in pair)
