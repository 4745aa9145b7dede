"""`opdlm lm-eval`: EleutherAI's lm-evaluation-harness with converted models in it."""

import io
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from opdlm.checkpoints.trust import remote_code
from opdlm.cli.options import Parser
from opdlm.errors import MissingExtraError, UsageError

_DESCRIPTION = """
Run lm-evaluation-harness with the model kind `opdlm`. All arguments are the harness's own and go on to it; only the
defaults differ: --model opdlm, --device auto, --batch_size 32. Its other kinds work too, so that the original can be
evaluated beside the converted model: --model hf. --model_args takes pretrained=FOLDER, and after a comma: decoding
(default: the model's own), likelihood (auto, causal, sequential or bound; docs/evaluating.md says what each one means),
likelihood_samples (128), seed (0), max_length, max_gen_toks (256), dtype (auto). --gen_kwargs takes every setting of
`opdlm generate`, such as decoding=prefix:0.9. `opdlm lm-eval run --help` lists the harness's arguments, `opdlm lm-eval
ls tasks` its tasks. Needs pip install 'opdlm[lm-eval]'.
"""
_EXAMPLES = (
    "opdlm lm-eval --model_args pretrained=run --tasks gsm8k --apply_chat_template",
    "opdlm lm-eval --model_args pretrained=run,likelihood=sequential --tasks mine --include_path folder",
    "opdlm lm-eval --model hf --model_args pretrained=Qwen/Qwen3-0.6B --tasks lambada_openai",
)
_HELP = ("-h", "--help")
_DEFAULTS = {"device": "auto", "batch_size": 32}


class _Passing(Parser):
    """Takes every word: the harness reads them."""

    def read(self, words: Sequence[str]) -> Namespace:
        """The words; help of our own where it is all that is asked for."""
        if not words or words[0] in _HELP:
            self.print_help()
            raise SystemExit(0)
        return Namespace(words=list(words))


def parser() -> Parser:
    """A parser that passes everything on."""
    return _Passing("lm-eval", _DESCRIPTION, _EXAMPLES, "[run|ls|validate] [arguments of lm-evaluation-harness]")


def run(arguments: Namespace) -> int:
    """Runs the harness in this process."""
    try:
        from lm_eval._cli import HarnessCLI
    except ImportError as error:
        raise MissingExtraError(
            "lm-eval needs the evaluation harness; install it with: pip install 'opdlm[lm-eval]'"
        ) from error
    harness = HarnessCLI()
    with _as_arguments(arguments.words):
        chosen = _parsed(harness)
        if chosen.command == "run":
            _prepare(chosen)
        try:
            with remote_code(bool(getattr(chosen, "trust_remote_code", False))):
                harness.execute(chosen)
        except ValueError as error:
            if not str(error).startswith("Tasks not found"):
                raise
            raise UsageError(f"{error}; see opdlm lm-eval ls tasks, and --include_path for your own") from error
    return 0


@contextmanager
def _as_arguments(words: Sequence[str]) -> Iterator[None]:
    """The harness reads `sys.argv`, and changes it."""
    before, sys.argv = sys.argv, ["lm-eval", *words]
    try:
        yield
    finally:
        sys.argv = before


def _parsed(harness: Any) -> Namespace:
    """The harness's arguments; its complaint as our own error."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return harness.parse_args()
    except SystemExit as end:
        if not end.code:
            raise  # help
        text = complaint.getvalue().rpartition("error: ")[2].strip()
        text = text.replace("unrecognized arguments: ", "unknown flag ")
        raise UsageError(f"{text}; see opdlm lm-eval run --help") from end


def _prepare(chosen: Namespace) -> None:
    """Our defaults, our model, and what the harness would say in a traceback."""
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import setup_logging

    setup_logging()
    typed = _of_file(EvaluatorConfig.load_yaml_config, chosen.config) if chosen.config else {}
    typed |= {name: value for name, value in vars(chosen).items() if value is not None}
    if not typed.get("tasks"):
        raise UsageError("no task is named; give --tasks NAME, see opdlm lm-eval ls tasks")
    folder = typed.get("include_path")
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"--include_path: there is no folder {folder}; correct it")
    chosen.model = typed.get("model", "opdlm")
    if chosen.model == "opdlm":
        from opdlm.evals.lm_eval import register

        register()
        for name, value in _DEFAULTS.items():
            setattr(chosen, name, typed.get(name, value))


def _of_file(load: Callable[[str], dict[str, Any]], path: str) -> dict[str, Any]:
    """The settings of `--config`."""
    try:
        return load(path)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise UsageError(f"--config: {error}; correct it") from error
