"""`opdlm doctor`: everything that can be known before a training is started."""

import copy
import json
import os
import shlex
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from opdlm.cli.options import Parser
from opdlm.cli.terminal import duration, make_console, quiet_libraries, size
from opdlm.config import DistillSettings, LengthRamp, settings_from
from opdlm.errors import OpdlmError, UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from opdlm.models.adapt import BlockDiffusionModel

_DESCRIPTION = """
Look at MODEL before any training: can a mask turn it into a block-diffusion model (if not, why, and exit code 2), does
the adapted model equal the original, where does the mask token go, what do training and decoding cost in memory, how
fast is a small rollout and training step on this machine, and which command to type.
"""
_EXAMPLES = ("opdlm doctor Qwen/Qwen3-0.6B", "opdlm doctor ./my-model --lora-rank 16 --json")

_MEMINFO = Path("/proc/meminfo")
_FLOAT = 4  # bytes; conversions hold weights, gradients and optimiser state in float32
_BUDGET = 50_000_000  # response tokens: the paper's conversions take 48 to 76 million
_ROWS, _PROMPT, _RESPONSE = 8, 16, 32  # the measured step


def parser() -> Parser:
    """The command's flags."""
    made = Parser("doctor", _DESCRIPTION, _EXAMPLES, "MODEL [options]")
    made.add_argument("model", nargs="?", help="folder or hub name of the autoregressive model")
    made.add_argument("--block-size", metavar="N", help="tokens in a block (default: the recipe's)")
    made.add_argument("--lora-rank", type=int, default=32, metavar="N", help="rank of the LoRA estimate (default: 32)")
    made.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto (default)")
    made.add_argument("--no-speed", action="store_true", help="leave the measurement of speed out")
    made.add_argument("--json", action="store_true", help="print the findings as JSON")
    return made


def run(arguments: Namespace) -> int:
    """0 if the model can be converted; an obstacle is an error."""
    if arguments.model is None:
        raise UsageError("no model given; name a folder or a hub model: opdlm doctor MODEL")
    if arguments.lora_rank < 1:
        raise UsageError("--lora-rank must be at least 1; give a larger one")
    changes = {} if arguments.block_size is None else {"block_size": arguments.block_size}
    settings_from(DistillSettings, changes)  # a wrong one is an error before any model is loaded
    quiet_libraries()
    try:
        findings = examine(arguments, changes)
    except OpdlmError as error:
        if arguments.json:
            print(json.dumps({"model": arguments.model, "convertible": False, "reason": str(error)}))
        raise
    if arguments.json:
        print(json.dumps(findings, ensure_ascii=False))
    else:
        _show(make_console(), findings)
    return 0


def examine(arguments: Namespace, changes: dict[str, str]) -> dict[str, Any]:
    """All findings, for the recipe by size with these changes. Raises the error that a conversion would raise."""
    from opdlm.core.types import Geometry
    from opdlm.distill.data import check_lengths
    from opdlm.models.adapt import BlockDiffusionModel, identity_check
    from opdlm.models.checkpoint import load_arlm
    from opdlm.models.devices import pick_device
    from opdlm.models.tokens import special_tokens
    from opdlm.recipes import load_recipe, recipe_for

    device = pick_device(arguments.device)
    arlm, tokenizer = load_arlm(arguments.model, device=device)
    parameters = sum(p.numel() for p in arlm.parameters())
    recipe = recipe_for(parameters)
    settings = settings_from(DistillSettings, {**load_recipe(recipe), **changes})
    vocabulary, mask = len(tokenizer), _plan_mask(arlm, tokenizer)
    geometry = Geometry(settings.block_size, settings.prediction, settings.context)
    model = BlockDiffusionModel(arlm, geometry, mask["id"])
    check_lengths([[0] * _PROMPT], _RESPONSE, model.max_length, settings.block_size)
    difference = identity_check(model)
    memory = _memory(model, arguments.lora_rank)
    free = _free_bytes(device)
    fits = free is None or memory["training_bytes"] <= free
    speed = None if arguments.no_speed or not fits else _measure(model, special_tokens(arlm, tokenizer), settings)
    return {
        "model": arguments.model,
        "convertible": True,
        "architecture": type(arlm).__name__,
        "parameters": parameters,
        "recipe": recipe,
        "vocabulary": vocabulary,
        "context": model.max_length,
        "mask_token": mask,
        "identity_difference": difference,
        "mask_honoured": True,  # part of the identity check
        "memory": memory,
        "device": str(device),
        "free_bytes": free,
        "training_fits": fits,
        "speed": speed,
        "command": _command(arguments, model.max_length, settings.response_length.end, fits),
    }


