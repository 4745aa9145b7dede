"""Teacher and student on the same problems: the numbers and the table. Shared by `eval` and `demo`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table

from opdlm.config import GenerationSettings, settings_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from opdlm.evals.grading import Problem
    from opdlm.evals.results import EvalReport, Row
    from opdlm.sampling.api import DiffusionLM

OnProgress = Callable[[str, int, int], None]
"""Called with (who answers, responses written, problems)."""

_TAGS_OF_THEIR_OWN = {"seen", "unseen"}


@dataclass(frozen=True)
class Comparison:
    """The teacher's report, and the student's with each decoding ("dynamic:0.9" -> report)."""

    teacher: "EvalReport"
    students: dict[str, "EvalReport"]

    def to_json(self) -> dict[str, Any]:
        """Plain values: all counts, and for each decoding the accuracy retained."""
        from opdlm.evals.results import retained

        students = [
            {"decoding": decoding, **report.to_json(), "retained": retained(report, self.teacher)}
            for decoding, report in self.students.items()
        ]
        return {"teacher": self.teacher.to_json(), "students": students}


def compare(
    student: "DiffusionLM",
    arlm: "PreTrainedModel",
    problems: "Sequence[Problem]",
    decodings: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_progress: OnProgress = lambda name, done, total: None,
) -> Comparison:
    """Greedy answers of both to all problems.

    Raises:
        ContextLengthError: a problem and its answer do not fit into the student's context.
        ConfigError: a decoding that does not exist.
    """
    from opdlm.evals.runner import ar_writer, diffusion_writer, evaluate
    from opdlm.models.tokens import encode_prompt
    from opdlm.sampling.api import check_context
    from opdlm.sampling.engine import Engine

    settings = {text: greedy(text, max_new_tokens) for text in decodings}
    prompts = [encode_prompt(student.tokenizer, problem.prompt) for problem in problems]
    check_context(prompts, max_new_tokens, student.model.max_length, student.model.geometry.block_size)
    # A few calls, each larger than a batch: progress is seen, and batches stay full.
    per_call = max(4 * batch_size, -(-len(problems) // 4))
    run = partial(evaluate, problems=problems, prompts_per_call=per_call)

    writer = ar_writer(arlm, student.tokenizer, max_new_tokens=max_new_tokens, batch_size=batch_size)
    teacher = run("teacher", writer, on_progress=partial(on_progress, "teacher"))
    students = {}
    for text, chosen in settings.items():
        engine = Engine(student.model, student.tokens, chosen, batch_size)
        writer = diffusion_writer(engine.generate, student.tokenizer)
        students[text] = run(f"student, {text}", writer, on_progress=partial(on_progress, text))
    return Comparison(teacher, students)


def usual_decodings(kind: str) -> tuple[str, ...]:
    """What a student is compared by if nothing is asked for: one token a round, then ever more, in its usual order."""
    if kind == "prefix":
        return ("sequential", "prefix:0.98", "prefix:0.95", "prefix:0.9")
    return ("static", "dynamic:0.9", "dynamic:0.8", "dynamic:0.7")


def greedy(decoding: str, max_new_tokens: int) -> GenerationSettings:
    """The settings of an evaluation; ConfigError if the decoding does not exist."""
    return settings_from(GenerationSettings, {"decoding": decoding, "max_new_tokens": max_new_tokens})


def table(comparison: Comparison, title: str) -> Table:
    """Accuracy by family, accuracy retained and speed: a row for the teacher and one for each decoding."""
    from opdlm.evals.results import retained

    made = Table(title=title, title_justify="left")
    made.add_column("")
    shown = [row for row in comparison.teacher.rows if row.tag is None or row.tag in _TAGS_OF_THEIR_OWN]
    for heading in (*map(label, shown), "mean", "retained", "tokens/forward", "tokens/s"):
        made.add_column(heading, justify="right")
    made.add_row("teacher", *_cells(comparison.teacher, shown), "", *_speeds(comparison.teacher))
    for decoding, report in comparison.students.items():
        share = retained(report, comparison.teacher)["overall"]
        kept = "-" if share is None else f"{share:.1%}"
        made.add_row(f"student, {decoding}", *_cells(report, shown), kept, *_speeds(report))
    return made


def label(row: "Row") -> str:
    """`maths`, `recall seen`."""
    return row.family if row.tag is None else f"{row.family} {row.tag}"


def _cells(report: "EvalReport", shown: "Sequence[Row]") -> list[str]:
    rows = (report.row(row.family, row.tag) for row in shown)
    return [*(f"{row.accuracy:.1%}" for row in rows), f"{report.accuracy:.1%}"]


def _speeds(report: "EvalReport") -> tuple[str, str]:
    return f"{report.tokens_per_forward:.2f}", f"{report.tokens_per_second:,.0f}"
