"""Linear layers with weights packed for the CPU's kernels against `nn.Linear`, by size, tokens and number type.

    python benchmarks/packed.py            one thread, about a minute

Each measurement goes through many layers of one size, so that weights come from memory, as in a model.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import measuring
import torch
from torch import nn

from opdlm.models.devices import dtype_name
from opdlm.models.packed import SMALLEST, can_pack, pack_layer

SHAPES = ((128, 512), (576, 192), (576, 576), (576, 1536), (1024, 1024), (2048, 2048))
TOKENS = (1, 2, 4, 8, 25, 64)
WEIGHTS = 40_000_000
"""Of all layers of a size together: more than a cache holds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, metavar="N", help="of both, one after the other (7)")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        if not can_pack(torch.device("cpu"), dtype):
            print(f"this machine has no kernels for {dtype}")
            continue
        for shape in SHAPES:
            for row in measured(shape, dtype, arguments.turns):
                rows.append(row)
                print(f"{row['settings']}: {row['ours']:.0f} of {row['rival']:.0f} microseconds, {row['ratio']:.2f}")
    print(f"written to {measuring.write('packed', rows, more={'smallest': SMALLEST})}")


@torch.inference_mode()
def measured(shape: tuple[int, int], dtype: torch.dtype, turns: int) -> Iterator[dict[str, Any]]:
    """A row for each number of tokens: microseconds of a product."""
    inputs, outputs = shape
    count = max(4, min(200, WEIGHTS // (inputs * outputs)))
    plain = [nn.Linear(inputs, outputs, bias=False, dtype=dtype) for _ in range(count)]
    packed = copy.deepcopy(plain)
    for layer in packed:
        pack_layer(layer)
    for tokens in TOKENS:
        x = torch.randn(1, tokens, inputs, dtype=dtype)
        spent = [(microseconds(packed, x), microseconds(plain, x)) for _ in range(turns + 1)][1:]
        ours, rival = zip(*spent, strict=True)
        about = {"inputs": inputs, "outputs": outputs, "tokens": tokens, "dtype": dtype_name(dtype)}
        yield measuring.row("time of a product", "us", list(ours), list(rival), "torch.nn.Linear", about)


def microseconds(layers: Sequence[nn.Module], x: torch.Tensor) -> float:
    """Of one layer."""
    began = perf_counter()
    for layer in layers:
        layer(x)
    return (perf_counter() - began) / len(layers) * 1e6


if __name__ == "__main__":
    main()
