"""`opdlm eval MODEL --suite NAME`: a converted model and its original on the field's tests."""

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdlm.cli.outputs import write_json
from opdlm.cli.partial import WEIGHTS, check_output
from opdlm.cli.progress import answering
from opdlm.cli.suite_answers import finished, growing, unkept
from opdlm.cli.tables import suite_table
from opdlm.cli.terminal import make_console
from opdlm.cli.versions import versions
from opdlm.errors import UsageError
from opdlm.records.evaluation import Comparison, GradedAnswer, empty_hints

if TYPE_CHECKING:
    from opdlm.evals.problem import Problem
    from opdlm.evals.suites.suite import Suite

    Tests = list[tuple[Suite, list[Problem]]]


def run_suites(arguments: Namespace, decodings: Sequence[str], settings: dict[str, Any], answers: Path | None) -> int:
    """Evaluates, prints the table, writes the numbers. `answers`: where every answer goes."""
    if not arguments.model:
        raise UsageError("--suite needs MODEL; name it")
    if arguments.resume and answers is None:
        raise UsageError("--resume goes on with the answers of a file; name it with --json or --answers")
    complete = answers is not None and arguments.resume and answers.exists() and _lacks_numbers(arguments)
    if answers is not None and not complete:
        check_output(answers, arguments.resume, "--json or --answers")
    from opdlm.evals.compare import check_decodings, load_pair, usual_decodings
    from opdlm.evals.graders import confinement_for
    from opdlm.evals.original import original_of
    from opdlm.evals.suites.run import evaluate_suites
    from opdlm.models.sampled_hash import sampled_hash

    check_decodings(decodings, **settings)
    data, tests = _tests(arguments)
    asked = [problem for _, problems in tests for problem in problems]
    within = confinement_for(asked, allow_unconfined_code=arguments.allow_unconfined_code)
    if within is not None:
        print(within, file=sys.stderr)
    against = arguments.against or original_of(arguments.model)
    student, ar_model = load_pair(arguments.model, against, arguments.device, arguments.dtype)
    chosen = tuple(decodings) or usual_decodings(student.defaults.decoding, student.model.geometry)
    about = {"model": arguments.model, "against": str(against), "decodings": list(chosen), "settings": settings}
    about |= {"suites": _about(tests, data), "versions": versions()}
    about[WEIGHTS] = {"model": sampled_hash(student.model), "against": sampled_hash(ar_model)}
    if complete:  # which settings and weights its answers are of is not known any more
        about = {name: value for name, value in about.items() if name not in ("settings", WEIGHTS)}
    names = {"": str(against), **dict.fromkeys(chosen, str(arguments.model))}
    if answers is None:
        keeping = unkept()
    else:
        keeping = finished(answers, tests, names) if complete else growing(answers, about)
    with answering(make_console(stderr=True)) as show, keeping as (kept, keep):

        def named(one: GradedAnswer) -> None:
            keep(one.model_copy(update={"model": names[one.decoding]}))

        comparison = evaluate_suites(
            student,
            ar_model,
            tests,
            chosen,
            batch_size=arguments.batch_size,
            kept=kept,
            on_progress=show,
            on_answer=named,
            allow_unconfined_code=arguments.allow_unconfined_code,
            **settings,
        )
        comparison = comparison.model_copy(update={"model": str(arguments.model), "against": str(against)})
        if arguments.json:  # before the answers are called complete, so that --resume can make up for it
            write_json(Path(arguments.json), {**comparison.to_json(), **about})
    _show(comparison, tests, answers)
    return 0


def _lacks_numbers(arguments: Namespace) -> bool:
    return arguments.json is not None and not Path(arguments.json).exists()


def _tests(arguments: Namespace) -> "tuple[dict[str, str], Tests]":
    """The data that the user named, by suite, and each suite with its problems."""
    from opdlm.evals.suites.suite import load
    from opdlm.evals.suites.table import suites_named

    suites = suites_named([name for text in arguments.suite for name in text.split(",") if name])
    data = _data(arguments.data or (), [suite.name for suite in suites])
    return data, [(suite, load(suite, data.get(suite.name), arguments.limit)) for suite in suites]


def _data(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """`["svamp=FILE"]`, or `["FILE"]` where there is one suite only, by suite."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if len(names) == 1 and not (equals and name in names):
            name, source = names[0], text
        if name not in names or not source:
            raise UsageError(
                f"--data {text!r} names none of the suites; write NAME=FILE, NAME one of {', '.join(names)}"
            )
        if name in found:
            raise UsageError(f"--data names the suite {name} twice; leave one out")
        found[name] = source
    return found


def _about(tests: "Tests", data: dict[str, str]) -> dict[str, Any]:
    """What was asked, and by which rules."""
    return {
        suite.name: {
            "source": suite.source,
            "data": data.get(suite.name, suite.hub.name if suite.hub else "a package's"),
            "problems": len(problems),
            "sha256": hashlib.sha256(json.dumps([repr(one) for one in problems]).encode()).hexdigest(),
            "max_new_tokens": suite.max_new_tokens,
        }
        for suite, problems in tests
    }


def _show(comparison: Comparison, tests: "Tests", answers: Path | None) -> None:
    console = make_console()
    console.print(suite_table(comparison))
    known = {row.family: row.n for row in comparison.teacher.families}
    for suite, problems in tests:
        if suite.known_only:
            text = f"{suite.name}: the original knows {known.get(suite.name, 0)} of {len(problems)}; these count"
            console.print(text, markup=False, soft_wrap=True)
    for hint in empty_hints([comparison.teacher, *comparison.students]):
        console.print(f"note: {hint}", markup=False, soft_wrap=True)
    if answers is not None:
        console.print(f"every answer is in {answers}", markup=False, soft_wrap=True)
