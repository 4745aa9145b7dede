"""`opdlm eval`: what a converted model kept of the original, and how fast it is."""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdlm.cli.comparison import Comparison, compare, greedy, table, usual_decodings
from opdlm.cli.options import Parser
from opdlm.cli.terminal import make_console, quiet_libraries
from opdlm.errors import CheckpointError, PromptsError, StorageError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from opdlm.evals.grading import Problem
    from opdlm.sampling.api import DiffusionLM

_FAMILIES = ("maths", "recall", "edit", "code")
_DESCRIPTION = """
Let MODEL, a converted model, and ARLM, the autoregressive model that it was made from, answer the same problems, and
print accuracy by family, the share of accuracy retained, tokens per forward and tokens per second. MODEL is decoded
once for each --decoding. Without names the models that ship with the package are compared, without --problems on the
package's own tasks. A problems file has a JSON object a line: "prompt", "answer", "family" (maths: the number behind
"####"; recall: a word of the first sentence; edit: the first line; code: "answer" names a function, "calls" lists pairs
of a call and its expected repr).

With --prompts instead, both continue texts, and the table says how many bits per byte ARLM needs for what was written:
for text that has no right answer.
"""
_EXAMPLES = (
    "opdlm eval run --against Qwen/Qwen3-0.6B --problems gsm8k.jsonl --max-new-tokens 512",
    "opdlm eval --per-family 50 --decoding static --decoding dynamic:0.85 --json numbers.json",
)


@dataclass(frozen=True)
class FileProblem:
    """One line of a problems file; the fields are those of `opdlm.evals.grading.Problem`."""

    family: str
    prompt: str
    answer: str
    calls: tuple[tuple[str, str], ...] = ()
    tag: str = ""
    response: str = ""


def parser() -> Parser:
    """The command's flags."""
    made = Parser("eval", _DESCRIPTION, _EXAMPLES, "[MODEL] [--against ARLM] [--problems FILE] [settings]")
    made.add_argument("model", nargs="?", help="folder or hub name of a converted model; left out: the package's own")
    made.add_argument("--against", metavar="ARLM", help="the original; left out: the one that ships with the package")
    made.add_argument("--problems", metavar="FILE", help=".jsonl with prompt, answer and family")
    made.add_argument("--prompts", metavar="FILE", help="texts to continue, as for convert: bits per byte, no accuracy")
    made.add_argument("--prompts-column", metavar="NAME", help="with --prompts: column of the texts")
    made.add_argument("--prompt-limit", type=int, default=100, metavar="N", help="with --prompts: how many (100)")
    made.add_argument("--prompt-tokens", type=int, metavar="N", help="with --prompts: only the first N tokens of each")
    made.add_argument("--temperature", type=float, default=1.0, help="with --prompts (default: 1)")
    made.add_argument(
        "--decoding",
        action="append",
        metavar="KIND",
        help="repeat for several (default: four, from one token a round to many)",
    )
    made.add_argument(
        "--per-family", type=int, default=100, metavar="N", help="problems of each of the package's tasks (default 100)"
    )
    made.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    made.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows decoded at once (default: 32)")
    made.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (default)")
    made.add_argument("--json", metavar="FILE", help="write all numbers to FILE")
    return made


