"""`opdlm convert`: on-policy distillation of an autoregressive model into a block-diffusion one."""

from argparse import SUPPRESS, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdlm.cli.options import Parser, add_settings, flag, given
from opdlm.cli.signals import Ending
from opdlm.cli.terminal import duration, make_console, quiet_libraries
from opdlm.cli.views import ConversionView
from opdlm.config import CHANGEABLE, ConvertSettings, refused
from opdlm.errors import UsageError
from opdlm.parallel import environment
from opdlm.recipes import settings_of_all

_DESCRIPTION = """
Turn MODEL, an autoregressive decoder, into a block-diffusion model: it answers the prompts itself, block by block, and
learns from the original model's opinion of every state that it really visited. The result is OUTPUT/model, a Hugging
Face folder. OUTPUT also holds the settings, the metrics and the checkpoints; stop with Ctrl-C whenever you like and
continue with --resume. Defaults are those of the recipe for models of this size, or of the one that --recipe names;
flags replace them one by one.
"""
_EXAMPLES = (
    "opdlm convert Qwen/Qwen3-0.6B --prompts prompts.jsonl --output run --response-length.end 512",
    "opdlm convert Qwen/Qwen3-0.6B --lossless --prompts prompts.jsonl --output run",
    "opdlm convert --resume --output run",
)


def parser() -> Parser:
    """The command's flags: those of ConvertSettings, and how to run it."""
    made = Parser("convert", _DESCRIPTION, _EXAMPLES, "MODEL --prompts FILE --output DIR [settings]")
    made.add_argument("model", nargs="?", default=SUPPRESS, help="folder, .gguf file or hub name of the AR model")
    made.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="DIR",
        help="continue the run in DIR (or --output), with its settings; flags may change these: "
        + ", ".join(map(flag, CHANGEABLE)),
    )
    made.add_argument(
        "--lossless",
        action="store_true",
        help="an adapter that drafts and unchanged weights that check: exactly the original's text, in fewer forwards",
    )
    made.add_argument("--profile", action="store_true", help="print at the end where the seconds went")
    aliases = {"lora_rank": "--lora"}
    add_settings(made, ConvertSettings, without={"model"}, aliases=aliases, by_recipe=settings_of_all())
    return made


def run(arguments: Namespace) -> int:
    """Convert or resume; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    with Ending() as ending:
        return _run(arguments, ending)


def _run(arguments: Namespace, ending: Ending) -> int:
    resuming = arguments.resume is not None
    settings = given(arguments, ConvertSettings)
    if arguments.lossless:
        if resuming or "recipe" in settings:
            raise UsageError("--lossless stands for --recipe lossless in a new run; leave out --recipe and --resume")
        settings["recipe"] = "lossless"
    output, changes = _resumed(arguments.resume, settings) if resuming else (settings.get("output", ""), {})
    quiet_libraries()
    from opdlm.distill import api
    from opdlm.recipes import load_recipe

    view = ConversionView(make_console(quiet=not environment.speaks()))
    try:
        with view:
            if resuming:
                model = api.resume(output, on_start=view.start, on_step=view.step, on_note=view.note, **changes)
            else:
                recipe = load_recipe(settings["recipe"]) if settings.get("recipe") else {}
                _check_complete({**recipe, **settings})  # before the model is looked at, to choose a recipe
                chosen = api.resolve(**settings)
                if not settings.get("recipe"):
                    view.note(f"recipe {chosen.recipe}, by the size of the model; --recipe names another")
                model = api.run(chosen, on_start=view.start, on_step=view.step, on_note=view.note)
    except KeyboardInterrupt:
        if environment.speaks():
            print(how_to_continue(Path(output), f"opdlm convert --resume --output {output}"))
        return ending.exit_code
    _summary(view, model, arguments.profile)
    return 0


def _check_complete(settings: Mapping[str, Any]) -> None:
    """UsageError if one of the three that have no default is missing."""
    for name in ("model", "prompts", "output"):
        if not settings.get(name):
            own = "; the model writes some itself with opdlm prompts MODEL --output FILE" if name == "prompts" else ""
            raise UsageError(f"no {name} given; use opdlm convert MODEL --prompts FILE --output DIR{own}")


def how_to_continue(output: Path, command: str) -> str:
    """What to say after Ctrl-C: the checkpoint that is there, and how to continue from it."""
    from opdlm.records.run_folder import RunFolder

    if not (output / "config.toml").is_file():
        return "stopped before the first rollout; nothing was written"
    checkpoint = RunFolder(output).latest()
    where = f"the newest checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    what = "continue" if checkpoint else "begin again"
    return f"stopped; {where}. To {what}: {command}"


def _resumed(folder: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The folder of the run, and what is to change of its settings; most changes would make it another run."""
    changes = {name: value for name, value in settings.items() if name not in ("output", "model")}
    if (name := refused(changes)) is not None:
        raise UsageError(
            f"--resume continues with the run's own settings; leave out {flag(name)} (it may change "
            f"{', '.join(map(flag, CHANGEABLE))})"
        )
    output = settings.get("output") or folder or settings.get("model", "")
    if not output:
        raise UsageError("no run given; name its folder: opdlm convert --resume --output DIR")
    return output, changes


def _summary(view: ConversionView, model: Path, profile: bool) -> None:
    from opdlm.records.run_folder import RunFolder

    run = RunFolder(model.parent)
    if view.last:
        total = view.last.total
        view.note(
            f"trained on {total.tokens_trained:,} response tokens in {duration(total.seconds)}; "
            f"now {view.last.tokens_per_forward:.2f} tokens per forward in rollouts"
        )
    if (worth := run.kept_worth()) is not None:
        view.worth(worth)
    if (best := run.kept_best()) is not None:
        rollout, validations = run.rollouts_begun(best), {one.rollout: one.validation for one in run.logged()}
        if (validation := validations[rollout]) is not None:
            view.note(f"best agreement: {validation.agreement:.0%} after rollout {rollout}; that model is {run.best}")
    if profile:
        view.note("\n".join(view.profile()))
    if name := run.settings().push_to_hub:
        view.note(f"uploaded to https://huggingface.co/{name}")
    view.note(f"the model is {model}. Next:")
    view.note(f'  opdlm generate {model} "..." --watch')
    view.note(f"  opdlm eval {model} --against {run.settings().model} --problems FILE.jsonl")
    view.note(f"  opdlm report {run.path}")
