"""Problems from a file."""

from typing import Any

from opdlm.data.files import load_rows
from opdlm.errors import PromptsError, UsageError
from opdlm.evals.graders import check_gradable
from opdlm.evals.problem import Problem

_NEEDED = ("prompt", "answer", "family")


def load_problems(source: str) -> list[Problem]:
    """Problems of a file: records with "prompt", "answer" and "family", for code also "calls" or "tests"; "prelude"
    and "tag" where wanted.

    Raises:
        PromptsError: missing, empty, or a record that is no problem.
    """
    rows = load_rows(source)
    if not rows:
        raise PromptsError(f"{source} holds no problems; give a file with at least one")
    return [_problem(fields, where) for where, fields in rows]


def _problem(fields: Any, where: str) -> Problem:
    missing = [name for name in _NEEDED if name not in fields] if isinstance(fields, dict) else _NEEDED
    if missing:
        raise PromptsError(f"{where} needs prompt, answer and family, missing: {', '.join(missing)}; add them")
    calls = fields.get("calls", [])
    if not _are_pairs(calls):
        raise PromptsError(f"{where} needs calls: a list of [call, repr of its result] pairs; correct it")
    problem = Problem(
        family=str(fields["family"]),
        prompt=str(fields["prompt"]),
        response=str(fields.get("response", "")),
        answer=str(fields["answer"]),
        calls=tuple((call, expected) for call, expected in calls),
        tag=str(fields.get("tag", "")),
        tests=_text(fields, "tests", where),
        prelude=_text(fields, "prelude", where),
    )
    try:
        check_gradable(problem, where)
    except UsageError as error:
        raise PromptsError(str(error)) from error
    return problem


def _text(fields: dict[str, Any], name: str, where: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise PromptsError(f"{where} needs {name}: one text of Python; correct it")
    return value


def _are_pairs(calls: Any) -> bool:
    if not isinstance(calls, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in calls):
        return False
    return all(isinstance(part, str) for pair in calls for part in pair)
