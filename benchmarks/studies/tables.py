"""What came of a question, as markdown tables: mean (min..max over seeds)."""

import math
from collections.abc import Callable, Iterator, Sequence

from studies.exam import AT_THE_END, DECODINGS, LEFT_TO_RIGHT, MORE_DECODINGS, ON_THE_WAY, SUREST_FIRST
from studies.numbers import Answers, Measure, Span, accuracy, share_of, speed, to_reach, total
from studies.questions import ARMS, QUESTIONS

LABELS = ("maths", "recall seen", "recall unseen", "edit", "code")
COSTS = {
    "tokens_trained": "response tokens trained",
    "tokens_rolled_out": "tokens generated in rollouts",
    "positions_supervised": "positions supervised",
    "flops": "FLOPs (rollouts, teacher, student)",
    "seconds": "seconds of training",
}
SHARES = (0.9, 0.95, 0.98)


def tables(answers: Answers) -> Iterator[str]:
    """All of them, with a list of the arms before."""
    yield f"## {QUESTIONS[answers.key].title}"
    yield _arms(answers)
    yield from _rates(answers)
    yield from _speeds_at(answers)
    asked = (*DECODINGS, *MORE_DECODINGS)
    kinds = [kind for kind in asked if any(answers.examined(name, (kind,)) for name in answers.arms)]
    yield _examined(answers, "accuracy, %", {kind: (kind, accuracy) for kind in kinds}, _percent)
    yield _examined(answers, "tokens per forward", {kind: (kind, speed) for kind in kinds}, _plain)
    for decoding in AT_THE_END:
        columns = {label: (decoding, share_of(label)) for label in LABELS}
        yield _examined(answers, f"accuracy by task, {decoding}, %", columns, _percent)
    yield _costs(answers)
    if QUESTIONS[answers.key].figure == "budgets":
        yield from (_enough(answers, decoding) for decoding in AT_THE_END)
        return
    for decoding in ON_THE_WAY:
        yield _reach(answers, decoding)


def _arms(answers: Answers) -> str:
    lines = [
        f"- `{name}` ({len(seeds)} seed{'s' * (len(seeds) > 1)}): {ARMS[name].reason}"
        for name, seeds in answers.arms.items()
    ]
    missing = [name for name in QUESTIONS[answers.key].arms if name not in answers.arms]
    return "\n".join([*lines, *([f"- not run: {', '.join(missing)}"] if missing else [])])


def _rates(answers: Answers) -> Iterator[str]:
    """How the candidates of a learning rate did on the validation questions."""
    for name in answers.arms:
        scores = answers.candidates(name)
        if len(scores) > 1:
            shown = ", ".join(f"{candidate} {score:.1%}" for candidate, score in scores.items())
            yield f"Rate of `{name}`, by validation: `{answers.best_rate(name)}` ({shown})."


def _examined(
    answers: Answers, title: str, columns: dict[str, tuple[str, Measure]], shown: Callable[[Span | None], str]
) -> str:
    """A row for the AR model and one for each arm."""
    lines = _heading([title, *columns])
    theirs = [answers.teacher(measure) for _, measure in columns.values()]
    lines.append(_line(["the AR model", *(shown(Span(number, number, number, 1, 1)) for number in theirs)]))
    for name in answers.arms:
        cells = [
            shown(answers.student(name, decoding, measure) if answers.examined(name, (decoding,)) else None)
            for decoding, measure in columns.values()
        ]
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def _costs(answers: Answers) -> str:
    lines = _heading(["costs", *COSTS.values()])
    for name in answers.arms:
        lines.append(_line([name, *(_large(answers.cost(name, total(unit))) for unit in COSTS)]))
    return "\n".join(lines)


def _reach(answers: Answers, decoding: str) -> str:
    """Tokens to reach shares of the teacher's accuracy, and how many times as many as the rival needs."""
    heads = [f"{share:.0%}{what}" for share in SHARES for what in ("", f" / {answers.rival}")]
    lines = _heading([f"tokens to reach, {decoding}", *heads])
    for name in answers.arms:
        cells = []
        for share in SHARES:
            cost = to_reach(share, decoding, "tokens_trained")
            cells += [_reached(answers.cost(name, cost)), _plain(answers.relative(name, cost))]
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def _speeds_at(answers: Answers) -> Iterator[str]:
    """Tokens per forward at some accuracies, by `dynamic` as all arms were asked it, by all thresholds, by `prefix`;
    nothing where no arm is so accurate.
    """
    common = [kind for kind in SUREST_FIRST if kind in DECODINGS]
    ways = {"dynamic, common thresholds": common, "dynamic": SUREST_FIRST[:5], "prefix": LEFT_TO_RIGHT}
    aims = (0.92, 0.9, 0.88, 0.85, 0.8)
    lines = _heading(["tokens per forward at", *(f"{aim:.0%}, {way}" for way in ways for aim in aims)])
    rows = {
        name: [answers.speed_at(name, kinds, aim) for kinds in ways.values() for aim in aims] for name in answers.arms
    }
    for name, found in rows.items():
        lines.append(_line([name, *("-" if one is None else f"{one:.2f}" for one in found)]))
    if any(one is not None for found in rows.values() for one in found):
        yield "\n".join(lines)


def _enough(answers: Answers, decoding: str) -> str:
    """Tokens that whole runs need for shares of the teacher's accuracy, and how many times the rival's."""
    heads = [f"{share:.0%}{what}" for share in SHARES for what in ("", f" / {answers.rival}", ", FLOPs likewise")]
    lines = _heading([f"tokens of a whole run, {decoding}", *heads])
    for name in answers.budgeted():
        cells = []
        for share in SHARES:
            ours, theirs = (answers.enough(arm, decoding, share) for arm in (name, answers.rival))
            least = ours is not None and math.isclose(ours, answers.tokens(answers.budgets(name)[0]))
            cells.append("not reached" if ours is None else f"{'at most ' if least else ''}{ours:,.0f}")
            cells.append("-" if ours is None or theirs is None else f"{ours / theirs:.2f}")
            flops = [answers.enough(arm, decoding, share, "flops") for arm in (name, answers.rival)]
            cells.append("-" if None in flops else f"{flops[0] / flops[1]:.2f}")
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def _heading(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---", *["---:"] * (len(cells) - 1)])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _reached(found: Span | None) -> str:
    if found is None:
        return "not reached"
    return _large(found) + (f", {found.n} of {found.of} seeds" if found.n < found.of else "")


def _percent(found: Span | None) -> str:
    return _shown(found, lambda number: f"{100 * number:.1f}")


def _plain(found: Span | None) -> str:
    return _shown(found, lambda number: f"{number:.2f}")


def _large(found: Span | None) -> str:
    return _shown(found, lambda number: f"{number:.2e}" if number >= 1e9 else f"{number:,.0f}")


def _shown(found: Span | None, text: Callable[[float], str]) -> str:
    if found is None:
        return "-"
    return text(found.mean) + (f" ({text(found.low)}..{text(found.high)})" if found.n > 1 else "")
