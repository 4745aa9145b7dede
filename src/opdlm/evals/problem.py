"""What a problem is: a question whose answer can be graded."""

from dataclasses import dataclass

from opdlm.data.prompts import Prompt


@dataclass(frozen=True)
class Plain:
    """A text that is continued as it is, without the tokenizer's chat template."""

    text: str


@dataclass(frozen=True)
class Options:
    """Continuations of a text, of which the likeliest is chosen."""

    text: str
    options: tuple[str, ...]


Asked = Prompt | Plain | Options
"""What a model reads."""


@dataclass(frozen=True)
class Problem:
    """One question with its reference answer.

    Attributes:
        family: how it is graded: a key of `opdlm.evals.graders.GRADERS`.
        prompt: the user's message as plain text, or chat messages; "" where `plain` is what every model reads.
        response: a complete reference response, or "".
        answer: what grading looks for (a number, a name, a line); for code the name of the function.
        calls: for code, pairs of (call expression, repr of the expected result); empty otherwise.
        tests: for code, instead of calls: Python that raises where the program is wrong (`sandbox.run_tests`).
        prelude: for code, Python that runs before the program and before the tests, such as imports.
        interpreted: for code, that only the small language of `interpreter.py` is right, so that no program need run.
        tag: a sub-group that is reported on its own, or "".
        plain: the text that a model without a chat template continues; "": the prompt.
        options: continuations to choose from, or the other answers that the same question could have.
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
    plain: str = ""
    options: tuple[str, ...] = ()


def as_asked(problem: Problem, has_chat_template: bool) -> Asked:
    """What a model reads of it."""
    if problem.plain and (not problem.prompt or not has_chat_template):
        return Plain(problem.plain)
    return problem.prompt


def as_options(problem: Problem) -> Options:
    """A problem that is answered by choosing."""
    return Options(problem.plain, problem.options)


def as_shown(asked: Asked) -> Prompt:
    """What a record keeps of it."""
    return asked.text if isinstance(asked, Plain | Options) else asked
