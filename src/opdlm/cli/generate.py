"""`opdlm generate`: text from a converted model."""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from opdlm.cli.options import Parser, add_settings, given
from opdlm.cli.terminal import make_console, quiet_libraries
from opdlm.config import GenerationSettings, settings_from
from opdlm.errors import UsageError
from opdlm.tiny import QUESTIONS

if TYPE_CHECKING:
    from opdlm.sampling.api import GenerationOutput

_DESCRIPTION = """
Answer PROMPT with a converted model. A prompt is one user message where the model has a chat template, plain text
otherwise; "-" reads it from the standard input. MODEL is the folder of a run, of a model, or a hub name. Without it the
model that ships with the package answers: it has 1.3 million parameters and knows short sums in words, sorting and
counting words or numbers, small Python functions and some invented facts, as in the first three examples, and nothing
else. What you do not set is as the model was saved. With --infill a text is
completed in its gaps, and nothing is written behind it.
"""
_EXAMPLES = (
    f'opdlm generate "{QUESTIONS[0]}" --watch',
    f'opdlm generate "{QUESTIONS[1]}" --decoding dynamic:0.8 --json',
    f'opdlm generate "{QUESTIONS[2]}"',
    'opdlm generate run "What is the capital of France?" --max-new-tokens 64',
    'opdlm generate run --infill "The capital of France is [[MASK:2]], on the Seine."',
)


def parser() -> Parser:
    """The command's flags: those of GenerationSettings, and what to show."""
    made = Parser("generate", _DESCRIPTION, _EXAMPLES, "[MODEL] PROMPT [settings]")
    made.add_argument("model", nargs="?", help="folder or hub name of a converted model; left out: the package's own")
    made.add_argument("prompt", nargs="?", help='the text to answer, or "-" to read it from the standard input')
    made.add_argument("--infill", metavar="TEXT", help="fill the gaps of TEXT: [[MASK:12]] stands for twelve tokens")
    show = made.add_mutually_exclusive_group()
    show.add_argument("--watch", action="store_true", help="show the text while it is denoised")
    show.add_argument("--json", action="store_true", help="print one line of JSON: text, tokens, forwards, seconds")
    made.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (default)")
    made.add_argument("--compile", action="store_true", help="torch.compile: half a minute is lost first, then faster")
    add_settings(made, GenerationSettings)
    return made


def run(arguments: Namespace) -> int:
    """Writes one response, or the filled text, to the standard output."""
    settings = given(arguments, GenerationSettings)
    settings_from(GenerationSettings, settings)
    name, prompt = _model_and_prompt(arguments)
    quiet_libraries()
    from opdlm.cli.watch import DraftView
    from opdlm.models.tokens import encode_prompt
    from opdlm.sampling.api import load
    from opdlm.tiny.weights import student_path

    model = load(name or student_path(), device=arguments.device, compile=arguments.compile)
    gaps = None if arguments.infill is None else model.gaps(prompt)
    view = DraftView(make_console(), model.tokenizer, model.tokens.mask_token_id, gaps) if arguments.watch else None
    began = time.perf_counter()
    try:
        if gaps is not None:
            output = model.fill([gaps.ids], view, **settings)
        else:
            output = model.generate([encode_prompt(model.tokenizer, prompt)], streamer=view, **settings)
    finally:
        if view is not None:
            view.end()  # gives the cursor back, also after an error
    seconds = time.perf_counter() - began
    if view is not None:
        return 0
    text = model.decode(output)[0] if gaps is None else gaps.filled(output.sequences[0].tolist())
    print(json.dumps(_numbers(output, text, seconds), ensure_ascii=False) if arguments.json else text)
    return 0


def _model_and_prompt(arguments: Namespace) -> tuple[str | None, str]:
    """A single word is the prompt: the package's own model answers it. With --infill it is the model."""
    name, prompt = arguments.model, arguments.prompt
    if arguments.infill is not None:
        if prompt is not None:
            raise UsageError("--infill takes the place of the prompt; give one of the two")
        return name, arguments.infill
    if prompt is None:
        name, prompt = None, name
    if prompt is None or (name is None and Path(prompt).is_dir()):
        raise UsageError(f'no prompt given; write one behind the model: opdlm generate {prompt or "MODEL"} "..."')
    return name, sys.stdin.read().strip() if prompt == "-" else prompt


def _numbers(output: "GenerationOutput", text: str, seconds: float) -> dict[str, object]:
    """What --json prints: the text, its trajectory, and what it took."""
    trajectory = output.trajectories()[0]
    return {
        "text": text,
        "tokens": len(trajectory.token_ids),
        "tokens_per_forward": round(trajectory.tokens_per_forward, 4),
        "seconds": round(seconds, 4),
        **trajectory.model_dump(mode="json", exclude={"decoding", "prompt", "answer", "texts"}),
    }
