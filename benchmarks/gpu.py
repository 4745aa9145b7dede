"""What only a GPU can tell. Each command takes less than ten minutes, and writes its result file a row at a time.

    python benchmarks/gpu.py mfu --shape qwen3-0.6b        the training pass beside a large matrix product
    python benchmarks/gpu.py decode --shape qwen3-4b       a forward of block diffusion beside one of the AR model
    python benchmarks/gpu.py longest --shape qwen3-0.6b    the longest response whose update fits

Weights are random: no file is needed but the checkout. `make gpu` runs the tests under `tests/gpu` and then these. On a
CPU the same commands run at a tiny size and record nothing, unless --output names a folder: that proves that they run,
and no more. Result: `results/gpu_COMMAND_SHAPE.json`.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from on_gpu import Bench
from on_gpu.decoding import decode
from on_gpu.training import longest, mfu

from opdlm.models.shapes import NAMED_SHAPES

COMMANDS: dict[str, Callable[[Bench], None]] = {"mfu": mfu, "decode": decode, "longest": longest}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), help="default: all of them, one after the other")
    parser.add_argument("--shape", choices=NAMED_SHAPES, default="qwen3-0.6b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--attention", nargs="+", choices=("sdpa", "flex_attention"), default=["sdpa", "flex_attention"]
    )
    parser.add_argument("--batch-size", nargs="+", type=int, metavar="N", default=[1, 8, 32, 128])
    parser.add_argument("--compile", action="store_true", help="decode: through torch.compile, both sides")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each measurement")
    parser.add_argument("--seconds", type=float, default=480, metavar="S", help="no measurement begins after so many")
    parser.add_argument("--output", metavar="FOLDER", help="of the result file (default: benchmarks/results)")
    return parser.parse_args(given)


def main() -> None:
    """Runs what was asked for."""
    options = arguments()
    for command in [options.command] if options.command else COMMANDS:
        options.command = command
        bench = Bench(options)
        COMMANDS[command](bench)
        print(f"{command}: {len(bench.rows)} rows" + ("" if bench.real else " at a tiny size: not numbers to quote"))


if __name__ == "__main__":
    main()
