"""All suites by name."""

from collections.abc import Sequence
from difflib import get_close_matches

from opdlm.errors import UsageError
from opdlm.evals.suites.facts import FACTS
from opdlm.evals.suites.maths import MATHS
from opdlm.evals.suites.programs import PROGRAMS
from opdlm.evals.suites.puzzles import PUZZLES
from opdlm.evals.suites.suite import Suite
from opdlm.evals.suites.texts import TEXTS

SUITES: dict[str, Suite] = {suite.name: suite for suite in (*MATHS, *PROGRAMS, *PUZZLES, *TEXTS, *FACTS)}


def suites_named(names: Sequence[str]) -> list[Suite]:
    """The suites of these names, each once. UsageError for one that does not exist."""
    for name in names:
        if name not in SUITES:
            near = get_close_matches(name, SUITES, 1)
            hint = f"did you mean {near[0]!r}" if near else f"choose from {', '.join(SUITES)}"
            raise UsageError(f"there is no suite {name!r}; {hint}")
    return [SUITES[name] for name in dict.fromkeys(names)]