def run(arguments: Namespace) -> int:
    """Evaluates, prints the table, writes the numbers."""
    for name in ("per_family", "batch_size", "max_new_tokens", "prompt_limit", "prompt_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1; give a larger one")
    decodings = tuple(dict.fromkeys(arguments.decoding or ()))
    for decoding in decodings:
        greedy(decoding, arguments.max_new_tokens)  # a wrong one is an error before any model is loaded
    if arguments.prompts:
        return _run_likelihood(arguments, decodings)
    problems = load_problems(arguments.problems) if arguments.problems else _playground(arguments.per_family)
    quiet_libraries()
    from opdlm.playground.weights import arlm_path, student_path

    student_name = arguments.model or str(student_path())
    arlm_name = arguments.against or str(arlm_path())
    comparison = evaluate_models(
        student_name,
        arlm_name,
        problems,
        decodings,
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    make_console().print(table(comparison, f"{len(problems)} problems, batches of {arguments.batch_size}"))
    if arguments.json:
        own = "the package's own"  # its path means nothing elsewhere
        about = {
            "model": arguments.model or own,
            "against": arguments.against or own,
            "batch_size": arguments.batch_size,
        }
        write_json(Path(arguments.json), {**about, **comparison.to_json()})
    return 0


def _run_likelihood(arguments: Namespace, decodings: Sequence[str]) -> int:
    """Texts continued by both, scored by the original."""
    from opdlm.cli.likelihood import likelihood_table, likelihoods, likelihoods_to_json
    from opdlm.distill.data import load_prompts

    quiet_libraries()
    if not (arguments.model and arguments.against):
        raise UsageError("--prompts needs MODEL and --against ARLM; name both")
    texts = load_prompts(arguments.prompts, arguments.prompts_column, arguments.prompt_limit)
    from opdlm.models.tokens import encode_prompt
    from opdlm.sampling.api import check_context

    student, arlm = load_pair(arguments.model, arguments.against, arguments.device)
    prompts = [encode_prompt(student.tokenizer, text)[: arguments.prompt_tokens] for text in texts]
    geometry = student.model.geometry
    check_context(prompts, arguments.max_new_tokens, student.model.max_length, geometry.block_size)
    rows = likelihoods(
        student,
        arlm,
        prompts,
        decodings or usual_decodings(student.defaults.decoding.kind),
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        batch_size=arguments.batch_size,
    )
    title = f"{len(prompts)} texts continued at temperature {arguments.temperature:g}, scored by the original"
    make_console().print(likelihood_table(rows, title))
    if arguments.json:
        about = {name: getattr(arguments, name) for name in ("model", "against", "prompts", "temperature")}
        write_json(Path(arguments.json), {**about, **likelihoods_to_json(rows)})
    return 0


def load_pair(student_name: str, arlm_name: str, device: str) -> "tuple[DiffusionLM, PreTrainedModel]":
    """A converted model and its original. Raises CheckpointError if one is not made from the other."""
    from opdlm.models.checkpoint import load_arlm
    from opdlm.models.devices import pick_device
    from opdlm.sampling.api import load

    student = load(student_name, device=device)
    arlm, tokenizer = load_arlm(arlm_name, device=pick_device(device))
    vocabulary = student.tokenizer.get_vocab()
    if any(vocabulary.get(token) != index for token, index in tokenizer.get_vocab().items()):
        raise CheckpointError(
            f"{student_name} and {arlm_name} have different vocabularies; name the model that the first was made from"
        )
    return student, arlm


def evaluate_models(
    student_name: str,
    arlm_name: str,
    problems: "Sequence[Problem]",
    decodings: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    device: str,
) -> Comparison:
    """Loads both models and compares them, with a line of progress on a terminal; errors as in `load_pair`.

    Args:
        decodings: none: the usual ones of the student.
    """
    student, arlm = load_pair(student_name, arlm_name, device)
    console = make_console(stderr=True)
    with console.status("answering") as status:

        def show(name: str, done: int, total: int) -> None:
            status.update(f"{name}: {done} of {total} answers")

        return compare(
            student,
            arlm,
            problems,
            decodings or usual_decodings(student.defaults.decoding.kind),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            on_progress=show,
        )


def load_problems(source: str) -> list[FileProblem]:
    """Problems of a .jsonl file. Raises PromptsError: missing, empty, or a line that is no problem."""
    path = Path(source)
    if not path.is_file():
        raise PromptsError(f"problems file {source} does not exist; check the path")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise PromptsError(f"{source} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise PromptsError(f"{source} holds no problems; give a file with at least one")
    return [_problem(line, f"{source}, line {number}") for number, line in lines]


def _problem(line: str, where: str) -> FileProblem:
    from opdlm.evals.grading import extract_number

    try:
        fields: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptsError(f"{where} is not JSON ({error.msg}, column {error.colno}); correct it") from error
    missing = (
        [name for name in ("prompt", "answer", "family") if name not in fields] if isinstance(fields, dict) else []
    )
    if not isinstance(fields, dict) or missing:
        raise PromptsError(f"{where} needs prompt, answer and family, missing: {', '.join(missing) or 'all'}; add them")
    family, answer, calls = fields["family"], str(fields["answer"]), fields.get("calls", [])
    if family not in _FAMILIES:
        raise PromptsError(f"{where} has the family {family!r}; use one of {', '.join(_FAMILIES)}")
    if family == "maths" and extract_number(f"#### {answer}") is None:
        raise PromptsError(f"{where} has the answer {answer!r}, which is no number; correct it")
    if not _are_pairs(calls) or (family == "code" and not calls):
        raise PromptsError(f"{where} needs calls: a list of [call, repr of its result] pairs; correct it")
    pairs = tuple((call, expected) for call, expected in calls)
    return FileProblem(family, str(fields["prompt"]), answer, pairs, tag=str(fields.get("tag", "")))


def _are_pairs(calls: Any) -> bool:
    if not isinstance(calls, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in calls):
        return False
    return all(isinstance(part, str) for pair in calls for part in pair)


def _playground(per_family: int) -> "Sequence[Problem]":
    from opdlm.playground.families import evaluation_set

    return evaluation_set(per_family)


def write_json(path: Path, content: Any) -> None:
    """One JSON file. Raises StorageError where it cannot be written."""
    try:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}); choose another place") from error
