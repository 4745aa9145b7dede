"""`opdlm eval`: what a converted model kept of the original, and how fast it is."""

import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from opdlm.cli.options import Parser
from opdlm.cli.tables import comparison_table, likelihood_table
from opdlm.cli.terminal import make_console, quiet_libraries
from opdlm.config import GenerationSettings, settings_from
from opdlm.errors import StorageError, UsageError

_DESCRIPTION = """
Let MODEL, a converted model, and AR_MODEL, the original that it was made from, answer the same problems, and print
accuracy by family, the share of accuracy retained, tokens per forward and tokens per second. MODEL is decoded
once for each --decoding. Without names the models that ship with the package are compared, without --problems on the
package's own tasks. A problems file has a JSON object a line: "prompt", "answer", "family" (maths: the number behind
"####"; recall: a word of the first sentence; edit: the first line; code: "answer" names a function, "calls" lists pairs
of a call and its expected repr).

With --prompts instead, both continue texts, and the table says how many bits per byte AR_MODEL needs for what was
written: for text that has no right answer.
"""
_EXAMPLES = (
    "opdlm eval run --against Qwen/Qwen3-0.6B --problems gsm8k.jsonl --max-new-tokens 512",
    "opdlm eval --per-family 50 --decoding static --decoding dynamic:0.85 --json numbers.json",
)


def parser() -> Parser:
    """The command's flags."""
    made = Parser("eval", _DESCRIPTION, _EXAMPLES, "[MODEL] [--against AR_MODEL] [--problems FILE] [settings]")
    made.add_argument("model", nargs="?", help="folder or hub name of a converted model; left out: the package's own")
    made.add_argument(
        "--against", metavar="AR_MODEL", help="the original; left out: the one that ships with the package"
    )
    made.add_argument("--problems", metavar="FILE", help=".jsonl with prompt, answer and family")
    made.add_argument("--prompts", metavar="FILE", help="texts to continue, as for convert: bits per byte, no accuracy")
    made.add_argument("--prompts-column", metavar="NAME", help="with --prompts: column of the texts")
    made.add_argument("--prompt-limit", type=int, default=100, metavar="N", help="with --prompts: how many (100)")
    made.add_argument("--prompt-tokens", type=int, metavar="N", help="with --prompts: most tokens of each")
    made.add_argument("--temperature", type=float, default=1.0, help="with --prompts (default: 1)")
    made.add_argument(
        "--decoding",
        action="append",
        metavar="KIND",
        help="repeat for several (default: four, from one token a step to many)",
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
    for decoding in decodings:  # a wrong one is an error before any model is loaded
        settings_from(GenerationSettings, {"decoding": decoding})
    if arguments.prompts:
        return _run_likelihood(arguments, decodings)
    quiet_libraries()
    import opdlm
    from opdlm.evals.problem_files import load_problems
    from opdlm.tiny.families import evaluation_set
    from opdlm.tiny.weights import ar_model_path, student_path

    problems = load_problems(arguments.problems) if arguments.problems else evaluation_set(arguments.per_family)
    with progress(make_console(stderr=True)) as show:
        comparison = opdlm.evaluate(
            arguments.model or student_path(),
            arguments.against or ar_model_path(),
            problems,
            decodings,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            device=arguments.device,
            on_progress=show,
        )
    title = f"{len(problems)} problems, batches of {arguments.batch_size}"
    make_console().print(comparison_table(comparison, title))
    if arguments.json:
        own = "the package's own"  # its path means nothing elsewhere
        names = {"model": arguments.model or own, "against": arguments.against or own}
        write_json(Path(arguments.json), comparison.model_copy(update=names).to_json())
    return 0


def _run_likelihood(arguments: Namespace, decodings: Sequence[str]) -> int:
    """Texts continued by both, scored by the original."""
    quiet_libraries()
    if not (arguments.model and arguments.against):
        raise UsageError("--prompts needs MODEL and --against AR_MODEL; name both")
    from opdlm.data.prompts import load_prompts
    from opdlm.evals.likelihood import evaluate_likelihood

    texts = load_prompts(arguments.prompts, arguments.prompts_column, arguments.prompt_limit)
    rows = evaluate_likelihood(
        arguments.model,
        arguments.against,
        texts,
        decodings,
        prompt_tokens=arguments.prompt_tokens,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    title = f"{len(texts)} texts continued at temperature {arguments.temperature:g}, scored by the original"
    make_console().print(likelihood_table(rows, title))
    if arguments.json:
        about = {name: getattr(arguments, name) for name in ("model", "against", "prompts", "temperature")}
        write_json(Path(arguments.json), {**about, "likelihood": [asdict(row) for row in rows]})
    return 0


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A line that says who has answered how much."""
    with console.status("answering") as status:
        yield lambda name, done, total: status.update(f"{name}: {done} of {total} answers")


def write_json(path: Path, content: Any) -> None:
    """One JSON file. Raises StorageError where it cannot be written."""
    try:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}); choose another place") from error
