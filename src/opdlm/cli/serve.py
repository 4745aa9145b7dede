"""`opdlm serve`: a server with the OpenAI API."""

import os
import signal
from argparse import Namespace
from contextlib import suppress
from functools import partial
from importlib.util import find_spec

from opdlm.cli.options import Parser, add_device, add_settings, add_trust, given
from opdlm.cli.terminal import quiet_libraries
from opdlm.config import ServeSettings, settings_from
from opdlm.errors import MissingExtraError

_DESCRIPTION = """
Serve MODEL with the OpenAI API: any client of it works, with the address that is printed as its base URL. A request may
also say how text is decoded, and see it while it is denoised. MODEL is the folder of a run, of a model, or a hub name;
an AR model is served as well, for comparison. Several may be named. Without one, the models that ship with the package
are served: "student", and the AR model that it was made from, "ar_model". Ctrl-C stops the server.
"""
_EXAMPLES = (
    "opdlm serve",
    "opdlm serve run --port 9000 --batch-size 64",
    "opdlm serve run Qwen/Qwen3-0.6B --device cuda",
)
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_KEY = "OPDLM_API_KEY"


def parser() -> Parser:
    """The command's flags: those of ServeSettings."""
    made = Parser("serve", _DESCRIPTION, _EXAMPLES, "[MODEL ...] [settings]")
    made.add_argument("models", nargs="*", metavar="MODEL", help="folders or hub names; left out: the package's own")
    add_device(made)
    add_trust(made)
    made.add_argument("--compile", action="store_true", help="torch.compile: half a minute is lost first, then faster")
    add_settings(made, ServeSettings)
    return made


def run(arguments: Namespace) -> int:
    """Serves until it is told to stop."""
    from_environment = {"api_key": os.environ[_KEY]} if os.environ.get(_KEY) else {}
    settings = settings_from(ServeSettings, from_environment | given(arguments, ServeSettings))
    missing = next((name for name in _NEEDED if find_spec(name) is None), None)
    if missing is not None:
        raise MissingExtraError(f"serving needs the package {missing}; install it: pip install 'opdlm[serve]'")
    quiet_libraries()
    from opdlm.serve.server import load_served, make_server, names_of, take_port
    from opdlm.tiny.weights import ar_model_path, student_path

    paths = arguments.models or [student_path(), ar_model_path()]
    names = names_of(paths)
    with take_port(settings.host, settings.port) as taken:
        print(f"loading {', '.join(names)}", flush=True)
        served = {
            name: load_served(path, arguments.device, arguments.dtype, arguments.compile)
            for name, path in zip(names, paths, strict=True)
        }
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is a Ctrl-C
        server = make_server(served, settings, taken, partial(_say, names))
        with suppress(KeyboardInterrupt):  # uvicorn has stopped in order by then
            server.run(sockets=[taken])
    print("stopped by an error, which stands above" if server.broken else "stopped")
    return int(server.broken)


def _say(names: list[str], url: str) -> None:
    print(f"serving {', '.join(names)} at {url} (Ctrl-C stops)", flush=True)
