"""`opdlm generate`: text from a converted model."""

import re
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdlm.cli.batch import write_file
from opdlm.cli.chat import Chat
from opdlm.cli.constraints import add_constraints, read_constraints
from opdlm.cli.options import Parser, add_device, add_settings, add_trust, given
from opdlm.cli.outputs import check_apart
from opdlm.cli.partial import check_output
from opdlm.cli.terminal import make_console, print_json, quiet_libraries
from opdlm.config import CONSTRAINTS, GenerationSettings, as_text, settings_from
from opdlm.errors import PromptsError, UsageError
from opdlm.tiny import QUESTIONS

if TYPE_CHECKING:
    from opdlm.records.trajectory import Trajectory
    from opdlm.sampling.api import DiffusionLM

_DESCRIPTION = """
Answer PROMPT with a converted model. A prompt is one user message where the model has a chat template, plain text
otherwise; "-" reads it from the standard input. Without PROMPT, a terminal is asked for one after another, as a chat;
anything else is read as the prompt. MODEL is the folder of a run, of a model, or a hub name. Without it the
model that ships with the package answers: it has 1.3 million parameters and knows short sums in words, sorting and
counting words or numbers, small Python functions and some invented facts, as in the first three examples, and nothing
else. What you do not set is as the model was saved. With --infill a text is
completed in its gaps, and nothing is written behind it. With --prompts every row of a file is answered into another
file.
"""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # USER/NAME
_EXAMPLES = (
    f'opdlm generate "{QUESTIONS[0]}" --watch',
    f'opdlm generate "{QUESTIONS[1]}" --decoding dynamic:0.8 --json',
    f'opdlm generate "{QUESTIONS[2]}"',
    'opdlm generate run "What is the capital of France?" --max-new-tokens 64',
    "opdlm generate run --prompts prompts.jsonl --output responses.jsonl",
    'opdlm generate run "Who wrote Emma?" --json-schema answer.schema.json',
    'opdlm generate run --infill "The capital of France is [[MASK:2]], on the Seine."',
)


def parser() -> Parser:
    """The command's flags: those of GenerationSettings, what to answer, and what to show."""
    made = Parser("generate", _DESCRIPTION, _EXAMPLES, "[MODEL] [PROMPT] [settings]")
    made.add_argument("model", nargs="?", help="folder or hub name of a converted model; left out: the package's own")
    made.add_argument("prompt", nargs="?", help='the text to answer, or "-" to read it from the standard input')
    made.add_argument("--infill", metavar="TEXT", help="fill the gaps of TEXT: [[MASK:12]] stands for twelve tokens")
    show = made.add_mutually_exclusive_group()
    show.add_argument("--watch", action="store_true", help="show the text while it is denoised, or drafted and checked")
    show.add_argument("--json", action="store_true", help="print one line of JSON: text, tokens, forwards, seconds")
    add_device(made)
    add_trust(made)
    made.add_argument("--compile", action="store_true", help="torch.compile: half a minute is lost first, then faster")
    file = made.add_argument_group("a file of prompts")
    file.add_argument("--prompts", metavar="FILE", help="answer every row of this file (as for `opdlm convert`)")
    file.add_argument("--output", metavar="FILE", help="a .jsonl file for its rows, each with its response")
    file.add_argument("--prompts-column", metavar="TEXT", help="the column with the prompts")
    file.add_argument("--prompt-limit", metavar="N", type=int, help="only the first N rows")
    file.add_argument("--batch-size", metavar="N", type=int, default=32, help="rows written at once (32)")
    file.add_argument("--resume", action="store_true", help="go on where an earlier call with this output ended")
    add_settings(
        made, GenerationSettings, without=CONSTRAINTS, title="settings (default: as the model was saved)", as_saved=True
    )
    add_constraints(made)
    return made


def run(arguments: Namespace) -> int:
    """Writes one response, the filled text, a file of responses, or asks for one prompt after another."""
    settings = read_constraints(given(arguments, GenerationSettings))
    settings_from(GenerationSettings, settings)
    name, prompt = _what_to_answer(arguments)
    quiet_libraries()
    from opdlm.sampling.api import load
    from opdlm.tiny.weights import student_path

    there, compiled = (arguments.device, arguments.dtype), arguments.compile
    model = load(name or student_path(), *there, compile=compiled, pack=not compiled)
    if arguments.prompts is not None:
        write_file(model, name or "", arguments, settings)
    elif prompt is None:
        Chat(model, settings, arguments.watch).run()
    else:
        _write_one(model, prompt, arguments, settings)
    return 0


