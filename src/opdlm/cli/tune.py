"""`opdlm tune`: the fastest decoding that loses no more than you allow, as the model's new default."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdlm.cli.options import Parser, add_device, add_trust, flag
from opdlm.cli.outputs import check_apart, check_writable, write_json
from opdlm.cli.tables import tuning_table
from opdlm.cli.terminal import make_console, quiet_libraries
from opdlm.cli.versions import versions
from opdlm.config import GenerationSettings, as_text, settings_from
from opdlm.errors import UsageError
from opdlm.records.tuning import Trial, Tuning

if TYPE_CHECKING:
    from opdlm.evals.tuning import Measure
    from opdlm.sampling.api import DiffusionLM

_DESCRIPTION = """
Try commit rules and thresholds on texts that the model was not trained on, find the fastest decoding that loses at
most --max-drop, and make it the model's default. With --problems (as for eval) the loss is in accuracy, in percentage
points; with --prompts it is in agreement, the share of tokens that are the original's own choice. Both are means over
all texts (the mean of eval is over families), and are compared with one token a step. The first line of the table is
what is chosen: the most tokens per second at --batch-size, on this machine. It is written into generation_config.json
with its evidence; the old file stays beside it. A lossless model loses nothing by `verified`, so there the number of
drafts is chosen by speed.
"""
_EXAMPLES = (
    "opdlm tune run --problems held_out.jsonl --max-drop 1%",
    "opdlm tune run --prompts held_out.jsonl --decoding prefix --decoding checked --dry-run",
)
_LIMIT = 100
_FEWEST = 30
"""Texts below which nothing is written: any decoding looks as good as any other."""


def parser() -> Parser:
    """The command's flags."""
    made = Parser("tune", _DESCRIPTION, _EXAMPLES, "MODEL (--problems FILE | --prompts FILE) [--max-drop 1%%]")
    made.add_argument("model", nargs="?", help="folder of a converted model, or of the run that made it")
    made.add_argument("--problems", metavar="FILE", help="records with prompt, answer and family, as for eval")
    made.add_argument("--prompts", metavar="FILE", help="prompts, as for convert; best those that were not trained on")
    made.add_argument("--prompts-column", metavar="NAME", help="with --prompts: column of the texts")
    made.add_argument("--prompt-tokens", type=int, metavar="N", help="with --prompts: most tokens of each")
    made.add_argument("--against", metavar="AR_MODEL", help="with --prompts: the original; left out: as for eval")
    made.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help=f"the first N (default: {_LIMIT})")
    made.add_argument("--max-drop", default="1%", metavar="P", help="largest loss, such as 1%% or 0.01 (default: 1%%)")
    made.add_argument(
        "--decoding",
        action="append",
        metavar="KIND",
        help="tried instead of the usual ones: `prefix` (several thresholds) or `prefix:0.97`; repeat for several",
    )
    made.add_argument("--batch-size", type=int, default=1, metavar="N", help="rows at once, as you will use it (1)")
    made.add_argument("--max-new-tokens", default="256", metavar="N", help="longest text (default: 256)")
    made.add_argument("--dry-run", action="store_true", help="show the table and write nothing into the model")
    made.add_argument("--json", metavar="FILE", help="write all numbers to FILE")
    made.add_argument("--allow-unconfined-code", action="store_true", help="as for eval")
    add_device(made)
    add_trust(made)
    return made


def run(arguments: Namespace) -> int:
    """Searches, prints the table, writes the choice."""
    max_drop, settings = _check(arguments)
    quiet_libraries()
    from opdlm.checkpoints.tuned import FILE, own_folder, write_decoding
    from opdlm.evals.tuning import ladders_for, raced, reference_of, search
    from opdlm.models.devices import dtype_name
    from opdlm.sampling.api import load

    folder = None if arguments.dry_run else own_folder(arguments.model)
    student = load(arguments.model, arguments.device, arguments.dtype, pack=True)
    console, progress = make_console(), make_console(stderr=True)
    ladders = ladders_for(student, arguments.decoding or ())
    measure, about = _measure(arguments, student, settings)
    reference = reference_of(student)

    def show(trial: Trial) -> None:
        text = f"{trial.decoding}: {about['measure']} {trial.mean_quality:.1%}, {trial.tokens_per_second:,.0f} tokens/s"
        progress.print(text, markup=False, soft_wrap=True)

    trials = search(measure, reference, ladders, max_drop, show)
    tuning = Tuning(
        **about,
        reference=reference,
        trials=tuple(trials),
        max_drop=max_drop,
        batch_size=arguments.batch_size,
        dtype=dtype_name(student.model.dtype),
        versions=versions(),
        before=as_text(student.defaults.decoding),
    )
    tuning = tuning.model_copy(update={"trials": tuple(raced(trials, tuning.in_order(), measure))})
    console.print(tuning_table(tuning, f"{arguments.model}: {tuning.texts} texts from {tuning.data}"))
    for note in _notes(tuning):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if arguments.json:
        write_json(Path(arguments.json), tuning.to_json())
    if folder is not None and tuning.texts < _FEWEST:
        said = f"nothing was written: {tuning.texts} texts decide nothing; give at least {_FEWEST}"
        console.print(said, markup=False, soft_wrap=True)
    elif folder is not None:
        backup = write_decoding(folder, tuning.chosen, tuning.evidence())
        said = f"{tuning.chosen} is the default now (before: {tuning.before}); to undo: mv {backup} {folder / FILE}"
        console.print(said, markup=False, soft_wrap=True)
    return 0


