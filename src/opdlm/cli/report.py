"""`opdlm report`: one page about one run, or about several on the same axes."""

from argparse import Namespace
from pathlib import Path

from opdlm.cli.options import Parser
from opdlm.cli.outputs import check_apart, check_writable
from opdlm.cli.terminal import quiet_libraries
from opdlm.errors import UsageError

_DESCRIPTION = """
Write one HTML file about RUN, the folder of a conversion, from what it wrote down: what was done and what it cost,
teacher and student, speed against quality, forgetting, training curves, where the time went, memory, and a viewer that
plays how its texts were denoised. Several runs come onto the same axes. The file needs no network. A run that is still
going may be reported too. Teacher and student are compared where RUN holds evaluation.json.
"""
_EXAMPLES = (
    "opdlm report run",
    "opdlm eval run --problems gsm8k.jsonl --json run/evaluation.json && opdlm report run --figures figures",
    "opdlm report run-a run-b --output compared.html",
)


def parser() -> Parser:
    """The command's flags."""
    made = Parser("report", _DESCRIPTION, _EXAMPLES, "RUN [RUN ...] [--output FILE]")
    made.add_argument("runs", nargs="*", help="folders of runs")
    made.add_argument("--output", metavar="FILE", help="the page (default: RUN/report.html; needed for several runs)")
    made.add_argument("--figures", metavar="DIR", help="write the figures as .svg and .png files too")
    return made


def run(arguments: Namespace) -> int:
    """Writes the page, prints where it is."""
    runs = [Path(name) for name in arguments.runs]
    if not runs:
        raise UsageError("no run given; use opdlm report RUN")
    if len(runs) > 1 and arguments.output is None:
        raise UsageError("several runs need a place for their page; name it with --output FILE.html")
    quiet_libraries()
    from opdlm.report.html import REPORT, write_report

    target = runs[0] / REPORT if arguments.output is None else Path(arguments.output)
    if arguments.output is not None:
        check_apart({"--output": target}, [str(run / "evaluation.json") for run in runs], arguments.runs)
        check_writable(target)
    figures = None if arguments.figures is None else Path(arguments.figures)
    print(f"the report is {write_report(runs, target, figures)}")
    if figures is not None:
        print(f"its figures are in {figures}")
    return 0