def _plan_mask(arlm: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Which row becomes the mask token's, and whether it was there."""
    from opdlm.models.parts import input_embedding
    from opdlm.models.tokens import find_or_add_mask_token

    known, rows = tokenizer.mask_token is not None, input_embedding(arlm).weight.shape[0]
    index = find_or_add_mask_token(arlm, tokenizer)
    grown = input_embedding(arlm).weight.shape[0] > rows
    plan = "the vocabulary grows by one" if grown else "an unused row of the embedding"
    return {"id": index, "token": str(tokenizer.mask_token), "plan": "the tokenizer's own" if known else plan}


def _memory(model: "BlockDiffusionModel", rank: int) -> dict[str, int]:
    """Bytes of weights and optimiser state in float32; activations come on top.

    Full training: weights, gradients, two moments of AdamW, and the teacher's weights. LoRA: the weights once, and an
    adapter with gradient and moments; the teacher is the same weights with the adapter off.
    """
    from torch.nn import Linear

    arlm = model.model
    weights = _FLOAT * sum(p.numel() for p in arlm.parameters())
    head = arlm.get_output_embeddings()
    linear = [m for m in arlm.modules() if isinstance(m, Linear) and m is not head]
    adapter = _FLOAT * sum(rank * (m.in_features + m.out_features) for m in linear)
    return {
        "training_bytes": 5 * weights,
        "lora_rank": rank,
        "lora_bytes": weights + 4 * adapter,
        "decoding_bytes": weights,
        "cache_bytes_per_token": _cache_bytes(arlm),
    }


def _cache_bytes(arlm: "PreTrainedModel") -> int:
    """Bytes of keys and values of one token."""
    config: Any = arlm.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * _FLOAT * config.num_hidden_layers * heads * width


def _free_bytes(device: "torch.device") -> int | None:
    """Memory that is free on the device; None where the system does not say."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.is_file():  # Linux; what the system could give, its file cache included
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _measure(model: "BlockDiffusionModel", tokens: Any, settings: DistillSettings) -> dict[str, float]:
    """Tokens per second of the second of two small steps; the first warms up. The model's weights change."""
    import torch

    from opdlm.distill.loop import Trainer
    from opdlm.distill.teacher import Teacher
    from opdlm.models.adapt import BlockDiffusionModel

    original = copy.deepcopy(model.model).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, max(1, model.mask_token_id), (_ROWS, _PROMPT), generator=generator).tolist()
    small = {"prompts_per_rollout": _ROWS, "rows_per_update": _ROWS, "rollouts": 2}
    ramp = LengthRamp(start=_RESPONSE, end=_RESPONSE, rollouts=0, shape="linear")
    line = Trainer(
        student=model,
        teacher=Teacher(BlockDiffusionModel(original, model.geometry, model.mask_token_id)),
        tokens=tokens,
        prompts=prompts,
        settings=settings.model_copy(update={**small, "response_length": ramp}),
    ).train()
    seconds = line["seconds"]
    rate = line["tokens_trained"] / sum(seconds.values())
    return {
        "tokens_per_second": rate,
        "rollout_share": seconds["rollout"] / sum(seconds.values()),
        "rows": _ROWS,
        "response_tokens": _RESPONSE,
        "seconds_for_50_million_tokens": _BUDGET / rate,
    }


def _command(arguments: Namespace, context: int | None, longest: int, fits: bool) -> str:
    """What to type; with LoRA where full training does not fit."""
    parts = ["opdlm", "convert", arguments.model, "--prompts", "PROMPTS.jsonl", "--output", "RUN"]
    if arguments.block_size is not None:
        parts += ["--block-size", arguments.block_size]
    if context is not None and context < 2 * longest:
        parts += ["--response-length.start", str(min(100, context // 2)), "--response-length.end", str(context // 2)]
    if not fits:
        parts += ["--lora-rank", str(arguments.lora_rank)]
    if arguments.device != "auto":
        parts += ["--device", arguments.device]
    return shlex.join(parts)


def _show(console: Console, found: dict[str, Any]) -> None:
    mask, memory, speed = found["mask_token"], found["memory"], found["speed"]
    free = "unknown" if found["free_bytes"] is None else size(found["free_bytes"])
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("model", f"{found['model']}: {found['architecture']}, {found['parameters']:,} parameters")
    table.add_row("vocabulary, context", f"{found['vocabulary']:,} tokens, {found['context'] or 'no limit'}")
    table.add_row("convertible", "yes")
    table.add_row("recipe", f"{found['recipe']}, by the number of parameters")
    table.add_row("identity check", f"passed, largest difference of a logit {found['identity_difference']:.2g}")
    table.add_row(
        "mask honoured", "yes: with a bidirectional mask the model looks ahead, with a causal one it does not"
    )
    table.add_row("mask token", f"{mask['token']}, id {mask['id']}: {mask['plan']}")
    table.add_row("full training", f"{size(memory['training_bytes'])} and activations (float32, AdamW, teacher)")
    table.add_row(f"LoRA, rank {memory['lora_rank']}", f"{size(memory['lora_bytes'])} and activations")
    table.add_row(
        "decoding", f"{size(memory['decoding_bytes'])} and {size(memory['cache_bytes_per_token'])} a token of text"
    )
    table.add_row("device", f"{found['device']}, {free} free")
    table.add_row("time", _time(speed, found["training_fits"]))
    console.print(table)
    console.print(f"\nto convert it:\n  {found['command']}", markup=False, soft_wrap=True)


def _time(speed: dict[str, float] | None, fits: bool) -> str:
    if speed is None:
        return "not measured" if fits else "not measured: full training does not fit"
    return (
        f"{speed['tokens_per_second']:,.0f} tokens/s in a step of {speed['rows']:.0f} rows of "
        f"{speed['response_tokens']:.0f} tokens; at that speed 50 million tokens (the paper's budget) take "
        f"{duration(speed['seconds_for_50_million_tokens'])} (a rough guess: larger batches are faster)"
    )
