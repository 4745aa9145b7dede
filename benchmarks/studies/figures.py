"""One figure a question, as SVG. Packing are means over seeds, bands and whiskers run from the least to the most."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.exam import AT_THE_END, DECODINGS, LEFT_TO_RIGHT, ON_THE_WAY, SUREST_FIRST
from studies.numbers import Answers, Span, accuracy, share_of, span, speed
from studies.questions import QUESTIONS

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "opdlm",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_COLOURS = mpl.colormaps["tab10"].colors
_LINES = ("-", "--")
_SPENT = {
    "tokens_trained": ("response tokens trained, thousands", 1e3),
    "flops": ("FLOPs: rollouts, teacher, student; 10¹²", 1e12),
    "seconds": ("seconds of training on one core", 1.0),
}


def draw(answers: Answers, path: Path) -> Path:
    """Writes the question's figure; the same results give the same file."""
    with mpl.rc_context(_STYLE):
        made = _FIGURES[QUESTIONS[answers.key].figure](answers)
        made.suptitle(QUESTIONS[answers.key].title, fontsize=10)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, metadata={"Date": None, "Creator": None})
    return path


def _curves(answers: Answers) -> Figure:
    """Validation accuracy against each cost, from the first examination after some training on."""
    figure = Figure((11, 6.5), layout="constrained")
    panels = figure.subplots(len(ON_THE_WAY), len(_SPENT), sharex="col", sharey=True)
    for row, decoding in zip(panels, ON_THE_WAY, strict=True):
        for panel, (unit, (label, scale)) in zip(row, _SPENT.items(), strict=True):
            for place, name in enumerate(answers.leading()):
                records = answers.arms[name].values()
                points = list(zip(*(record["curve"][1:] for record in records), strict=True))
                costs = [span([point[unit] / scale for point in seeds]) for seeds in points]
                found = [span([100 * point["results"][decoding]["accuracy"] for point in seeds]) for seeds in points]
                look = _look(place)
                panel.plot(_means(costs), _means(found), label=name, marker=".", **look)
                low, high = [one.low for one in found], [one.high for one in found]
                panel.fill_between(_means(costs), low, high, color=look["color"], alpha=0.15, lw=0)
            panel.axhline(
                100 * answers.any["teacher"]["validation"]["accuracy"], color="grey", ls=":", label="the AR model"
            )
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.set(xlabel=label)
        row[0].set(ylabel=f"{decoding}: validation accuracy, %")
    _legend(figure, panels[0][0])
    return figure


def _speeds(answers: Answers) -> Figure:
    """Final accuracy against tokens per forward, the surest tokens first."""
    figure = Figure((8, 4.5), layout="constrained")
    panel = figure.subplots()
    kinds = [kind for kind in SUREST_FIRST if kind in DECODINGS]
    for place, name in enumerate(answers.leading()):
        _frontier(panel, answers, name, kinds, label=name, **_look(place))
    panel.plot(1, 100 * answers.teacher(accuracy), "k*", ls="", label="the AR model")
    panel.set(xlabel="tokens per forward (static, dynamic 0.9, 0.8, 0.7)", ylabel="accuracy, %")
    _legend(figure, panel)
    return figure


def _orders(answers: Answers) -> Figure:
    """Final accuracy against tokens per forward, in both orders of decoding."""
    figure = Figure((9, 5), layout="constrained")
    panel = figure.subplots()
    for place, name in enumerate(answers.arms):
        for kinds, look in ((LEFT_TO_RIGHT, {"label": name}), (SUREST_FIRST, {"ls": ":", "lw": 0.7})):
            _frontier(panel, answers, name, answers.examined(name, kinds), **{**_look(place), "ls": "-", **look})
    panel.set_ylim(70, 100)
    panel.plot(1, 100 * answers.teacher(accuracy), "k*", ls="", label="the AR model")
    panel.set(xlabel="tokens per forward (solid: sequential, prefix; dotted: static, dynamic)", ylabel="accuracy, %")
    _legend(figure, panel)
    return figure


def _frontier(panel: Axes, answers: Answers, name: str, kinds: Sequence[str], **look: Any) -> None:
    """An arm's accuracy against its tokens per forward."""
    x, y = ([answers.student(name, kind, measure) for kind in kinds] for measure in (speed, accuracy))
    panel.errorbar(_means(x), _means(y, 100), _whiskers(y), marker=".", capsize=2, **look)


_BUDGETS = [25 * 2**k for k in range(8)]


def _budgets(answers: Answers) -> Figure:
    """Final accuracy of whole runs against response tokens trained: a line for each method, a point for each budget."""
    figure = Figure((11, 4), layout="constrained")
    panels = figure.subplots(1, len(AT_THE_END), sharey=True)
    shown = sorted(answers.tokens(run) / 1000 for name in answers.budgeted() for run in answers.budgets(name))
    for panel, decoding in zip(panels, AT_THE_END, strict=True):
        for place, name in enumerate(answers.budgeted()):
            runs = answers.budgets(name)
            tokens = [answers.tokens(run) / 1000 for run in runs]
            found = [answers.student(run, decoding, accuracy) for run in runs]
            panel.errorbar(
                tokens, _means(found, 100), _whiskers(found), label=name, marker=".", capsize=2, **_look(place)
            )
        panel.axhline(100 * answers.teacher(accuracy), color="grey", ls=":", label="the AR model")
        panel.set_xscale("log")
        panel.set_xticks([tick for tick in _BUDGETS if shown[0] / 1.5 < tick < 1.3 * shown[-1]], minor=False)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.set(title=decoding, xlabel="response tokens trained, thousands")
    panels[0].set(ylabel="accuracy on final questions, %")
    _legend(figure, panels[0])
    return figure


def _facts(answers: Answers) -> Figure:
    """Facts that are still known, of those that conversion prompts name and of those that none names."""
    names = list(answers.arms)
    figure = Figure((11, 1.2 + 0.35 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(AT_THE_END), sharey=True)
    for panel, decoding in zip(panels, AT_THE_END, strict=True):
        for place, (tag, told) in enumerate((("seen", "named in prompts"), ("unseen", "never named"))):
            measure = share_of(f"recall {tag}")
            found = [answers.student(name, decoding, measure) for name in names]
            rows = [row + 0.4 * place - 0.2 for row in range(len(names))]
            look = {"color": _COLOURS[place], "ecolor": "black", "label": told}
            panel.barh(rows, _means(found, 100), 0.38, xerr=_whiskers(found), **look)
            panel.axvline(100 * answers.teacher(measure), color=_COLOURS[place], ls=":", lw=1)
        panel.set(title=decoding, xlabel="facts known, % (dotted: the AR model)")
    panels[0].set(yticks=range(len(names)), yticklabels=names)
    panels[0].invert_yaxis()
    _legend(figure, panels[0])
    return figure


def _means(spans: Sequence[Span], times: float = 1) -> list[float]:
    return [times * one.mean for one in spans]


def _whiskers(spans: Sequence[Span]) -> list[list[float]]:
    """Lengths in percent, downwards and upwards."""
    return [[100 * (one.mean - one.low) for one in spans], [100 * (one.high - one.mean) for one in spans]]


_FIGURES = {"curves": _curves, "speeds": _speeds, "facts": _facts, "budgets": _budgets, "orders": _orders}


def _look(place: int) -> dict[str, Any]:
    return {"color": _COLOURS[place % len(_COLOURS)], "ls": _LINES[place // len(_COLOURS) % len(_LINES)]}


def _legend(figure: Figure, panel: Axes) -> None:
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center", frameon=False)