def _write_one(model: "DiffusionLM", prompt: str, arguments: Namespace, settings: dict[str, Any]) -> None:
    from opdlm.cli.watch import view_of
    from opdlm.models.tokens import encode_prompt
    from opdlm.sampling.recording import Recorder

    gaps = None if arguments.infill is None else model.gaps(prompt)
    decoding = (model.settings(settings) if gaps is None else model.filling_settings(settings)).decoding
    view = view_of(model, make_console(), decoding, gaps) if arguments.watch else None
    recorder = Recorder() if arguments.json else None
    seen = {"streamer": recorder or view, "observer": recorder and recorder.observe}
    began = time.perf_counter()
    try:
        if gaps is not None:
            output = model.fill([gaps.ids], **seen, **settings)
        else:
            output = model.generate([encode_prompt(model.tokenizer, prompt)], **seen, **settings)
    finally:
        if view is not None:
            view.end()  # gives the cursor back, also after an error
    seconds = time.perf_counter() - began
    if arguments.infill is None and not model.decode(output)[0].strip():
        print(
            "note: the response is empty, the model stopped at once: try --hold-end, or train it longer",
            file=sys.stderr,
        )
    if settings.keys() & set(CONSTRAINTS) and not bool(output.rollout.stopped[0]):
        print("note: --max-new-tokens cut the response off before its end; allow more", file=sys.stderr)
    if view is not None:
        return
    text = model.decode(output)[0] if gaps is None else gaps.filled(output.sequences[0].tolist())
    if recorder is not None:
        trajectory = recorder.told(output.trajectories()[0]).worded(model.token_text, prompt)
        print_json(_numbers(trajectory.model_copy(update={"decoding": as_text(decoding)}), text, seconds))
    else:
        print(text)


def _what_to_answer(arguments: Namespace) -> tuple[str | None, str | None]:
    """The model, None for the package's own, and the text; None where there is no single one."""
    name, prompt = arguments.model, arguments.prompt
    if arguments.prompts is not None:
        _check_file_flags(arguments)
        return name, None
    if arguments.output is not None or arguments.resume:
        raise UsageError("--output and --resume go with a file of prompts; name it with --prompts")
    if arguments.infill is not None:
        if prompt is not None:
            raise UsageError("--infill takes the place of the prompt; give one of the two")
        return name, arguments.infill
    if prompt is None and (name is None or _is_model(name)):
        return name, _from_nobody(name, arguments)
    if prompt is None:  # a single word is the prompt: the package's own model answers it
        name, prompt = None, name
    return name, _standard_input() if prompt == "-" else prompt


def _is_model(word: str) -> bool:
    """Whether a word alone is a model, not a prompt."""
    return Path(word).is_dir() or word.lower().endswith(".gguf") or _HUB_NAME.fullmatch(word) is not None


def _check_file_flags(arguments: Namespace) -> None:
    """Before a model is loaded."""
    others = [flag for flag in ("prompt", "infill", "watch", "json") if getattr(arguments, flag)]
    if others:
        raise UsageError(f"--prompts answers the rows of a file; leave out {others[0]}")
    if arguments.output is None:
        raise UsageError("--prompts needs a file for the responses; name it with --output")
    if min(arguments.batch_size, arguments.prompt_limit or 1) < 1 or arguments.prompt_limit == 0:
        raise UsageError("--batch-size and --prompt-limit must be at least 1; give larger ones")
    check_apart({"--output": arguments.output}, (arguments.prompts,), (arguments.model,))
    check_output(Path(arguments.output), arguments.resume)


def _from_nobody(name: str | None, arguments: Namespace) -> str | None:
    """Where no prompt is given: None on a terminal, which is asked for one after another; else the standard input."""
    if sys.stdin.isatty() and not arguments.json:
        return None
    text = "" if sys.stdin.isatty() else _standard_input()
    if not text:
        raise UsageError(f'no prompt given; write one behind the model: opdlm generate {name or "MODEL"} "..."')
    return text


def _standard_input() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise PromptsError(f"the standard input is not {error.encoding} text; convert it") from error


def _numbers(trajectory: "Trajectory", text: str, seconds: float) -> dict[str, object]:
    """What --json prints: the text, its trajectory as the viewer of reports takes it, and what it took."""
    return {
        "text": text,
        "tokens": len(trajectory.token_ids),
        "tokens_per_forward": round(trajectory.tokens_per_forward, 4),
        "seconds": round(seconds, 4),
        **trajectory.model_dump(mode="json", exclude={"answer"}),
    }
