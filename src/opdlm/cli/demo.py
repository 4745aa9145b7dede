"""`opdlm demo`: the whole story on the model that ships with the package."""

import itertools
import json
import time
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdlm.cli.comparison import greedy, table, usual_decodings
from opdlm.cli.convert import how_to_continue
from opdlm.cli.evaluate import evaluate_models, write_json
from opdlm.cli.options import Parser
from opdlm.cli.terminal import duration, make_console, quiet_libraries
from opdlm.cli.views import ConversionView
from opdlm.config import ConvertSettings, as_text
from opdlm.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdlm.distill.loop import Trainer
    from opdlm.playground.problems import Problem

_DESCRIPTION = """
Everything in one go, on a CPU and without the network: take the small autoregressive model that ships with the package,
check that the adapted model equals it, convert it by on-policy distillation (watch one answer change on the way),
compare teacher and student on questions that neither saw, and write OUTPUT/report.html and OUTPUT/evaluation.json.
"""
_EXAMPLES = ("opdlm demo", "opdlm demo --quick --output quick-demo")
_SAMPLES_SHOWN = 8
_QUICK = 10  # a quick demo does a tenth


def parser() -> Parser:
    """The command's flags."""
    made = Parser("demo", _DESCRIPTION, _EXAMPLES, "[options]")
    made.add_argument("--output", default="opdlm-demo", metavar="DIR", help="new folder (default: opdlm-demo)")
    made.add_argument("--quick", action="store_true", help="a tenth of the training and of the questions")
    made.add_argument("--recipe", default="demo", help="name of a recipe, or a .toml file (default: demo)")
    made.add_argument("--model", help="another autoregressive model, made with the same tokenizer and chat template")
    made.add_argument("--per-family", type=int, default=100, metavar="N", help="questions of each task (default: 100)")
    made.add_argument("--resume", action="store_true", help="continue a demo that was stopped")
    made.add_argument("--picture", metavar="FILE", help="save what was printed as an .svg picture")
    return made


def run(arguments: Namespace) -> int:
    """Convert, compare, report; 130 after Ctrl-C."""
    from opdlm.cli.main import INTERRUPTED

    quiet_libraries()
    output = Path(arguments.output)
    try:
        _story(arguments, output)
    except KeyboardInterrupt:
        quick = " --quick" if arguments.quick else ""
        print(how_to_continue(output, f"opdlm demo{quick} --resume --output {output}"))
        return INTERRUPTED
    return 0


