"""What came of a question: tables, the result file `study_QUESTION.json`, and a figure."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring
import torch

from studies.exam import AT_THE_END, DECODINGS, MORE_DECODINGS, ON_THE_WAY
from studies.figures import draw
from studies.numbers import Answers, Cost, Measure, Span, accuracy, effort_of, share_of, speed, to_reach, total
from studies.questions import QUESTIONS
from studies.tables import COSTS, LABELS, SHARES, tables

TEACHER = "the AR model, greedy, cached (transformers)"
_UNITS = {"flops": "FLOP", "seconds": "s", "positions_supervised": "position"}  # all others are tokens


def summarise(key: str, folder: Path, results: Path, figures: Path) -> str:
    """Writes the result file, the figure and the page of a question; returns its tables."""
    torch.set_num_threads(1)  # as the runs had it: the record names the threads
    answers = Answers.load(key, folder)
    path = measuring.write(f"study_{key}", list(rows(answers)), note(answers), results)
    figure = draw(answers, figures / f"{key}.svg")
    shown = "\n\n".join(tables(answers))
    page = figure.with_suffix(".md")
    page.write_text(f"{shown}\n\n![{QUESTIONS[key].title}]({figure.name})\n", encoding="utf-8")
    return f"{shown}\n\nwritten: {path}, {figure}, {page}\n"


def note(answers: Answers) -> str:
    """What the rows have in common."""
    records = [record for seeds in answers.arms.values() for record in seeds.values()]
    effort = effort_of(answers.any)
    return (
        f"{QUESTIONS[answers.key].title} ours, rival: means over seeds; ratio: mean over seeds, with min and max; n: "
        f"seeds. Accuracy: {effort['per_family']} final questions of each of 4 tasks. Costs to reach a share of the "
        f"teacher's accuracy: from the curves on other questions, null where it was not reached. Runs: scale "
        f"{effort['scale']}; {', '.join(sorted({record['hardware'] for record in records}))}; commit "
        f"{', '.join(sorted({record['commit'] for record in records}))}."
    )


def rows(answers: Answers) -> Iterator[dict[str, Any]]:
    """One row for each arm and number."""
    for name in answers.arms:
        for decoding in answers.examined(name, (*DECODINGS, *MORE_DECODINGS)):
            yield _examined(answers, name, decoding, "accuracy, mean over families", accuracy)
            yield _examined(answers, name, decoding, "tokens per forward", speed)
        for decoding in AT_THE_END:
            for label in LABELS:
                yield _examined(answers, name, decoding, f"accuracy, {label}", share_of(label))
        for unit, metric in COSTS.items():
            yield _spent(answers, name, metric, unit, total(unit), {})
        if QUESTIONS[answers.key].figure == "budgets":
            continue
        for decoding in ON_THE_WAY:
            for share in SHARES:
                for unit in ("tokens_trained", "flops"):
                    metric = f"{COSTS[unit]}, to reach {share:.0%} of the teacher's accuracy"
                    cost = to_reach(share, decoding, unit)
                    yield _spent(answers, name, metric, unit, cost, {"decoding": decoding})
    for name, decoding, share in itertools.product(answers.budgeted(), AT_THE_END, SHARES):
        yield _enough(answers, name, decoding, share)


def _examined(answers: Answers, name: str, decoding: str, metric: str, measure: Measure) -> dict[str, Any]:
    """The students of an arm against the teacher."""
    ours, theirs = answers.student(name, decoding, measure), answers.teacher(measure)
    ratio = Span(ours.mean / theirs, ours.low / theirs, ours.high / theirs, ours.n, ours.of)
    unit = "token" if measure is speed else "share"
    return _row(metric, unit, ours, theirs, TEACHER, ratio, {"arm": name, "decoding": decoding})


def _spent(answers: Answers, name: str, metric: str, unit: str, cost: Cost, settings: dict[str, str]) -> dict[str, Any]:
    """The cost of an arm against the question's reference arm."""
    ours, theirs = answers.cost(name, cost), answers.cost(answers.rival, cost)
    rival = theirs.mean if theirs else None
    ratio = answers.relative(name, cost)
    return _row(metric, _UNITS.get(unit, "token"), ours, rival, answers.rival, ratio, {"arm": name, **settings})


def _enough(answers: Answers, name: str, decoding: str, share: float) -> dict[str, Any]:
    """The tokens of a whole run that is good enough, from means over seeds."""
    ours, theirs = (answers.enough(arm, decoding, share) for arm in (name, answers.rival))
    ratio = ours / theirs if ours and theirs else None
    seeds = min(len(answers.arms[run]) for run in answers.budgets(name))
    one, times = ((number and Span(number, number, number, seeds, seeds)) for number in (ours, ratio))
    metric = f"response tokens of a whole run that keeps {share:.0%} of the teacher's accuracy"
    return _row(metric, "token", one or None, theirs, answers.rival, times or None, {"arm": name, "decoding": decoding})


def _row(
    metric: str,
    unit: str,
    ours: Span | None,
    rival: float | None,
    rival_name: str,
    ratio: Span | None,
    settings: dict[str, str],
) -> dict[str, Any]:
    """In the shape of `measuring.row`; null is what was not reached."""
    return {
        "metric": metric,
        "unit": unit,
        "ours": _short(ours and ours.mean),
        "rival": _short(rival),
        "rival_name": rival_name,
        "ratio": _short(ratio and ratio.mean),
        "n": ours.n if ours else 0,
        "min": _short(ratio and ratio.low),
        "max": _short(ratio and ratio.high),
        "settings": settings,
    }


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")
