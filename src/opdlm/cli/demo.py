"""`opdlm demo`: the whole story on the model that ships with the package."""

import itertools
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opdlm.cli.convert import how_to_continue
from opdlm.cli.options import Parser
from opdlm.cli.outputs import check_writable
from opdlm.cli.progress import answering
from opdlm.cli.signals import Ending
from opdlm.cli.tables import comparison_table
from opdlm.cli.terminal import duration, make_console, quiet_libraries
from opdlm.cli.views import ConversionView
from opdlm.config import ConvertSettings, as_text
from opdlm.errors import ConfigError
from opdlm.records.evaluation import empty_hints
from opdlm.tiny import QUESTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdlm.distill.loop import Trainer
    from opdlm.evals.problem import Problem
    from opdlm.records.evaluation import Comparison
    from opdlm.records.metrics import StepMetrics
    from opdlm.records.trajectory import Trajectory

_DESCRIPTION = """
Everything in one go, on a CPU and without the network: take the small autoregressive model that ships with the package,
check that the adapted model equals it, convert it by on-policy distillation (watch one answer change on the way),
compare teacher and student on questions that neither saw, and write OUTPUT/report.html and OUTPUT/evaluation.json.
"""
_EXAMPLES = ("opdlm demo", "opdlm demo --quick --output quick-demo")
_SAMPLES_SHOWN = 8
_FOLDER = "opdlm-demo"
_QUICK = 10  # a quick demo does a tenth


def parser() -> Parser:
    """The command's flags."""
    made = Parser("demo", _DESCRIPTION, _EXAMPLES, "[options]")
    made.add_argument("--output", metavar="DIR", help="new folder (default: opdlm-demo, or opdlm-demo-2 and so on)")
    made.add_argument("--quick", action="store_true", help="a tenth of the training and of the questions")
    made.add_argument("--recipe", default="demo", help="name of a recipe, or a .toml file (default: demo)")
    made.add_argument("--model", help="another autoregressive model, made with the same tokenizer and chat template")
    made.add_argument("--per-family", type=int, default=100, metavar="N", help="questions of each task (default: 100)")
    made.add_argument("--resume", action="store_true", help="continue a demo that was stopped")
    made.add_argument("--picture", metavar="FILE", help="save what was printed as an .svg picture")
    return made


