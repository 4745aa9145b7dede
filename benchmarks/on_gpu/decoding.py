"""Decoding: what a forward of block diffusion costs beside one of the AR model, by the same engine."""

from functools import partial

import torch

from on_gpu import BLOCK, Bench
from opdlm.config import GenerationSettings
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.shapes import Decoder
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations

AR = "the same engine, one token a forward (the AR model)"


def decode(bench: Bench) -> None:
    """Random weights commit one token a step, so that a response takes as many forwards as tokens on both sides: the
    ratio is the price of a forward over whole blocks, which a trained student must earn back in tokens per forward.
    """
    model = BlockDiffusionModel(bench.model(dtype=torch.bfloat16), Geometry(BLOCK), bench.mask)
    sides = {"opdlm": (model, "static"), AR: (model.at(AUTOREGRESSIVE), "sequential")}
    if bench.options.compile:
        for one, _ in sides.values():
            one.compile_decoding()
    weights = 2.0 * Decoder.of(model.model).parameters
    prompt, response = (256, 256) if bench.real else (8, 8)
    for batch in bench.options.batch_size if bench.real else (1, 2):
        if not bench.time_left:
            return
        times = {}
        for name, (one, decoding) in sides.items():
            times[name] = bench.seconds(partial(_write, bench, one, decoding, batch, prompt, response))
        forward = {name: [seconds / response for seconds in found] for name, found in times.items()}
        shown = {"batch_size": batch, "prompt": prompt, "response": response, "compiled": bench.options.compile}
        bench.add("seconds of a forward", "s", forward["opdlm"], forward[AR], AR, shown)
        read = [weights / seconds for seconds in forward["opdlm"]]
        bench.add("weights read", "byte/s", read, [copy_bytes(bench)] * len(read), "a copy in the same run", shown)


def _write(bench: Bench, model: BlockDiffusionModel, decoding: str, batch: int, prompt: int, response: int) -> None:
    ids = torch.randint(0, bench.mask, (batch, prompt), generator=torch.Generator().manual_seed(0)).tolist()
    settings = GenerationSettings.model_validate({"decoding": decoding, "max_new_tokens": response})
    with torch.no_grad():
        Engine(model, SpecialTokens(bench.mask, 0, ()), batch).write(continuations(ids, settings))


def copy_bytes(bench: Bench) -> float:
    """Bytes read and written per second by a large copy on the device."""
    size = 2**31 if bench.real else 2**20
    one, other = (torch.empty(size, dtype=torch.uint8, device=bench.device) for _ in range(2))
    return 2 * size / min(bench.seconds(lambda: one.copy_(other), 5))
