"""matplotlib for reports: one look for all figures, readable ticks, SVG for a page that may be light or dark.

matplotlib, since it draws without a browser, writes SVG and PNG alike, and needs no script in the page.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

INK, LINE = "#1b1f24", "#c9d0d7"
COLOURS = ("#0b63ce", "#c2570c", "#1a7f4b", "#8a3ffc", "#c4314b", "#007d79", "#7a5c00", "#5b6570")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")
_VARIABLES = {INK: "--ink", LINE: "--line"} | {colour: f"--series-{i}" for i, colour in enumerate(COLOURS)}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: the page's font, and readers of screens
    "svg.hashsalt": "opdlm",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,  # names of runs may hold dollar signs
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Figure:
    """Attributes:
    name: of its files. title: what it shows, with the unit. svg: for a page, with the page's own colours and font.
    files: suffix -> content, to be used elsewhere.
    """

    name: str
    title: str
    svg: str
    files: dict[str, bytes]


def look(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the series number `index`: never the colour alone."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


@contextmanager
def axes(width: float = 4.8, height: float = 3.1) -> Iterator[tuple[Canvas, Axes]]:
    """A figure with one pair of axes, in inches, in the report's look."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        canvas = Canvas(figsize=(width, height))
        yield canvas, canvas.add_subplot()


def finished(canvas: Canvas, name: str, title: str) -> Figure:
    """The figure in all its forms; to be called while `axes` is open."""
    files = {}
    forms: tuple[tuple[str, dict[str, Any]], ...] = (("svg", {"metadata": _NO_METADATA}), ("png", {"dpi": 200}))
    for suffix, more in forms:
        target = BytesIO()
        canvas.savefig(target, format=suffix, **more)
        files[suffix] = target.getvalue()
    return Figure(name, title, _inlined(files["svg"].decode(), title), files)


def _inlined(svg: str, title: str) -> str:
    """The <svg> element alone, its colours those of the page."""
    whole = svg[svg.index("<svg") :]
    whole = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", whole, count=2)
    whole = re.sub(r"<style[^>]*>.*?</style>", "", whole, flags=re.DOTALL)  # it would hold for the whole page
    whole = re.sub(r'<g id="[^"]*"', "<g", whole)  # the same in every figure, and nobody points there
    whole = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" LABEL>', whole, count=1)
    for colour, variable in _VARIABLES.items():
        whole = whole.replace(colour, f"var({variable})")
    whole = whole.replace("'DejaVu Sans', sans-serif", "system-ui, sans-serif").replace("#ffffff", "none")
    return whole.replace("LABEL", f'aria-label="{_attribute(title)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


# --- ticks --------------------------------------------------------------------------------------------------------


def ticks_of_amounts(axis: Any) -> None:
    """0, 100 k, 200 k."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(EngFormatter(sep=" "))


def ticks_of_numbers(axis: Any) -> None:
    """Few and round."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:.6g}"))


def ticks_of_powers(axis: Any) -> None:
    """For small numbers: 2e-5."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(_power))


def _power(value: float, place: object) -> str:
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return "0" if value == 0 else f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def ticks_of_shares(axis: Any) -> None:
    """0 %, 50 %, 100 %, of numbers from 0 to 1."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{100 * value:.6g} %"))


def legend_below(canvas: Canvas, pane: Axes, columns: int = 2) -> None:
    """Each label once, where it covers nothing."""
    handles, labels = pane.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        canvas.legend(list(once.values()), list(once), loc="outside lower center", ncols=columns)


def binned(x: Sequence[float], y: Sequence[float], most: int = 300) -> tuple[list[float], list[float]]:
    """At most `most` points: each the last x and the mean y of as many neighbours."""
    size = -(-len(x) // most) or 1
    groups = [slice(begin, begin + size) for begin in range(0, len(x), size)]
    return [x[group][-1] for group in groups], [sum(y[group]) / len(y[group]) for group in groups]


Ticks = Callable[[Any], None]
