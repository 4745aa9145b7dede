"""What an evaluation came to: counts, shares with their intervals, speed; and what a student retains of its teacher.

Speed has two honest units. Tokens per second is what a user feels, on one machine and one batch size. Tokens per
forward is the same on every machine: each row counts its own tokens and the forwards in which it took part.
"""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import computed_field

from opdlm.errors import UsageError
from opdlm.records.metrics import Totals
from opdlm.records.record import Part, Record

_Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Score(Part):
    """What one family, or one tag within a family, came to.

    Attributes:
        family: task family.
        tag: sub-group of the family, None for the whole family.
        n, correct: problems, and those answered right.
        tokens, forwards: sums over its responses.
        seconds: sum of the responses' own seconds, None unless the writer knows them all.
        empty: responses without any text; None where an earlier version did not count them.
    """

    family: str
    tag: str | None
    n: int
    correct: int
    tokens: int
    forwards: int
    seconds: float | None = None
    empty: int | None = None

    @computed_field
    @property
    def accuracy(self) -> float:
        """Share of right answers, from 0 to 1; 0 where there were none."""
        return _ratio(self.correct, self.n)

    @computed_field
    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.n)

    @computed_field
    @property
    def tokens_per_forward(self) -> float:
        """Tokens of the set over forwards of the set, 0 where there were none."""
        return _ratio(self.tokens, self.forwards)

    @property
    def label(self) -> str:
        """`maths`, `recall/seen`."""
        return self.family if self.tag is None else f"{self.family}/{self.tag}"


class Evaluation(Record):
    """The answers of one model with one decoding.

    Attributes:
        name: what was evaluated, as tables show it.
        rows: a score for each family, each followed by its tags (where the family has any), in the order of problems.
        seconds: wall-clock time in which all responses were written, grading and warm-up not counted.
        decoding: how the student decoded; "" for an AR model.
        same_text: responses that are the teacher's, character for character; None where they were not compared.
        acceptance: with `verified`, of each place in the window, the share of drafts that held where those before did.
    """

    name: str
    rows: tuple[Score, ...]
    seconds: float
    decoding: str = ""
    same_text: int | None = None
    acceptance: tuple[float, ...] = ()

    @property
    def families(self) -> tuple[Score, ...]:
        """The scores of whole families."""
        return tuple(row for row in self.rows if row.tag is None)

    def row(self, family: str, tag: str | None = None) -> Score:
        """The score of a family, or of a tag within it.

        Raises:
            UsageError: the evaluation had no such problem.
        """
        for row in self.rows:
            if (row.family, row.tag) == (family, tag):
                return row
        known = ", ".join(row.label for row in self.rows)
        raise UsageError(f"the evaluation {self.name!r} has no row {family!r}, {tag!r}; it has {known}")

    @computed_field
    @property
    def total(self) -> Score:
        """All problems as one, so that its accuracy is the micro average."""
        seconds = [row.seconds for row in self.families if row.seconds is not None]
        return Score(
            family="all",
            tag=None,
            n=sum(row.n for row in self.families),
            correct=sum(row.correct for row in self.families),
            tokens=sum(row.tokens for row in self.families),
            forwards=sum(row.forwards for row in self.families),
            seconds=sum(seconds) if len(seconds) == len(self.families) else None,
            empty=sum(row.empty or 0 for row in self.families),
        )

    @computed_field
    @property
    def accuracy(self) -> float:
        """Mean of the families' accuracies: each counts the same, however many problems it has; 0 without any."""
        return _ratio(sum(row.accuracy for row in self.families), len(self.families))

    @computed_field
    @property
    def tokens_per_forward(self) -> float:
        """Tokens of all responses over forwards of all responses."""
        return self.total.tokens_per_forward

    @computed_field
    @property
    def tokens_per_second(self) -> float:
        """Tokens of all responses over `seconds`, at whatever batch size the writer used."""
        return _ratio(self.total.tokens, self.seconds)


class WrittenText(Record):
    """One text that a model wrote behind a prompt and that nobody grades.

    Attributes:
        name: who wrote it. decoding: how. number: of the prompt, from 0. prompt: as it was read, perhaps cut.
        response: without special tokens. tokens, forwards: of this response.
    """

    name: str
    decoding: str
    number: int
    prompt: str
    response: str
    tokens: int
    forwards: int


