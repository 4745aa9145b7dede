"""What is shown of the rows: two tables, and the numbers that have an aim."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

ACCURACY, FORWARD, SAME = "accuracy, mean over families", "tokens per forward", "responses equal to the rival's"
SPEED, OUTSIDE = "tokens per second", "time outside the model"
EAGER, COMPILED = "eager", "compiled"
AR = "AR generate (transformers)"
AR_COMPILED = f"{AR}, its forward compiled"
PEER = "peer loop (static batches, separate commit)"
CROPPING = f"{PEER}, cache cropped, not copied"
ALLOWED_LOSS = 0.01  # of accuracy, against one token a step
AIM_OVER_AR, AIM_OVER_PEER, AIM_OUTSIDE = 1.5, 3.0, 0.15


class Report:
    """The rows of one run, by what they say."""

    def __init__(self, rows: Sequence[dict[str, Any]], decodings: Sequence[str], batch_sizes: Sequence[int]) -> None:
        self.decodings, self.batch_sizes = decodings, batch_sizes
        self.engines = list(dict.fromkeys(row["settings"]["engine"] for row in rows))
        """With one alone nothing compiled was measured."""
        self._rows = {
            (
                row["metric"],
                row["rival_name"],
                *(row["settings"][name] for name in ("decoding", "engine", "batch_size")),
            ): row
            for row in rows
        }

    def row(
        self, metric: str, rival: str, decoding: str, batch_size: int | None = None, engine: str = EAGER
    ) -> dict[str, Any]:
        """NaN for what was not measured. `batch_size`: the largest, with which quality is measured, if not given."""
        key = metric, rival, decoding, engine, batch_size or max(self.batch_sizes)
        return self._rows.get(key, dict.fromkeys(("ours", "rival", "ratio", "min", "max"), math.nan))

    def chosen(self) -> str:
        """The decoding with the most tokens per forward among those that lose no more accuracy than is allowed."""
        accuracy = {decoding: self.row(ACCURACY, AR, decoding)["ours"] for decoding in self.decodings}
        slow = [accuracy[kind] for kind in ("static", "sequential") if kind in accuracy]
        least = max(slow or accuracy.values()) - ALLOWED_LOSS - 1e-9
        good = [decoding for decoding in self.decodings if accuracy[decoding] >= least]
        return max(good, key=lambda decoding: self.row(FORWARD, AR, decoding)["ours"])

    def quality(self) -> Table:
        """A row for each decoding."""
        title = "accuracy, tokens per forward, responses equal to the peer loop's"
        table = _table(title, "decoding", "accuracy", "AR", "tokens/forward", "peer loop", "equal")
        for decoding in self.decodings:
            accuracy, forward = self.row(ACCURACY, AR, decoding), self.row(FORWARD, AR, decoding)["ours"]
            peer, same = self.row(FORWARD, PEER, decoding)["rival"], self.row(SAME, PEER, decoding)["ours"]
            cells = (
                f"{accuracy['ours']:.1%}",
                f"{accuracy['rival']:.1%}",
                f"{forward:.2f}",
                f"{peer:.2f}",
                f"{same:.1%}",
            )
            table.add_row(decoding, *_shown(cells))
        return table

    def speed(self) -> Table:
        """A row for each batch size, decoding and engine."""
        title = "tokens per second, their ratios (min to max), share of the engine's time outside the model"
        headings = ("engine", "batch", "ours", "AR", "AR compiled", "peer", "cropping")
        ratios = ("ours / AR", "ours / AR compiled", "ours / peer", "outside")
        table = _table(title, "decoding", *headings, *ratios)
        for batch_size in self.batch_sizes:
            for decoding in self.decodings:
                for engine in self.engines:
                    table.add_row(decoding, engine, str(batch_size), *self._speeds(decoding, batch_size, engine))
            table.add_section()
        return table

    def _speeds(self, decoding: str, batch_size: int, engine: str) -> list[str]:
        rows = [self.row(SPEED, rival, decoding, batch_size, engine) for rival in (AR, AR_COMPILED, PEER, CROPPING)]
        speeds = [self.row(SPEED, AR, decoding, batch_size, engine)["ours"], *(row["rival"] for row in rows)]
        outside = self.row(OUTSIDE, AR, decoding, batch_size, engine)["ours"]
        ratios = [f"{row['ratio']:.2f} ({row['min']:.2f} to {row['max']:.2f})" for row in rows[:3]]
        cells = [*(f"{number:,.0f}" for number in speeds), *ratios, f"{outside:.0%}"]
        return _shown(cells)

    def summary(self) -> list[str]:
        """The three numbers that have an aim, and where AR is faster."""
        chosen, small, large = self.chosen(), min(self.batch_sizes), max(self.batch_sizes)
        lines = [f"chosen: {chosen}, most tokens per forward of those at most {ALLOWED_LOSS:.2f} below one by one"]
        for engine in self.engines:
            over_ar = self.row(SPEED, AR, chosen, small, engine)["ratio"]
            over_compiled = self.row(SPEED, AR_COMPILED, chosen, small, engine)["ratio"]
            compiled = "" if math.isnan(over_compiled) else f", {over_compiled:.2f} times those of AR compiled"
            over_peer, over_cropping = (
                self.row(SPEED, rival, chosen, large, engine)["ratio"] for rival in (PEER, CROPPING)
            )
            outside = self.row(OUTSIDE, AR, chosen, large, engine)["ours"]
            peer = (
                f"{engine}: batch {large}: {over_peer:.2f} times those of the peer loop "
                f"({_against(3, over_peer >= AIM_OVER_PEER)}), {over_cropping:.2f} times if that crops its cache"
            )
            wins = [size for size in self.batch_sizes if self.row(SPEED, AR, chosen, size, engine)["ratio"] < 1]
            lines += [
                f"{engine}: batch {small}: {over_ar:.2f} times the tokens per second of AR "
                f"({_against(1.5, over_ar >= AIM_OVER_AR)}){compiled}",
                *([] if math.isnan(over_peer) else [peer]),
                f"{engine}: batch {large}: {outside:.1%} of the time outside the model "
                f"({_against('under 15 %', outside < AIM_OUTSIDE)})",
                f"{engine}: AR is faster at batch size: {', '.join(map(str, wins)) or 'none'}",
            ]
        return lines


def _against(aim: float | str, met: bool) -> str:
    return f"aim: {aim}; {'met' if met else 'not met'}"


def _shown(cells: Sequence[str]) -> list[str]:
    """A dash for what was not measured."""
    return ["-" if "nan" in cell else cell for cell in cells]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "decoding" else "right", no_wrap=True)
    return table
