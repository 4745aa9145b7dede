"""`opdlm eval`: what a converted model kept of the original, and how fast it is."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdlm.cli.options import Parser, add_device, add_settings, add_trust, flag, given
from opdlm.cli.outputs import check_apart, check_writable, json_lines, write_json
from opdlm.cli.progress import answering
from opdlm.cli.suites import run_suites
from opdlm.cli.tables import acceptance_lines, comparison_table, likelihood_table
from opdlm.cli.terminal import make_console, quiet_libraries
from opdlm.config import GenerationSettings, settings_from
from opdlm.errors import UsageError
from opdlm.records.evaluation import empty_hints, rounding_hints

if TYPE_CHECKING:
    from opdlm.records.evaluation import GradedAnswer, WrittenText

_DESCRIPTION = """
Let MODEL, a converted model, and AR_MODEL, the original that it was made from, answer the same problems, and print
accuracy by family, the share of accuracy retained, tokens per forward and tokens per second. MODEL is decoded
once for each --decoding. Without names the models that ship with the package are compared, without --problems on the
package's own tasks. A problems file has a JSON object a line: "prompt" (text or chat messages), "answer", "family"
(maths: the number behind the last "####"; recall: a word of the first sentence; edit: the first line; code: "answer"
names a function, "calls" lists pairs of a call and its expected repr, or "tests" has Python with asserts). Programs run
where they reach neither your files nor the network; the first line says how. Both models answer greedily, or both
sample.

With --suite instead, both take the field's own tests: gsm8k, svamp, math, humaneval, mbpp, countdown, sudoku, choice
(multiple choice by likelihood), lambada (the last word) and facts. --data names a file or hub data set in the test's
own format; an evaluation with --json goes on after an interruption with --resume.

With --prompts instead, both continue texts, at temperature 1 unless you give another, and the table says how many bits
per byte AR_MODEL needs for what was written: for text that has no right answer.
"""
_EXAMPLES = (
    "opdlm eval run --problems gsm8k.jsonl --max-new-tokens 512 --json numbers.json",
    "opdlm eval --per-family 50 --decoding static --decoding dynamic:0.85",
    "opdlm eval run --suite gsm8k,facts --data gsm8k=test.jsonl --limit 200 --json numbers.json",
)
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
_OF_PROMPTS = (
    "prompts_column",
    "prompts_config",
    "prompts_split",
    "prompts_revision",
    "prompt_limit",
    "prompt_tokens",
)
_PARTS = ("problems_config", "problems_split", "problems_revision")
_OF_PROBLEMS = ("problems", "per_family", *_PARTS)
_OF_SUITES = ("suite", "data", "limit", "resume")
_PER_FAMILY = _PROMPT_LIMIT = 100
_OWN = "the package's own"  # its path means nothing elsewhere


def parser() -> Parser:
    """The command's flags."""
    made = Parser(
        "eval",
        _DESCRIPTION,
        _EXAMPLES,
        "[MODEL] [--against AR_MODEL] [--problems FILE | --suite NAME] [settings]",
    )
    made.add_argument("model", nargs="?", help="folder or hub name of a converted model; left out: the package's own")
    made.add_argument(
        "--against", metavar="AR_MODEL", help="the original; left out: the one that MODEL's run or card names"
    )
    made.add_argument("--problems", metavar="FILE", help="records with prompt, answer and family: .jsonl, .csv, ...")
    made.add_argument(
        "--per-family", type=int, metavar="N", help="problems of each of the package's tasks (default: 100)"
    )
    made.add_argument("--problems-config", metavar="NAME", help="with --problems from the hub: configuration")
    made.add_argument("--problems-split", metavar="NAME", help="with --problems from the hub: split (default: train)")
    made.add_argument("--problems-revision", metavar="NAME", help="with --problems from the hub: branch, tag or commit")
    made.add_argument("--suite", action="append", metavar="NAME", help="the field's tests, several divided by commas")
    made.add_argument(
        "--data",
        action="append",
        metavar="[NAME=]FILE",
        help="with --suite: its problems; repeat for several suites (default: those on the hub)",
    )
    made.add_argument("--limit", type=int, metavar="N", help="with --suite: the first N problems of each")
    made.add_argument("--resume", action="store_true", help="with --suite: go on with the answers beside --json")
    made.add_argument("--prompts", metavar="FILE", help="texts to continue, as for convert: bits per byte, no accuracy")
    made.add_argument("--prompts-column", metavar="NAME", help="with --prompts: column of the texts")
    made.add_argument("--prompts-config", metavar="NAME", help="with --prompts from the hub: configuration")
    made.add_argument("--prompts-split", metavar="NAME", help="with --prompts from the hub: split (default: train)")
    made.add_argument("--prompts-revision", metavar="NAME", help="with --prompts from the hub: branch, tag or commit")
    made.add_argument("--prompt-limit", type=int, metavar="N", help="with --prompts: how many (default: 100)")
    made.add_argument("--prompt-tokens", type=int, metavar="N", help="with --prompts: most tokens of each")
    made.add_argument(
        "--decoding",
        action="append",
        metavar="KIND",
        help="repeat for several (default: some, from one token a step to many, the model's own among them)",
    )
    made.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows decoded at once (default: 32)")
    made.add_argument(
        "--allow-unconfined-code",
        action="store_true",
        help="grade programs even where this system cannot keep them from your files and network",
    )
    add_device(made)
    add_trust(made)
    made.add_argument("--json", metavar="FILE", help="write all numbers to FILE, and the answers beside it")
    made.add_argument(
        "--answers", metavar="FILE", help="write every answer or text to FILE (.jsonl; with --json: beside it)"
    )
    others = set(GenerationSettings.model_fields) - {"max_new_tokens", *_SAMPLING}
    add_settings(made, GenerationSettings, without=others)
    return made