def run(arguments: Namespace) -> int:
    """Convert, compare, report; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
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
    import opdlm
    from opdlm.evals.compare import usual_decodings
    from opdlm.records.run_folder import RunFolder
    from opdlm.report.html import write_report
    from opdlm.tiny.families import evaluation_set

    began = time.perf_counter()
    settings = _settings(arguments, output)
    problems = evaluation_set(max(2, arguments.per_family // (_QUICK if arguments.quick else 1)))
    view = ConversionView(make_console(record=arguments.picture is not None))
    if arguments.output is None and output.name != _FOLDER:
        view.note(f"{_FOLDER} is there already; this demo goes to {output}")
    view.note(f"teacher: {arguments.model or 'the small model that ships with opdlm'}\n")
    sampler = _Sampler(problems[0], view, settings)
    with view:
        model = _convert(settings, output if arguments.resume else None, view, sampler)
    folder = RunFolder(output)
    folder.keep_sample(sampler.finished(model))
    view.note("\nteacher and student answer the same new questions ...")
    with answering(make_console(stderr=True)) as show:
        comparison = opdlm.evaluate(
            model,
            settings.model,
            problems,
            tuple(dict.fromkeys((*usual_decodings(settings.usual_decoding.kind), sampler.decoding))),
            max_new_tokens=settings.response_length.end,
            batch_size=settings.rollout_batch,
            device=settings.device,
            on_progress=show,
        )
    total, seconds = folder.logged()[-1].total, time.perf_counter() - began
    folder.keep_evaluation(comparison.model_copy(update={"conversion": total, "seconds": seconds}))
    report = write_report(output)
    title = f"{len(problems)} new questions, batches of {settings.rollout_batch}"
    view.console.print(comparison_table(comparison, title))
    for line in _verdict(comparison, sampler.decoding):
        view.note(line)
    view.note(
        f"{total.tokens_rolled_out:,} tokens written in rollouts, {total.tokens_trained:,} trained on, "
        f"{duration(total.seconds)} of training, {duration(seconds)} in all"
    )
    if (worth := folder.kept_worth()) is not None:
        view.worth(worth)
    if arguments.quick:
        view.note("this was a tenth of the training: too little for a good student; leave --quick out to see one")
    view.note(f'the report is {report}, the model {model}. Next:\n  opdlm generate {model} "{QUESTIONS[0]}" --watch')
    if arguments.picture is not None:
        view.console.save_svg(arguments.picture, title="opdlm demo")


def _verdict(comparison: "Comparison", decoding: str) -> list[str]:
    """The student as it decodes by default, against its teacher: better or worse, faster or slower."""
    teacher = comparison.teacher
    student = next(one for one in comparison.students if one.decoding == decoding)
    better = "as good as" if student.accuracy >= teacher.accuracy else "worse than"
    faster = "faster" if student.tokens_per_second > teacher.tokens_per_second else "slower"
    line = (
        f"the student, {decoding}, is {better} its teacher ({student.accuracy:.1%} right against "
        f"{teacher.accuracy:.1%}) and {faster} here ({student.tokens_per_second:,.0f} tokens/s against "
        f"{teacher.tokens_per_second:,.0f})"
    )
    return [line, *(f"note: {hint}" for hint in empty_hints([teacher, *comparison.students]))]


def _settings(arguments: Namespace, output: Path) -> ConvertSettings:
    """The recipe's settings for this demo, or those of the run that is continued."""
    from opdlm.distill.api import resolve
    from opdlm.records.run_folder import RunFolder
    from opdlm.tiny.weights import ar_model_path

    if arguments.resume:
        return RunFolder.found(output).settings()
    model = arguments.model or str(ar_model_path())
    settings = resolve(recipe=arguments.recipe, model=model, output=str(output))
    if settings.rollouts is None:
        raise ConfigError(f"recipe {arguments.recipe} does not set `rollouts`; the demo needs their number, add it")
    if not arguments.quick:
        return settings
    return settings.model_copy(update={"rollouts": max(1, settings.rollouts // _QUICK)})


def _convert(settings: ConvertSettings, resumed: Path | None, view: ConversionView, sampler: "_Sampler") -> Path:
    """The conversion, or the rest of the one in the folder `resumed`."""
    from opdlm.distill import api
    from opdlm.tiny.families import mixed

    def start(trainer: "Trainer", difference: float) -> None:
        view.start(trainer, difference)
        sampler.start(trainer)

    def step(metrics: "StepMetrics") -> None:
        view.step(metrics)
        sampler.step(metrics)

    if resumed is not None:
        return api.resume(resumed, on_start=start, on_step=step)
    assert settings.rollouts is not None
    count = settings.rollouts * settings.prompts_per_rollout
    prompts = [problem.prompt for problem in itertools.islice(mixed(settings.seed, "conversion"), count)]
    return api.run(settings, prompts, on_start=start, on_step=step)


@dataclass
class _Sampler:
    """One question that the student answers again and again while it learns."""

    problem: "Problem"
    view: ConversionView
    settings: ConvertSettings
    tokenizer: "PreTrainedTokenizerBase | None" = None
    trainer: "Trainer | None" = None

    @property
    def decoding(self) -> str:
        """As the finished student decodes."""
        return as_text(self.settings.usual_decoding)

    def start(self, trainer: "Trainer") -> None:
        """Before the first rollout: what the untrained student answers."""
        from transformers import AutoTokenizer

        self.trainer, self.tokenizer = trainer, AutoTokenizer.from_pretrained(self.settings.model)
        self.view.note(f"question: {self.problem.prompt}   (right: {self.problem.answer})")
        self._show("so far" if trainer.checkpoint is not None else "before")

    def step(self, metrics: "StepMetrics") -> None:
        """Every now and then: what it answers now."""
        every = max(1, metrics.rollouts // _SAMPLES_SHOWN)
        if metrics.rollout % every == 0 or metrics.rollout == metrics.rollouts:
            self._show(f"after rollout {metrics.rollout}")

    def _show(self, when: str) -> None:
        from opdlm.evals.compare import greedy
        from opdlm.models.tokens import encode_prompt
        from opdlm.sampling.api import DiffusionLM

        assert self.trainer is not None
        assert self.tokenizer is not None
        settings = greedy(self.decoding, self.settings.response_length.end)
        student = DiffusionLM(self.trainer.pair.student, self.tokenizer, settings, self.trainer.pair.tokens)
        output = student.generate([encode_prompt(self.tokenizer, self.problem.prompt)])
        flat = " ".join(student.decode(output)[0].split())
        self.view.note(f"{when:>18}: {flat[:100]}  [{output.tokens_per_forward:.1f} tokens/forward]")

    def finished(self, model: Path) -> "Trajectory":
        """The finished student's answer with its commit steps, for the report."""
        from opdlm.evals.compare import greedy
        from opdlm.models.tokens import decode_inside, encode_prompt
        from opdlm.sampling.api import load

        student = load(model, device=self.settings.device)
        settings = greedy(self.decoding, self.settings.response_length.end)
        output = student.generate([encode_prompt(student.tokenizer, self.problem.prompt)], **settings.model_dump())
        made = output.trajectories()[0]
        texts = [decode_inside(student.tokenizer, student.tokens.mask_token_id, [token]) for token in made.token_ids]
        about = {"prompt": self.problem.prompt, "answer": self.problem.answer, "decoding": self.decoding}
        return made.model_copy(update={**about, "texts": tuple(texts)})
