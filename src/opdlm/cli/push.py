"""`opdlm push`: a converted model to the Hugging Face Hub."""

from argparse import Namespace

from opdlm.cli.options import Parser
from opdlm.cli.terminal import quiet_libraries
from opdlm.errors import UsageError

_DESCRIPTION = """
Upload MODEL, the folder of a finished run or of its model, to the Hugging Face Hub as USER/NAME. It takes the token of
`hf auth login`. `opdlm convert --push-to-hub USER/NAME` does the same at the end of a conversion.
"""
_EXAMPLES = ("opdlm push run USER/NAME", "opdlm push run/model USER/NAME --private")


def parser() -> Parser:
    """The command's flags."""
    made = Parser("push", _DESCRIPTION, _EXAMPLES, "MODEL USER/NAME [--private]")
    made.add_argument("model", nargs="?", help="folder of a finished run, or of a converted model")
    made.add_argument("name", nargs="?", help="repository on the hub, USER/NAME")
    made.add_argument("--private", action="store_true", help="make the repository private, if it is new")
    return made


def run(arguments: Namespace) -> int:
    """Uploads, prints the address."""
    if arguments.name is None:
        raise UsageError("no model and name given; use opdlm push MODEL USER/NAME")
    quiet_libraries()
    from opdlm.checkpoints.hub import push

    print(push(arguments.model, arguments.name, arguments.private))
    return 0