def run(arguments: Namespace) -> int:
    """Evaluates, prints the table, writes the numbers."""
    for name in ("per_family", "batch_size", "prompt_limit", "prompt_tokens", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"{flag(name)} must be at least 1; give a larger one")
    _check_together(arguments)
    decodings = tuple(dict.fromkeys(arguments.decoding or ()))
    for decoding in decodings:  # a wrong one is an error before any model is loaded
        settings_from(GenerationSettings, {"decoding": decoding})
    typed = given(arguments, GenerationSettings).keys() - {"decoding"}
    settings = _sampling({name: getattr(arguments, name) for name in typed})
    answers = _answers_path(arguments)
    data = [name for text in arguments.data or () for name in (text, text.partition("=")[2])]
    check_apart(
        {"--json": arguments.json, "--answers": answers},
        (arguments.problems, arguments.prompts, *data),
        (arguments.model, arguments.against),
    )
    for path in (arguments.json, None if arguments.suite else answers):
        if path is not None:
            check_writable(Path(path))
    quiet_libraries()
    if arguments.suite:
        return run_suites(arguments, decodings, settings, answers)
    if arguments.prompts:
        return _run_likelihood(arguments, decodings, settings, answers)
    return _run_problems(arguments, decodings, settings, answers)


def _check_together(arguments: Namespace) -> None:
    """Raises UsageError for flags that do nothing beside the others."""
    kinds = {"--suite": _OF_SUITES, "--prompts": ("prompts", *_OF_PROMPTS), "problems": _OF_PROBLEMS}
    own = next((kind for kind in ("--suite", "--prompts") if getattr(arguments, kind[2:])), "problems")
    foreign = [name for kind, names in kinds.items() if kind != own for name in names]
    unused = next((name for name in foreign if getattr(arguments, name)), None)
    if unused is not None:
        raise UsageError(f"{flag(unused)} does nothing with {own}; leave one of the two out")
    if arguments.problems and arguments.per_family is not None:
        raise UsageError("--per-family is for the package's own tasks; leave it out with --problems")
    part = next((name for name in _PARTS if getattr(arguments, name) is not None), None)
    if part is not None and not arguments.problems:
        raise UsageError(f"{flag(part)} is for a data set of the hub; name it with --problems")


def _sampling(typed: dict[str, str]) -> dict[str, Any]:
    """What the user typed of the sampling, as numbers."""
    checked = settings_from(GenerationSettings, typed)
    return {name: getattr(checked, name) for name in typed}


def _answers_path(arguments: Namespace) -> Path | None:
    """`numbers.json` -> `numbers.answers.jsonl`, unless another was named."""
    if arguments.answers is not None:
        return Path(arguments.answers)
    numbers = Path(arguments.json) if arguments.json is not None else None
    return numbers and numbers.parent / f"{numbers.stem}.answers.jsonl"


