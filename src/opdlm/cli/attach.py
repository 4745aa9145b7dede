"""`opdlm attach`: the gate of one lossless model on another model."""

from argparse import Namespace

from opdlm.cli.options import Parser, add_trust
from opdlm.cli.terminal import quiet_libraries
from opdlm.errors import UsageError

_DESCRIPTION = """
Put the gate of a lossless model on MODEL, an AR model with layers of the same sizes: a fine-tune of the gate's base, or
the same model from another file. There is no training. OUTPUT is a lossless model that writes MODEL's own text: MODEL
checks every draft, whatever the gate was trained beside. `opdlm eval OUTPUT --against MODEL` says how many tokens a
forward it gives.
"""
_EXAMPLES = (
    "opdlm attach run-lossless my-fine-tune --output my-fine-tune-lossless",
    "opdlm attach run-lossless my-fine-tune --output gate --adapter-only",
)


def parser() -> Parser:
    """The command's flags."""
    made = Parser("attach", _DESCRIPTION, _EXAMPLES, "GATE MODEL --output DIR [--adapter-only]")
    made.add_argument("gate", nargs="?", help="a lossless model: folder of its run, of the model or of its gate alone")
    made.add_argument("model", nargs="?", help="the AR model: a folder, a .gguf file or a name on the hub")
    made.add_argument("--output", metavar="DIR", help="new folder")
    made.add_argument(
        "--adapter-only",
        action="store_true",
        help="write the gate alone, a few MB, with the name and hash of MODEL; else its weights too, in float32",
    )
    add_trust(made)
    return made


def run(arguments: Namespace) -> int:
    """Writes the folder, says how it is used."""
    if arguments.model is None or arguments.output is None:
        raise UsageError("no gate, model or output given; use opdlm attach GATE MODEL --output DIR")
    quiet_libraries()
    from opdlm.checkpoints.attach import attach

    folder = attach(arguments.gate, arguments.model, arguments.output, adapter_only=arguments.adapter_only)
    print(f"the lossless model is {folder}; write with it: opdlm generate {folder} --watch")
    print(f"tokens a forward, and whether its texts are the same: opdlm eval {folder} --against {arguments.model}")
    return 0
