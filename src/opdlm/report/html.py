"""report.html: one file with no outside parts, made from what a run left on disk.

Reads the metrics; where they exist also the evaluation (teacher and student side by side) and the sample (one response
with the denoising step in which each token was committed).
"""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from opdlm.errors import StorageError
from opdlm.records.evaluation import Comparison, Evaluation, Score, retained
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from opdlm.records.trajectory import Trajectory

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
        RecordError: the folder has no metrics, or one of its files is damaged.
        StorageError: the report cannot be written.
    """
    folder, target = RunFolder(run), run / "report.html"
    logged, evaluation, sample = folder.logged(), folder.kept_evaluation(), folder.kept_sample()
    sections = [_facts(logged[-1])] if logged else []
    sections += [_retention(evaluation)] if evaluation is not None else []
    sections.append(_training(logged))
    sections += [_trajectory(sample)] if sample is not None else []
    page = _PAGE.format(title="From autoregressive to block diffusion", body="\n".join(sections))
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{target} could not be written ({error.strerror}); free some space") from error
    return target


def _facts(last: StepMetrics) -> str:
    total = last.total
    return (
        f"<p>{last.rollouts} rollouts, {last.updates} updates. {total.tokens_rolled_out:,} tokens written in "
        f"rollouts, {total.tokens_trained:,} response tokens trained on, {total.flops:.2g} FLOPs, "
        f"{total.seconds:,.0f} seconds.</p>"
    )


# --- teacher and student ------------------------------------------------------------------------------------------


def _retention(evaluation: Comparison) -> str:
    teacher = evaluation.teacher
    shown = [row for row in teacher.rows if row.tag in (None, "seen", "unseen")]
    names = (row.label.replace("/", " ") for row in shown)
    heads = "".join(
        f"<th>{escape(name)}</th>" for name in ("", *names, "mean", "retained", "tokens/forward", "tokens/s")
    )
    rows = [_row("teacher", teacher, shown, None)]
    for student in evaluation.students:
        rows.append(_row(f"student, {student.decoding}", student, shown, retained(student, teacher)["overall"]))
    return (
        f"<h2>Teacher and student on {teacher.total.n} problems</h2>\n"
        f'<div class="wide"><table><tr>{heads}</tr>\n{"".join(rows)}</table></div>\n'
        '<p class="small">Share of right answers by task, with the 95 % interval. Facts tagged "seen" were asked for '
        'in conversion prompts, "unseen" ones never. Greedy decoding; tokens per second at one batch size.</p>'
    )


def _row(name: str, evaluation: Evaluation, shown: Sequence[Score], share: float | None) -> str:
    scores = [evaluation.row(row.family, row.tag) for row in shown]
    cells = [f'{score.accuracy:.1%}<br><span class="small">{_interval(score)}</span>' for score in scores]
    cells += [f"{evaluation.accuracy:.1%}", "" if share is None else f"{share:.1%}"]
    cells += [f"{evaluation.tokens_per_forward:.2f}", f"{evaluation.tokens_per_second:,.0f}"]
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def _interval(score: Score) -> str:
    low, high = score.interval
    return f"{low:.0%} to {high:.0%}"


# --- curves -------------------------------------------------------------------------------------------------------


def _training(logged: Sequence[StepMetrics]) -> str:
    if len(logged) < 2:
        return ""
    kept = logged[:: -(-len(logged) // _MOST_POINTS)]
    x = [metrics.total.tokens_trained for metrics in kept]
    loss, speed = [metrics.loss for metrics in kept], [metrics.tokens_per_forward for metrics in kept]
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


def _trajectory(sample: Trajectory) -> str:
    """Tokens coloured by the step of their block in which they were committed; hover over one to read it."""
    tokens = zip(sample.positions, sample.texts, sample.commit_steps, strict=True)
    blocks = groupby(tokens, key=lambda token: token[0] // sample.block_size)
    spans = ("".join(_token(text, step) for _, text, step in members) for _, members in blocks)
    text = "".join(f'<span class="block">{span}</span>' for span in spans)
    legend = " ".join(_token(f" {step} ", step) for step in sorted(set(sample.commit_steps)))
    return (
        f"<h2>One response, as it was denoised</h2>\n<p>{escape(sample.prompt)}</p>\n"
        f'<p class="text">{text}</p>\n<p>denoising step of the block: {legend}</p>\n'
        f'<p class="small">Decoding {escape(sample.decoding)}: {len(sample.token_ids)} tokens in {sample.forwards} '
        f"forwards, {sample.tokens_per_forward:.2f} tokens per forward. A dashed frame is a block.</p>"
    )


def _token(text: str, step: int) -> str:
    hue = (150 + 75 * step) % 360
    shown = escape(text).replace("\n", "⏎\n")
    return f'<span class="token" style="background:hsl({hue} 70% 78%)" title="step {step}">{shown}</span>'
