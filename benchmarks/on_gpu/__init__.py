"""What the GPU benchmarks share: a random model of a shape, random texts, clocks, and a result file that grows."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import measuring
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3Config

from opdlm.core.types import Rollout
from opdlm.distill.rollout import whole_blocks
from opdlm.models.devices import peak_process_bytes
from opdlm.models.shapes import named_shape

BLOCK = 4
TINY = "tiny"
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}


class Bench:
    """One command: its options, its random model, and the file that it writes a row at a time.

    Attributes:
        device: where it runs. real: on a GPU; else everything is tiny, and no number means anything.
        config: of the shape.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.real = self.device.type == "cuda"
        self.config = config_of(options.shape if self.real else TINY)
        self.rows: list[dict[str, Any]] = []
        self._began = perf_counter()

    @property
    def mask(self) -> int:
        return int(self.config.vocab_size or 0) - 1

    @property
    def time_left(self) -> bool:
        """Whether another measurement may begin."""
        return perf_counter() - self._began < self.options.seconds

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
        """Random weights, made on the device."""
        torch.manual_seed(seed)
        with self.device:
            return AutoModelForCausalLM.from_config(self.config, attn_implementation=attention, dtype=dtype).eval()

    def text(self, rows: int, prompt: int, response: int) -> Rollout:
        """Random tokens; each token of a block is committed in the step of the one before it, or in the next."""
        generator = torch.Generator().manual_seed(0)
        width = prompt + response
        later = torch.randint(0, 2, (rows, -(-width // BLOCK), BLOCK), generator=generator)
        later[..., 0] = 0
        order = torch.rand(later.shape, generator=generator).argsort(-1)
        steps = later.cumsum(-1).gather(-1, order).flatten(1)[:, :width]
        length = torch.full((rows,), width)
        made = Rollout(
            input_ids=torch.randint(0, self.mask, (rows, width), generator=generator),
            prompt_length=torch.full((rows,), prompt),
            length=length,
            end=length,
            commit_step=steps.masked_fill(torch.arange(width) < prompt, -1).short(),
            stopped=torch.ones(rows, dtype=torch.bool),
            forwards=torch.zeros(rows, dtype=torch.int64),
        )
        return whole_blocks(made, self.mask, BLOCK).to(self.device)

    def seconds(self, run: Callable[[], object], repeats: int | None = None) -> list[float]:
        """Of each of some runs, after one that is not counted."""
        found = []
        for _ in range(1 + (repeats or self.options.repeats)):
            self.wait()
            began = perf_counter()
            run()
            self.wait()
            found.append(perf_counter() - began)
        return found[1:]

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.real:
            torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        """Since the start, or since `forget_peak` on a GPU."""
        return torch.cuda.max_memory_allocated() if self.real else peak_process_bytes()

    def forget_peak(self) -> None:
        if self.real:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def add(
        self,
        metric: str,
        unit: str,
        ours: list[float],
        rival: list[float],
        rival_name: str,
        settings: Mapping[str, Any],
    ) -> None:
        """One more row: shown, and written at once, so that a machine that is taken away leaves what was measured."""
        shape = self.options.shape if self.real else TINY
        self.rows.append(measuring.row(metric, unit, ours, rival, rival_name, {"shape": shape, **settings}))
        shown = ", ".join(f"{name} {value}" for name, value in settings.items())
        print(f"{metric} ({shown}): {median(ours):.5g} {unit}; {rival_name}: {median(rival):.5g}", flush=True)
        if self.real or self.options.output:
            name = f"gpu_{self.options.command}_{shape}"
            measuring.write(name, self.rows, folder=Path(self.options.output or measuring.RESULTS))


def config_of(shape: str) -> PreTrainedConfig:
    """Of a named shape, or the tiny one."""
    if (config := named_shape(shape)) is not None:
        return config
    return Qwen3Config(**_TINY, vocab_size=512, num_key_value_heads=2, max_position_embeddings=4096)
