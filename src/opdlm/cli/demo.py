"""`opdlm demo`: the whole story on the model that ships with the package."""

import itertools
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opdlm.cli.convert import how_to_continue
from opdlm.cli.options import Parser
from opdlm.cli.outputs import check_apart, check_writable
from opdlm.cli.progress import OnProgress, answering
from opdlm.cli.sampler import Sampler
from opdlm.cli.signals import Ending
from opdlm.cli.tables import side_by_side
from opdlm.cli.terminal import duration, make_console, quiet_libraries
from opdlm.cli.views import ConversionView
from opdlm.config import ConvertSettings, as_text
from opdlm.errors import ConfigError
from opdlm.records.evaluation import Comparison, empty_hints
from opdlm.tiny import QUESTIONS

if TYPE_CHECKING:
    from rich.console import Console

    from opdlm.distill.loop import Trainer
    from opdlm.evals.problem import Problem
    from opdlm.records.metrics import StepMetrics

_DESCRIPTION = """
Everything in one go, on a CPU and without the network: take the small autoregressive model that ships with the package,
check that the adapted model equals it, convert it in both ways, by on-policy distillation and without loss (watch one
answer change on the way), compare original and conversions on questions that none of them saw, one at a time and many
at once, and write OUTPUT/report.html and OUTPUT/evaluation.json. The lossless conversion is in OUTPUT/lossless.
"""
_EXAMPLES = ("opdlm demo", "opdlm demo --quick --output quick-demo")
_FOLDER = "opdlm-demo"
_LOSSLESS = "lossless"  # folder inside the demo's
_QUICK = 10  # a quick demo does a tenth
_ONE_BY_ONE = 8  # of the questions, one in so many is also asked at batch size 1


@dataclass(frozen=True)
class Compared:
    """One conversion and its original: many questions in batches, and some of them one by one."""

    batched: Comparison
    single: Comparison


def parser() -> Parser:
    """The command's flags."""
    made = Parser("demo", _DESCRIPTION, _EXAMPLES, "[options]")
    made.add_argument("--output", metavar="DIR", help="new folder (default: opdlm-demo, or opdlm-demo-2 and so on)")
    made.add_argument("--quick", action="store_true", help="a tenth of the training and of the questions")
    made.add_argument(
        "--recipe", default="demo", help="of the distillation: name of a recipe, or a .toml file (default: demo)"
    )
    made.add_argument(
        "--lossless-recipe",
        default="demo-lossless",
        metavar="RECIPE",
        help="of the lossless conversion (default: demo-lossless)",
    )
    made.add_argument("--model", help="another autoregressive model, made with the same tokenizer and chat template")
    made.add_argument("--per-family", type=int, default=100, metavar="N", help="questions of each task (default: 100)")
    made.add_argument("--resume", action="store_true", help="continue a demo that was stopped")
    made.add_argument("--picture", metavar="FILE", help="save what was printed as an .svg picture")
    return made