def _run_problems(
    arguments: Namespace, decodings: Sequence[str], settings: dict[str, Any], answers: Path | None
) -> int:
    """Problems answered by both and graded."""
    import opdlm
    from opdlm.data.hub_set import HubPart
    from opdlm.evals.graders import confinement_for
    from opdlm.evals.problem_files import load_problems
    from opdlm.tiny.families import evaluation_set

    model, against = _pair(arguments)
    per_family = _PER_FAMILY if arguments.per_family is None else arguments.per_family
    part = HubPart(*(getattr(arguments, name) for name in _PARTS), holds="problems")
    problems = load_problems(arguments.problems, part) if arguments.problems else evaluation_set(per_family)
    within = confinement_for(problems, allow_unconfined_code=arguments.allow_unconfined_code)
    if within is not None:
        print(within, file=sys.stderr)
    with answering(make_console(stderr=True)) as show, _keeping(answers) as keep:
        comparison = opdlm.evaluate(
            model,
            against,
            problems,
            decodings,
            batch_size=arguments.batch_size,
            device=arguments.device,
            dtype=arguments.dtype,
            on_progress=show,
            on_answer=keep,
            allow_unconfined_code=arguments.allow_unconfined_code,
            **settings,
        )
    names = {"model": arguments.model or _OWN, "against": comparison.against if arguments.model else _OWN}
    names = names if arguments.against is None else {**names, "against": arguments.against}
    comparison = comparison.model_copy(update=names)
    temperature = settings.get("temperature", 0.0)
    title = f"{len(problems)} problems from {arguments.problems or _OWN}, batches of {arguments.batch_size}"
    title += f", temperature {temperature:g}" if temperature else ""
    title += f", {comparison.dtype}" if comparison.dtype != "float32" else ""
    console = make_console()
    console.print(comparison_table(comparison, title))
    found = (*empty_hints([comparison.teacher, *comparison.students]), *rounding_hints(comparison))
    hints = (f"note: {hint}" for hint in found)
    for line in (*acceptance_lines(comparison), *hints):
        console.print(line, markup=False, soft_wrap=True)
    if arguments.json:
        write_json(Path(arguments.json), comparison.to_json())
    if answers is not None:
        console.print(f"every answer is in {answers}", markup=False, soft_wrap=True)
    return 0


def _pair(arguments: Namespace) -> tuple[str | Path, str | Path | None]:
    """Who is compared: what was named, else the package's own; of a named model the original is looked up."""
    from opdlm.tiny.weights import ar_model_path, student_path

    if arguments.model:
        return arguments.model, arguments.against
    return student_path(), arguments.against or ar_model_path()


@contextmanager
def _keeping(path: Path | None) -> "Iterator[Callable[[GradedAnswer | WrittenText], None]]":
    """Writes each answer to the file at once, so that a stop loses none."""
    if path is None:
        yield lambda answer: None
        return
    with json_lines(path) as file:
        yield lambda answer: file.write(answer.to_json())


def _run_likelihood(
    arguments: Namespace, decodings: Sequence[str], settings: dict[str, Any], answers: Path | None
) -> int:
    """Texts continued by both, scored by the original."""
    if not arguments.model:
        raise UsageError("--prompts needs MODEL; name it")
    from opdlm.data.hub_set import HubPart
    from opdlm.data.prompts import load_prompts
    from opdlm.evals.likelihood import evaluate_likelihood
    from opdlm.evals.original import original_of

    console = make_console()
    part = HubPart(arguments.prompts_config, arguments.prompts_split, arguments.prompts_revision)
    limit = _PROMPT_LIMIT if arguments.prompt_limit is None else arguments.prompt_limit
    texts = load_prompts(
        arguments.prompts,
        arguments.prompts_column,
        limit,
        part,
        lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    against = arguments.against or original_of(arguments.model)
    settings = {"temperature": 1.0, **settings}
    with _keeping(answers) as keep:
        rows = evaluate_likelihood(
            arguments.model,
            against,
            texts,
            decodings,
            prompt_tokens=arguments.prompt_tokens,
            batch_size=arguments.batch_size,
            device=arguments.device,
            dtype=arguments.dtype,
            on_text=keep,
            **settings,
        )
    title = (
        f"{arguments.model}, made from {against}\n"
        f"{len(texts)} texts continued at temperature {settings['temperature']:g}, scored by the original"
    )
    console.print(likelihood_table(rows, title))
    if arguments.json:
        about = {"model": arguments.model, "against": against, "prompts": arguments.prompts, **settings}
        write_json(Path(arguments.json), {**about, "likelihood": [asdict(row) for row in rows]})
    if answers is not None:
        console.print(f"every text is in {answers}", markup=False, soft_wrap=True)
    return 0