def _check(arguments: Namespace) -> tuple[float, dict[str, Any]]:
    """The largest drop and the settings of the texts, before any model is loaded."""
    if not arguments.model:
        raise UsageError("tune needs MODEL, the folder of a converted model; name it")
    if bool(arguments.problems) == bool(arguments.prompts):
        raise UsageError("give either --problems or --prompts: texts that the model was not trained on")
    for name in ("limit", "batch_size", "prompt_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"{flag(name)} must be at least 1; give a larger one")
    foreign = ("prompts_column", "prompt_tokens", "against") if arguments.problems else ("allow_unconfined_code",)
    unused = next((name for name in foreign if getattr(arguments, name)), None)
    if unused is not None:
        own = "--problems" if arguments.problems else "--prompts"
        raise UsageError(f"{flag(unused)} does nothing with {own}; leave one of the two out")
    for decoding in arguments.decoding or ():
        settings_from(GenerationSettings, {"decoding": decoding})
    inputs = (arguments.problems, arguments.prompts)
    check_apart({"--json": arguments.json}, inputs, (arguments.model, arguments.against))
    if arguments.json is not None:
        check_writable(Path(arguments.json))
    checked = settings_from(GenerationSettings, {"max_new_tokens": arguments.max_new_tokens})
    return _share(arguments.max_drop), {"max_new_tokens": checked.max_new_tokens}


def _share(text: str) -> float:
    """`1%` and `0.01` are the same."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"--max-drop is {text!r}; give a share from 0 to 1, such as 1% or 0.01")
    return value


def _measure(
    arguments: Namespace, student: "DiffusionLM", settings: dict[str, Any]
) -> "tuple[Measure, dict[str, Any]]":
    """How a decoding is tried, and what is said of the texts."""
    from opdlm.data.prompts import load_prompts
    from opdlm.evals.problem_files import load_problems
    from opdlm.evals.tuning import by_accuracy, by_agreement, original_for
    from opdlm.models.tokens import encode_prompt
    from opdlm.sampling.api import check_context

    if arguments.problems:
        problems = load_problems(arguments.problems)[: arguments.limit]
        prompts = [encode_prompt(student.tokenizer, problem.prompt) for problem in problems]
        measure = by_accuracy(
            student,
            problems,
            settings,
            batch_size=arguments.batch_size,
            allow_unconfined_code=arguments.allow_unconfined_code,
        )
    else:
        texts = load_prompts(arguments.prompts, arguments.prompts_column, arguments.limit)
        prompts = [encode_prompt(student.tokenizer, text, arguments.prompt_tokens) for text in texts]
        original = original_for(student, arguments.model, arguments.against)
        measure = by_agreement(student, original, prompts, settings, batch_size=arguments.batch_size)
    check_context(prompts, settings["max_new_tokens"], student.model.max_length, student.model.geometry.block_size)
    name = "accuracy" if arguments.problems else "agreement"
    return measure, {"measure": name, "texts": len(prompts), "data": arguments.problems or arguments.prompts}


def _notes(tuning: Tuning) -> list[str]:
    """What the choice rests on, where it rests on little."""
    notes = []
    if tuning.chosen == tuning.reference:
        notes.append("nothing that loses as little is faster than one token a step here")
    elif not tuning.shown(tuning.trial(tuning.chosen)):
        notes.append(
            f"{tuning.texts} texts cannot show that {tuning.chosen} loses at most {tuning.max_drop:.1%}: the drop may "
            "be as large as its interval says; give more texts to be sure"
        )
    return notes