def run(arguments: Namespace) -> int:
    """Convert, compare, report; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    recipes = (arguments.recipe, arguments.lossless_recipe)
    check_apart({"--picture": arguments.picture}, recipes, (arguments.model, arguments.output))
    if arguments.picture is not None:
        check_writable(Path(arguments.picture))
    quiet_libraries()
    output = Path(arguments.output or (_FOLDER if arguments.resume else _free_folder()))
    with Ending() as ending:
        try:
            _story(arguments, output)
        except KeyboardInterrupt:
            quick = " --quick" if arguments.quick else ""
            print(how_to_continue(output, f"opdlm demo{quick} --resume --output {output}"))
            return ending.exit_code
    return 0


def _free_folder() -> str:
    """The usual folder, or one beside it: an earlier demo stays as it is."""
    names = itertools.chain([_FOLDER], (f"{_FOLDER}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not Path(name).exists())


def _story(arguments: Namespace, output: Path) -> None:
    from opdlm.core.types import Geometry
    from opdlm.evals.compare import usual_decodings
    from opdlm.records.run_folder import RunFolder
    from opdlm.report.html import REPORT, write_report
    from opdlm.tiny.families import evaluation_set

    began = time.perf_counter()
    distilled = _settings(arguments, arguments.recipe, output)
    lossless = _settings(arguments, arguments.lossless_recipe, output / _LOSSLESS)
    problems = evaluation_set(max(2, arguments.per_family // (_QUICK if arguments.quick else 1)))
    console = make_console(record=arguments.picture is not None)
    note = ConversionView(console).note
    if arguments.output is None and output.name != _FOLDER:
        note(f"{_FOLDER} is there already; this demo goes to {output}")
    note(f"original: {arguments.model or 'the small model that ships with opdlm'}")
    note("\n1. on-policy distillation: blocks of masks, several tokens a forward at some loss")
    student = _converted(distilled, problems[0], console, arguments.resume)
    note("\n2. lossless: an adapter drafts, the original's own weights verify; the text stays the same")
    drafting = _converted(lossless, problems[0], console, arguments.resume)

    note("\nall answer the same new questions ...")
    geometry = Geometry(distilled.block_size, distilled.prediction, distilled.context)
    usual = usual_decodings(distilled.usual_decoding, geometry)
    with answering(make_console(stderr=True)) as show:
        exact = _compared(drafting, lossless, problems, (_decoding(lossless),), show)
        lossy = _compared(student, distilled, problems, usual, show)
    seconds = time.perf_counter() - began
    for settings, compared in ((lossless, exact), (distilled, lossy)):
        folder = RunFolder(Path(settings.output))
        cost = folder.logged()[-1].total
        folder.keep_evaluation(compared.batched.model_copy(update={"conversion": cost, "seconds": seconds}))
    report = write_report([output, output / _LOSSLESS], output / REPORT)
    some = len(problems[::_ONE_BY_ONE])
    title = f"{len(problems)} new questions in batches of {distilled.rollout_batch}, {some} of them one by one"
    named = (("lossless", exact), ("distilled", lossy))
    console.print(side_by_side([(name, one.batched, one.single) for name, one in named], title))
    told = (*_exactly(exact), *_verdict(lossy.batched, _decoding(distilled)))
    for line in (*told, *_costs((distilled, lossless), seconds)):
        note(line)
    if arguments.quick:
        note("this was a tenth of the training: too little for good models; leave --quick out to see them")
    note(f'the report is {report}. Next:\n  opdlm generate {drafting} "{QUESTIONS[0]}" --watch')
    note(f'  opdlm generate {student} "{QUESTIONS[0]}" --watch')
    if arguments.picture is not None:
        console.save_svg(arguments.picture, title="opdlm demo")


def _settings(arguments: Namespace, recipe: str, output: Path) -> ConvertSettings:
    """The recipe's settings for this demo, or those of the run that is continued."""
    from opdlm.distill.api import resolve
    from opdlm.records.run_folder import RunFolder
    from opdlm.tiny.weights import ar_model_path

    if arguments.resume and output.exists():
        return RunFolder.found(output).settings()
    model = arguments.model or str(ar_model_path())
    settings = resolve(recipe=recipe, model=model, output=str(output))
    if settings.rollouts is None:
        raise ConfigError(f"recipe {recipe} does not set `rollouts`; the demo needs their number, add it")
    if not arguments.quick:
        return settings
    return settings.model_copy(update={"rollouts": max(1, settings.rollouts // _QUICK)})


def _decoding(settings: ConvertSettings) -> str:
    return as_text(settings.usual_decoding)


def _converted(settings: ConvertSettings, asked: "Problem", console: "Console", resumed: bool) -> Path:
    """The folder of the model: of a new run, or of one that is gone on with if it had begun."""
    from opdlm.distill import api
    from opdlm.records.run_folder import RunFolder
    from opdlm.tiny.families import mixed

    folder, view = RunFolder(Path(settings.output)), ConversionView(console)
    sampler = Sampler(asked, view, settings)

    def start(trainer: "Trainer", difference: float) -> None:
        view.start(trainer, difference)
        sampler.start(trainer)

    def step(metrics: "StepMetrics") -> None:
        view.step(metrics)
        sampler.step(metrics)

    with view:
        if resumed and folder.path.exists():
            model = api.resume(folder.path, on_start=start, on_step=step)
        else:
            assert settings.rollouts is not None
            count = settings.rollouts * settings.prompts_per_rollout
            prompts = [problem.prompt for problem in itertools.islice(mixed(settings.seed, "conversion"), count)]
            model = api.run(settings, prompts, on_start=start, on_step=step)
    folder.keep_sample(sampler.finished(model))
    if (worth := folder.kept_worth()) is not None:
        view.worth(worth)
    return model


def _compared(
    model: Path, settings: ConvertSettings, problems: "Sequence[Problem]", decodings: Sequence[str], show: OnProgress
) -> Compared:
    import opdlm

    asked = ((problems, settings.rollout_batch), (problems[::_ONE_BY_ONE], 1))
    batched, single = (
        opdlm.evaluate(
            model,
            settings.model,
            some,
            decodings,
            max_new_tokens=settings.response_length.end,
            batch_size=batch_size,
            device=settings.device,
            dtype="float32",
            on_progress=show,
        )
        for some, batch_size in asked
    )
    return Compared(batched, single)


def _exactly(compared: Compared) -> list[str]:
    """What the lossless conversion is worth beside the original."""
    (student,), teacher = compared.batched.students, compared.batched.teacher
    (alone,), before = compared.single.students, compared.single.teacher
    return [
        f"lossless: {student.same_text} of {student.total.n} answers are the original's, letter for letter, with "
        f"{alone.tokens_per_forward:.2f} tokens per forward one by one",
        f"tokens per second, of the original's: {alone.tokens_per_second / before.tokens_per_second:.2f} one by one, "
        f"{student.tokens_per_second / teacher.tokens_per_second:.2f} in batches of {compared.batched.batch_size}",
    ]


def _verdict(comparison: Comparison, decoding: str) -> list[str]:
    """The student as it decodes by default, against its teacher: better or worse, faster or slower."""
    teacher = comparison.teacher
    student = next(one for one in comparison.students if one.decoding == decoding)
    better = "as good as" if student.accuracy >= teacher.accuracy else "worse than"
    faster = "faster" if student.tokens_per_second > teacher.tokens_per_second else "slower"
    line = (
        f"distilled: the student, {decoding}, is {better} its teacher ({student.accuracy:.1%} right against "
        f"{teacher.accuracy:.1%}) and {faster} here ({student.tokens_per_second:,.0f} tokens/s against "
        f"{teacher.tokens_per_second:,.0f})"
    )
    return [line, *(f"note: {hint}" for hint in empty_hints([teacher, *comparison.students]))]


def _costs(runs: Sequence[ConvertSettings], seconds: float) -> list[str]:
    from opdlm.records.run_folder import RunFolder

    lines = []
    for settings in runs:
        total = RunFolder(Path(settings.output)).logged()[-1].total
        lines.append(f"{settings.method}: {total.tokens_trained:,} tokens in {duration(total.seconds)} of training")
    return [*lines, f"{duration(seconds)} in all"]
