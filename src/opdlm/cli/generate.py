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

if TYPE_CHECKING:
    from opdlm.sampling.api import GenerationOutput

_DESCRIPTION = """
Answer PROMPT with a converted model. A prompt is one user message where the model has a chat template, plain text
otherwise; "-" reads it from the standard input. MODEL is the folder of a run, of a model, or a hub name; without it the
small model that ships with the package answers. What you do not set is as the model was saved.
"""
_EXAMPLES = (
    'opdlm generate run "What is 12 + 30?" --watch',
    'opdlm generate run "Sort these words from a to z: pear fig apple" --decoding dynamic:0.8 --json',
)


def parser() -> Parser:
    """The command's flags: those of GenerationSettings, and what to show."""
    made = Parser("generate", _DESCRIPTION, _EXAMPLES, "[MODEL] PROMPT [settings]")
    made.add_argument("model", nargs="?", help="folder or hub name of a converted model; left out: the package's own")
    made.add_argument("prompt", nargs="?", help='the text to answer, or "-" to read it from the standard input')
    show = made.add_mutually_exclusive_group()
    show.add_argument("--watch", action="store_true", help="show the text while it is denoised")
    show.add_argument("--json", action="store_true", help="print one line of JSON: text, tokens, forwards, seconds")
    made.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (default)")
    add_settings(made, GenerationSettings)
    return made


def run(arguments: Namespace) -> int:
    """Writes one response to the standard output."""
    settings = given(arguments, GenerationSettings)
    settings_from(GenerationSettings, settings)
    name, prompt = _model_and_prompt(arguments)
    quiet_libraries()
    from opdlm.cli.watch import DraftView
    from opdlm.models.tokens import encode_prompt
    from opdlm.playground.weights import student_path
    from opdlm.sampling.api import load

    model = load(name or student_path(), device=arguments.device)
    ids = encode_prompt(model.tokenizer, prompt)
    view = DraftView(make_console(), model.tokenizer, model.tokens.mask_token_id) if arguments.watch else None
    began = time.perf_counter()
    try:
        output = model.generate([ids], streamer=view, **settings)
    finally:
        if view is not None:
            view.end()  # gives the cursor back, also after an error
    seconds = time.perf_counter() - began
    if view is not None:
        return 0
    text = model.decode(output)[0]
    if arguments.json:
        print(json.dumps(_numbers(output, text, seconds), ensure_ascii=False))
    else:
        print(text)
    return 0


def _model_and_prompt(arguments: Namespace) -> tuple[str | None, str]:
    """A single word is the prompt: the package's own model answers it."""
    name, prompt = arguments.model, arguments.prompt
    if prompt is None:
        name, prompt = None, name
    if prompt is None or (name is None and Path(prompt).is_dir()):
        raise UsageError(f'no prompt given; write one behind the model: opdlm generate {prompt or "MODEL"} "..."')
    return name, sys.stdin.read().strip() if prompt == "-" else prompt


def _numbers(output: "GenerationOutput", text: str, seconds: float) -> dict[str, object]:
    rollout = output.rollout
    return {
        "text": text,
        "tokens": int((rollout.length - rollout.prompt_length).sum()),
        "forwards": int(rollout.forwards.sum()),
        "tokens_per_forward": round(output.tokens_per_forward, 4),
        "seconds": round(seconds, 4),
    }
