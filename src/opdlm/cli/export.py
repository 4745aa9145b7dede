"""`opdlm export`: a converted model in the form that another engine loads."""

from argparse import Namespace

from opdlm.cli.options import Parser, add_trust
from opdlm.cli.terminal import quiet_libraries
from opdlm.errors import UsageError

_DESCRIPTION = """
Write MODEL in the form that another engine loads. uno: the gate of a lossless model (converted with --lossless
--window-form noise) as a peft adapter, which SGLang serves beside the unchanged base model.
"""
_EXAMPLES = (
    "opdlm export run --format uno --output uno-adapter",
    "opdlm export run/model --output uno-adapter --base Qwen/Qwen3-0.6B",
)


def parser() -> Parser:
    """The command's flags."""
    made = Parser("export", _DESCRIPTION, _EXAMPLES, "MODEL --format uno --output DIR")
    made.add_argument("model", nargs="?", help="folder of a finished run, or of a converted model")
    made.add_argument("--format", choices=("uno",), default="uno", help="what to write (default: uno)")
    made.add_argument("--output", metavar="DIR", help="new folder")
    made.add_argument("--base", metavar="MODEL", help="name or path of the base (default: as the model's folder says)")
    add_trust(made)
    return made


def run(arguments: Namespace) -> int:
    """Writes the folder, prints how it is served."""
    if arguments.model is None or arguments.output is None:
        raise UsageError("no model or no output given; use opdlm export MODEL --format uno --output DIR")
    quiet_libraries()
    from opdlm.checkpoints.export_uno import export_uno
    from opdlm.evals.original import original_of
    from opdlm.sampling.api import load

    model = load(arguments.model, device="cpu").model
    base = arguments.base or str(original_of(arguments.model))
    folder = export_uno(model, base, arguments.output)
    print(f"the adapter is {folder}; serve it with:")
    print(f"  python -m sglang.launch_server --model-path {base} --speculative-algorithm UNO \\")
    print(f"    --uno-lora-path {folder} --speculative-num-draft-tokens {getattr(model, 'window', 0) + 1}")
    return 0
