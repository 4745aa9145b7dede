"""What a problem is: a question whose answer can be graded."""

from dataclasses import dataclass

from opdlm.data.prompts import Prompt


@dataclass(frozen=True)
class Problem:
    """One question with its reference answer.

    Attributes:
        family: how it is graded: a key of `opdlm.evals.graders.GRADERS`.
        prompt: the user's message as plain text, or chat messages.
        response: a complete reference response, or "".
        answer: what grading looks for (a number, a name, a line); for code the name of the function.
        calls: for code, pairs of (call expression, repr of the expected result); empty otherwise.
        tests: for code, instead of calls: Python that raises where the program is wrong (`sandbox.run_tests`).
        prelude: for code, Python that runs before the program and before the tests, such as imports.
        interpreted: for code, that only the small language of `interpreter.py` is right, so that no program need run.
        tag: a sub-group that is reported on its own, or "".
    """

    family: str
    prompt: Prompt
    response: str
    answer: str
    calls: tuple[tuple[str, str], ...] = ()
    tag: str = ""
    tests: str = ""
    prelude: str = ""
    interpreted: bool = False
