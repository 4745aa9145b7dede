"""`opdlm COMMAND ...`: finds the command, runs it, and turns the user's mistakes into one line.

Every command is a module with `parser()` and `run(arguments)`. Neither torch nor transformers is imported before `run`.
"""

import errno
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import opdlm
from opdlm.checkpoints.trust import remote_code
from opdlm.cli import processor
from opdlm.cli.terminal import take_any_character
from opdlm.errors import OpdlmError, StorageError, UsageError
from opdlm.parallel import environment

COMMANDS = {
    "demo": ("opdlm.cli.demo", "the whole story on the model that ships with the package, on a CPU in minutes"),
    "doctor": ("opdlm.cli.doctor", "before any training: is a model convertible, what does it cost, what to type"),
    "prompts": ("opdlm.cli.prompts", "prompts for a conversion, written by the model itself"),
    "convert": ("opdlm.cli.convert", "turn an autoregressive model into a block-diffusion one"),
    "attach": ("opdlm.cli.attach", "the gate of a lossless model on a fine-tune of its base, without training"),
    "generate": ("opdlm.cli.generate", "write text with a converted model, and watch it being denoised"),
    "serve": ("opdlm.cli.serve", "a server with the OpenAI API"),
    "export": ("opdlm.cli.export", "a converted model in the form that another engine loads"),
    "push": ("opdlm.cli.push", "upload a converted model to the Hugging Face Hub"),
    "report": ("opdlm.cli.report", "one page about a run, or about several: costs, quality, speed, texts to play"),
    "eval": ("opdlm.cli.evaluate", "accuracy retained and speed, against the autoregressive model"),
    "lm-eval": ("opdlm.cli.lm_eval", "the field's tests, by EleutherAI's lm-evaluation-harness"),
    "tune": ("opdlm.cli.tune", "the fastest decoding that loses no more than you allow, as the new default"),
}
INTERRUPTED = 130
CLOSED_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, the error's own (2 for a mistake in the input), 130 after Ctrl-C, 141 after a closed pipe."""
    words = list(sys.argv[1:] if argv is None else argv)
    take_any_character()
    try:
        return _flushed(words)
    except OpdlmError as error:
        if environment.speaks() or not error.common:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:
        print(f"error: {_of_the_system(error)}", file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _flushed(words: list[str]) -> int:
    """A closed pipe shows here, not in the interpreter's last act."""
    try:
        code = _dispatch(words)
    except SystemExit:  # argparse has printed its help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _of_the_system(error: OSError) -> str:
    """One line for a file that cannot be read or written."""
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space and try again"
    reason = " ".join((error.strerror or str(error)).split())
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{reason}; check that the path is right and that you may use it"


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"opdlm {opdlm.__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}; {hint}")
    command = import_module(COMMANDS[name][0])
    arguments = command.parser().read(rest)
    if "torch" not in sys.modules:  # else it would come too late
        processor.share()
    with remote_code(getattr(arguments, "trust_remote_code", False)):
        return command.run(arguments)


def _help() -> str:
    commands = "\n".join(f"  {name:10}{summary}" for name, (_, summary) in COMMANDS.items())
    return f"""\
usage: opdlm COMMAND ...

Turns a pretrained autoregressive language model into a block-diffusion one by on-policy distillation: the same
weights, several tokens a forward pass.

commands:
{commands}

options:
  --version   the version
  --help      this text; `opdlm COMMAND --help` for a command's own

examples:
  opdlm demo
  opdlm doctor Qwen/Qwen3-0.6B"""


if __name__ == "__main__":
    sys.exit(main())
