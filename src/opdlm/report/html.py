"""report.html: one file with no outside parts, made from what a run left on disk.

Reads metrics.jsonl; where they exist also evaluation.json (teacher and student side by side) and rollouts/sample.json
(one response with the round in which each token was fixed).
"""

import json
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from opdlm.errors import CheckpointError, StorageError

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8886; --accent: #2a7; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ width: 100%; height: auto; }} svg text {{ font: 12px system-ui, sans-serif; fill: currentColor; }}
.text {{ white-space: pre-wrap; font-family: ui-monospace, monospace; line-height: 2; }}
.block {{ outline: 1px dashed var(--line); margin-right: 2px; padding: .15rem 0; }}
.token {{ color: #000; padding: .15rem 0; }}
.small {{ opacity: .75; font-size: .9rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 220, 60, 30, 14  # of a figure, in SVG units
_MOST_POINTS = 400


def write_report(run: Path) -> Path:
    """Writes `run`/report.html and returns its path.

    Raises:
        CheckpointError: the folder has no metrics, or one of its files is damaged.
        StorageError: the report cannot be written.
    """
    metrics, evaluation, sample = run / "metrics.jsonl", run / "evaluation.json", run / "rollouts" / "sample.json"
    if not metrics.is_file():
        raise CheckpointError(f"{run} holds no metrics.jsonl; give the folder of a run")
    lines = [_parsed(line, metrics) for line in metrics.read_text("utf-8").splitlines()]
    sections = [_facts(lines[-1])] if lines else []
    if evaluation.is_file():
        sections.append(_retention(_parsed(evaluation.read_text("utf-8"), evaluation)))
    sections.append(_training(lines))
    if sample.is_file():
        sections.append(_trajectory(_parsed(sample.read_text("utf-8"), sample)))
    page, target = (
        _PAGE.format(title="From autoregressive to block diffusion", body="\n".join(sections)),
        run / "report.html",
    )
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{target} could not be written ({error.strerror}); free some space") from error
    return target


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged ({error.msg}); run the command that wrote it again") from error


def _facts(last: dict[str, Any]) -> str:
    total = last["total"]
    return (
        f"<p>{last['rollouts']} rollouts, {last['updates']} updates. {total['tokens_rolled_out']:,} tokens written in "
        f"rollouts, {total['tokens_trained']:,} response tokens trained on, {total['flops']:.2g} FLOPs, "
        f"{total['seconds']:,.0f} seconds.</p>"
    )


# --- teacher and student ------------------------------------------------------------------------------------------


def _retention(evaluation: dict[str, Any]) -> str:
    teacher, students = evaluation["teacher"], evaluation["students"]
    names = [_name(row) for row in teacher["rows"] if row["tag"] in (None, "seen", "unseen")]
    heads = "".join(
        f"<th>{escape(name)}</th>" for name in ("", *names, "mean", "retained", "tokens/forward", "tokens/s")
    )
    rows = [_row("teacher", teacher, names, None)]
    rows += [_row(f"student, {one['decoding']}", one, names, one["retained"]["overall"]) for one in students]
    problems = teacher["total"]["n"]
    return (
        f"<h2>Teacher and student on {problems} problems</h2>\n"
        f'<div class="wide"><table><tr>{heads}</tr>\n{"".join(rows)}</table></div>\n'
        '<p class="small">Share of right answers by task, with the 95 % interval. Facts tagged "seen" were asked for '
        'in conversion prompts, "unseen" ones never. Greedy decoding; tokens per second at one batch size.</p>'
    )


def _row(name: str, report: dict[str, Any], names: Sequence[str], retained: float | None) -> str:
    by_name = {_name(row): row for row in report["rows"]}
    cells = [f'{by_name[n]["accuracy"]:.1%}<br><span class="small">{_interval(by_name[n])}</span>' for n in names]
    cells += [f"{report['accuracy']:.1%}", "" if retained is None else f"{retained:.1%}"]
    cells += [f"{report['tokens_per_forward']:.2f}", f"{report['tokens_per_second']:,.0f}"]
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def _interval(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{low:.0%} to {high:.0%}"


def _name(row: dict[str, Any]) -> str:
    return row["family"] if row["tag"] is None else f"{row['family']} {row['tag']}"


# --- curves -------------------------------------------------------------------------------------------------------


def _training(lines: Sequence[dict[str, Any]]) -> str:
    if len(lines) < 2:
        return ""
    kept = lines[:: -(-len(lines) // _MOST_POINTS)]
    x = [line["total"]["tokens_trained"] for line in kept]
    loss, speed = [line["loss"] for line in kept], [line["tokens_per_forward"] for line in kept]
    return (
        f"<h2>Training</h2>\n<p>Loss, in nats a masked token</p>\n{_curve(x, loss)}\n"
        f"<p>Tokens per forward in rollouts</p>\n{_curve(x, speed)}\n"
        '<p class="small">Horizontal: response tokens trained on.</p>'
    )


def _curve(x: Sequence[float], y: Sequence[float]) -> str:
    """A line with its axes, as inline SVG; the vertical axis starts at 0."""
    top, right = max(y) * 1.05 or 1.0, max(x) or 1
    width, height = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - _TOP

    def place(a: float, b: float) -> tuple[float, float]:
        return _LEFT + width * a / right, _TOP + height * (1 - b / top)

    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(a, b) for a, b in zip(x, y, strict=True)))
    ticks = []
    for share in (0.0, 0.5, 1.0):
        px, py = place(right * share, top * share)
        ticks.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{py:.1f}" y2="{py:.1f}" stroke="currentColor" opacity=".15"/>'
        )
        ticks.append(f'<text x="{_LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{top * share:.2f}</text>')
        anchor = {0.0: "start", 1.0: "end"}.get(share, "middle")
        ticks.append(f'<text x="{px:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{right * share:,.0f}</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(ticks)}'
        f'<polyline points="{points}" fill="none" stroke="var(--accent)" stroke-width="2"/></svg>'
    )


# --- one response -------------------------------------------------------------------------------------------------


def _trajectory(sample: dict[str, Any]) -> str:
    """Tokens coloured by the round of their block in which they were fixed; hover over one to read it."""
    blocks = groupby(sample["tokens"], key=lambda token: token["position"] // sample["block_size"])
    text = "".join(f'<span class="block">{"".join(map(_token, tokens))}</span>' for _, tokens in blocks)
    rounds = sorted({token["round"] for token in sample["tokens"]})
    legend = " ".join(_token({"text": f" {number} ", "round": number}) for number in rounds)
    count = len(sample["tokens"])
    return (
        f"<h2>One response, as it was denoised</h2>\n<p>{escape(sample['prompt'])}</p>\n"
        f'<p class="text">{text}</p>\n<p>round of the block: {legend}</p>\n'
        f'<p class="small">Decoding {escape(sample["decoding"])}: {count} tokens in {sample["forwards"]} forwards, '
        f"{count / max(1, sample['forwards']):.2f} tokens per forward. A dashed frame is a block.</p>"
    )


def _token(token: dict[str, Any]) -> str:
    hue = (150 + 75 * token["round"]) % 360
    text = escape(token["text"]).replace("\n", "⏎\n")
    return f'<span class="token" style="background:hsl({hue} 70% 78%)" title="round {token["round"]}">{text}</span>'