class GradedAnswer(Record):
    """One answer of one model with one decoding: what is kept so that a number can be looked into.

    Attributes:
        name, decoding: as in `Evaluation`. model: folder or hub name of who answered, "" where it is not known.
        number: of the problem, from 0. family, tag: of the problem; tag "" where it has none.
        prompt: text or chat messages. response: without special tokens.
        expected: the reference answer. calls: for code, with their expected results. correct: the verdict.
        tokens, forwards: of this response. seconds: its own, None unless the writer knows them.
        waited: seconds from the answer before to this one, so that they add up to the time of all.
        options: what was chosen from, and scores: the log-likelihood of each, in nats. Empty where text was written.
    """

    name: str
    decoding: str = ""
    model: str = ""
    number: int
    family: str
    tag: str = ""
    prompt: str | list[dict[str, str]]
    response: str
    expected: str
    calls: tuple[tuple[str, str], ...] = ()
    correct: bool
    tokens: int
    forwards: int
    seconds: float | None = None
    waited: float = 0.0
    options: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


class Comparison(Record):
    """Teacher and student on the same problems.

    Attributes:
        teacher: the original. students: the student with each decoding.
        model, against, batch_size: who was compared, and how many rows were decoded at once.
        dtype: of both models' weights.
        conversion: what the student's conversion cost, where it is known. seconds: of the whole command that says so.
    """

    teacher: Evaluation
    students: tuple[Evaluation, ...]
    model: str = ""
    against: str = ""
    batch_size: int | None = None
    dtype: str = "float32"
    conversion: Totals | None = None
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the accuracy that each student retains."""
        made = super().to_json()
        for plain, student in zip(made["students"], self.students, strict=True):
            plain["retained"] = retained(student, self.teacher)
        return made


def rounding_hints(comparison: Comparison) -> list[str]:
    """A line where a lossless model's texts are not all the original's because of the number type."""
    drafting = [one for one in comparison.students if one.acceptance]
    if comparison.dtype == "float32" or all(one.same_text == one.total.n for one in drafting):
        return []
    return [
        f"in {comparison.dtype} near ties are frequent, and the original's text changes with its batch, too; --dtype "
        "float32 tells whether the texts are the same"
    ]


def empty_hints(evaluations: Sequence[Evaluation]) -> list[str]:
    """A line for each evaluation in which most responses are empty: its speed and its bits mean nothing."""
    totals = ((one.name, one.total) for one in evaluations)
    return [
        f"{name}: {total.empty} of {total.n} responses are empty, so its speed means nothing; the model stops at once: "
        "train it longer, or decode with hold_end"
        for name, total in totals
        if 2 * (total.empty or 0) > total.n
    ]


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share `correct / n`, within [0, 1]; n = 0 gives (0, 1).

    Wilson's score interval (JASA 22, 1927): unlike the normal one it is sound near 0 and 1, where models often are.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, _Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n right answers a bound is exact; rounding must not move it.
    low = 0.0 if correct == 0 else centre - half
    return low, 1.0 if correct == n else centre + half


def retained(student: Evaluation, teacher: Evaluation) -> dict[str, float | None]:
    """Student's accuracy over the teacher's, by "overall" (mean over families), "micro", "FAMILY" and "FAMILY/TAG".

    1 means that nothing was lost. None where the teacher had nothing right.

    Raises:
        UsageError: the two are not on the same problems.
    """
    if [(row.family, row.tag, row.n) for row in student.rows] != [(row.family, row.tag, row.n) for row in teacher.rows]:
        raise UsageError(f"{student.name!r} and {teacher.name!r} answered different problems; evaluate both on one set")
    pairs = {
        "overall": (student.accuracy, teacher.accuracy),
        "micro": (student.total.accuracy, teacher.total.accuracy),
    }
    for ours, theirs in zip(student.rows, teacher.rows, strict=True):
        pairs[ours.label] = (ours.accuracy, theirs.accuracy)
    return {label: ours / theirs if theirs else None for label, (ours, theirs) in pairs.items()}


def _ratio(amount: float, per: float) -> float:
    return amount / per if per else 0.0