def _story(arguments: Namespace, output: Path) -> None:
    from opdlm.playground.families import evaluation_set
    from opdlm.report.html import write_report

    began = time.perf_counter()
    settings = _settings(arguments, output)
    problems = evaluation_set(max(2, arguments.per_family // (_QUICK if arguments.quick else 1)))
    view = ConversionView(make_console(record=arguments.picture is not None))
    view.note(f"teacher: {arguments.model or 'the small model that ships with opdlm'}\n")
    sampler = _Sampler(problems[0], view, settings)
    with view:
        model = _convert(settings, output if arguments.resume else None, view, sampler)
    sampler.save(model, output / "rollouts" / "sample.json")
    view.note("\nteacher and student answer the same new questions ...")
    comparison = evaluate_models(
        str(model),
        settings.model,
        problems,
        usual_decodings(settings.usual_decoding.kind),
        max_new_tokens=settings.response_length.end,
        batch_size=settings.rollout_batch,
        device=settings.device,
    )
    total = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["total"]
    seconds = time.perf_counter() - began
    write_json(output / "evaluation.json", {**comparison.to_json(), "conversion": total, "demo_seconds": seconds})
    report = write_report(output)
    view.console.print(table(comparison, f"{len(problems)} new questions, batches of {settings.rollout_batch}"))
    view.note(
        f"{total['tokens_rolled_out']:,} tokens written in rollouts, {total['tokens_trained']:,} trained on, "
        f"{duration(total['seconds'])} of training, {duration(seconds)} in all"
    )
    view.note(f'the report is {report}, the model {model}. Next:\n  opdlm generate {model} "What is 7 + 8?" --watch')
    if arguments.picture is not None:
        view.console.save_svg(arguments.picture, title="opdlm demo")


def _settings(arguments: Namespace, output: Path) -> ConvertSettings:
    """The recipe's settings for this demo, or those of the run that is continued."""
    from opdlm.distill.api import resolve
    from opdlm.distill.run_folder import RunFolder
    from opdlm.playground.weights import arlm_path

    if arguments.resume:
        return RunFolder.open(output).settings()
    model = arguments.model or str(arlm_path())
    settings = resolve(recipe=arguments.recipe, model=model, output=str(output))
    if settings.rollouts is None:
        raise ConfigError(f"recipe {arguments.recipe} does not set `rollouts`; the demo needs their number, add it")
    if not arguments.quick:
        return settings
    return settings.model_copy(update={"rollouts": max(1, settings.rollouts // _QUICK)})


def _convert(settings: ConvertSettings, resumed: Path | None, view: ConversionView, sampler: "_Sampler") -> Path:
    """The conversion, or the rest of the one in the folder `resumed`."""
    from opdlm.distill import api
    from opdlm.playground.families import mixed

    def start(trainer: "Trainer", difference: float) -> None:
        view.start(trainer, difference)
        sampler.start(trainer)

    def step(line: dict[str, Any]) -> None:
        view.step(line)
        sampler.step(line)

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
        resumed = trainer.run is not None and trainer.run.latest() is not None
        self._show("so far" if resumed else "before")

    def step(self, line: dict[str, Any]) -> None:
        """Every now and then: what it answers now."""
        every = max(1, line["rollouts"] // _SAMPLES_SHOWN)
        if line["rollout"] % every == 0 or line["rollout"] == line["rollouts"]:
            self._show(f"after rollout {line['rollout']}")

    def _show(self, when: str) -> None:
        from opdlm.models.tokens import encode_prompt
        from opdlm.sampling.engine import Engine

        assert self.trainer is not None
        assert self.tokenizer is not None
        engine = Engine(
            self.trainer.student, self.trainer.tokens, greedy(self.decoding, self.settings.response_length.end)
        )
        written = engine.generate([encode_prompt(self.tokenizer, self.problem.prompt)])
        begin, end = int(written.prompt_length[0]), int(written.length[0])
        text = str(self.tokenizer.decode(written.input_ids[0, begin:end], skip_special_tokens=True))
        flat = " ".join(text.split())
        rate = (end - begin) / max(1, int(written.forwards[0]))
        self.view.note(f"{when:>18}: {flat[:100]}  [{rate:.1f} tokens/forward]")

    def save(self, model: Path, target: Path) -> None:
        """The finished student's answer with its commit rounds, for the report. Raises StorageError."""
        from opdlm.cli.watch import decode_inside
        from opdlm.models.tokens import encode_prompt
        from opdlm.sampling.api import load

        student = load(model, device=self.settings.device)
        ids = encode_prompt(student.tokenizer, self.problem.prompt)
        wanted = greedy(self.decoding, self.settings.response_length.end)
        rollout = student.generate([ids], **wanted.model_dump()).rollout.to("cpu")
        texts = partial(decode_inside, student.tokenizer, student.tokens.mask_token_id)
        response = range(len(ids), int(rollout.length[0]))
        tokens = [
            {"position": i, "text": texts([int(rollout.input_ids[0, i])]), "round": int(rollout.commit_round[0, i])}
            for i in response
        ]
        about = {"prompt": self.problem.prompt, "answer": self.problem.answer, "decoding": self.decoding}
        size = {"block_size": student.model.geometry.block_size, "forwards": int(rollout.forwards[0])}
        try:
            target.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"{target.parent} could not be made ({error.strerror}); free some space") from error
        write_json(target, {**about, **size, "tokens": tokens})
