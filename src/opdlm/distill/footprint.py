"""Memory and disk of a conversion, estimated before it is started.

Weights, gradients, the optimiser's state and the teacher follow from the number of parameters. What a training pass
keeps for its backward pass does not: it depends on the architecture. So it is measured, on two short sequences, and
extended to the lengths asked for: one part grows with the tokens of a sequence, another (dense masks, attention
weights) with their square.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Linear
from transformers import PreTrainedModel

from opdlm.config import DistillSettings
from opdlm.core.states import StateChoice, select_states
from opdlm.core.types import StateBatch
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill.pair import CHUNK_FLOATS, TrainingPass, WindowPass
from opdlm.distill.rollout import given
from opdlm.distill.teacher import Teacher
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.drafting import DraftingModel
from opdlm.models.low_bits import MOMENTS_FROM, bfloat16_is_exact
from opdlm.models.parts import linear_layers
from opdlm.models.tokens import SpecialTokens

_FLOAT = 4  # bytes; conversions hold weights and gradients in float32
_PROMPT, _SHORT = 8, (24, 48)  # prompt and response tokens of the two measured passes
_NF4 = 0.5 + 4 / 64  # bytes of a weight in NF4: half of one, and a float32 scale for each 64
_8BIT = 1 + 4 / 256  # bytes of a moment in 8 bits: one, and a float32 scale for each 256
_8BIT_TENSORS = 5  # float32, as large as the largest parameter, that live at once while 8 bits are updated on a CPU
_OFFLOADED_TENSORS = 4  # of one parameter at a time: its moments, and what its step makes
_CHUNK_TENSORS = 5  # of the LM head's chunk that live at once: outputs, student, teacher, their difference, gradient
_CHECK_TENSORS = 3  # [rows, drafts, vocabulary] that live at once while drafts are checked
_ADAPTER_HEAP = 1.5
"""Among the many small matrices of an adapter more freed memory stays with the process (measured, docs/log.md)."""
_LIBRARY = 50 * 2**20  # peft or bitsandbytes, which a run imports after this was asked (measured: 55 and 45 MiB)
_STATM = Path("/proc/self/statm")
_UNKNOWN_BASE = 500 * 2**20  # Python, torch and transformers, where the system does not say


@dataclass(frozen=True)
class Shape:
    """What memory is estimated for.

    Attributes:
        rows: in one backward pass. prompt_tokens, response_tokens: of each. rollout_rows: decoded at once.
        device: "cpu", "cuda" or "mps", where it will run; None: where the model is.
    """

    rows: int
    prompt_tokens: int
    response_tokens: int
    rollout_rows: int
    device: str | None = None


@dataclass(frozen=True)
class Growth:
    """What a training pass keeps of a row: linear x + square x^2 bytes, x its tokens, noised ones included."""

    linear: float
    square: float


def estimate(
    model: BlockDiffusionModel,
    tokens: SpecialTokens,
    settings: DistillSettings,
    rank: int,
    shape: Shape,
    growth: Growth | None = None,
) -> dict[str, Any]:
    """Bytes, by purpose; `lora_bytes` with an adapter of `rank`, whose teacher is the same weights. `growth`: if known.

    Full training holds weights, gradients, two moments of AdamW, and the teacher's weights. With an adapter there are
    the weights, and at the end, in the CPU's memory, a copy with the adapter merged into it and what is written of
    that. The model may be without weights (`models/shapes.py`).
    """
    ar_model, device = model.model, shape.device or model.device.type
    weights = _FLOAT * sum(p.numel() for p in ar_model.parameters())
    head = ar_model.get_output_embeddings()
    linear = [m for m in ar_model.modules() if isinstance(m, Linear) and m is not head]
    adapter = _FLOAT * sum(rank * (m.in_features + m.out_features) for m in linear)
    there = not isinstance(next(ar_model.parameters()), FakeTensor)
    base, library = (_base_bytes(weights if there else 0), _LIBRARY) if device == "cpu" else (0, 0)
    low_bits = library if settings.optimiser.moments == "8bit" or settings.teacher_precision == "4bit" else 0
    growth = growth or growth_of(model, tokens, settings, device)
    activations, head_bytes = _activation_bytes(growth, settings, shape), _head_bytes(model, shape)
    cache = shape.rollout_rows * (shape.prompt_tokens + shape.response_tokens) * _cache_bytes(model)
    moments, stepping = _moment_bytes(ar_model, settings, device)
    narrowed = _narrowed_bytes(ar_model, settings, device)
    teacher = _teacher_bytes(ar_model, settings) - (narrowed if settings.teacher_precision == "float32" else 0)
    # Autocast keeps a copy of each linear layer's weights from one update to the next, and makes one of the head's.
    copies = 2 * (_body(ar_model) + model.head_parameters()[0].numel()) if settings.low_precision(device) else 0
    # Training, rollouts and the optimiser take turns. On a CPU the process keeps much of what it frees before a step.
    passing = max(activations + head_bytes, cache)
    passing = copies + (passing + stepping if device == "cpu" else max(passing, stepping))
    lora_passing = max(_ADAPTER_HEAP * activations + head_bytes, cache)
    if device == "cpu":  # the merged copy adds to what the process kept, with what is written of it
        lora_passing += 2 * weights
    lora = max(weights, weights + 4 * adapter + copies - 2 * narrowed + lora_passing)  # all are loaded in float32
    return {
        "shape": {"rows": shape.rows, "prompt": shape.prompt_tokens, "response": shape.response_tokens},
        "base_bytes": base,
        "weights_bytes": weights,
        "activation_bytes": activations,
        "rollout_cache_bytes": cache,
        "gradient_bytes": weights,
        "moment_bytes": moments,
        "teacher_bytes": teacher,
        "copy_bytes": copies,
        "narrowed_bytes": narrowed,
        "head_bytes": head_bytes,
        "stepping_bytes": stepping,
        "training_bytes": base + low_bits + 2 * weights + moments + teacher + passing,
        "lora_rank": rank,
        "lora_bytes": int(base + library + lora),
        "decoding_bytes": base + weights,
        "cache_bytes_per_token": _cache_bytes(model),
        "checkpoint_bytes": weights + moments,
        "lora_checkpoint_bytes": 4 * adapter,  # alone, for its base never changes; twice, and two moments
        "disk_bytes": (settings.keep_checkpoints + 1) * (weights + moments) + weights,
        "lora_disk_bytes": (settings.keep_checkpoints + 1) * 4 * adapter + weights,
    }


def estimate_lossless(
    model: DraftingModel, tokens: SpecialTokens, settings: DistillSettings, shape: Shape
) -> dict[str, Any]:
    """Bytes, by purpose, of a lossless conversion with the gate of `model`.

    The weights are there once: they are the teacher, and never change. Only the gate has gradients and two moments of
    AdamW; only window tokens have activations that a backward pass needs.
    """
    device = shape.device or model.device.type
    weights = _FLOAT * sum(p.numel() for p in model.model.parameters())
    narrowed = _narrowed_bytes(model.model, settings, device)
    gate = _FLOAT * sum(p.numel() for p in model.gate.parameters())
    base = _base_bytes(weights) if device == "cpu" else 0
    activations, window = _window_bytes(model, tokens, settings, shape), model.window
    vocabulary = model.head_parameters()[0].shape[0]
    chunk = min(shape.rows * shape.response_tokens * window * vocabulary, max(CHUNK_FLOATS, vocabulary))
    rows, text = shape.rollout_rows, shape.prompt_tokens + shape.response_tokens
    cache = rows * (text + (window + 1) ** 2) * _cache_bytes(model)  # room for all windows of a forward
    checked = _FLOAT * _CHECK_TENSORS * rows * (window + 1) * vocabulary
    passing = max(_ADAPTER_HEAP * activations + _FLOAT * _CHUNK_TENSORS * chunk, cache + checked)
    if narrowed and device == "cpu":  # at the end a copy in float32 is written
        passing += weights
    return {
        "shape": {"rows": shape.rows, "prompt": shape.prompt_tokens, "response": shape.response_tokens},
        "base_bytes": base,
        "weights_bytes": weights - narrowed,
        "gate_bytes": gate,
        "activation_bytes": activations,
        "rollout_bytes": cache + checked,
        "training_bytes": int(base + max(weights, weights - narrowed + 4 * gate + passing)),
        "decoding_bytes": base + weights + gate,
        "cache_bytes_per_token": _cache_bytes(model),
        # Each checkpoint holds the gate alone, twice, and two moments; the model at the end its base too.
        "disk_bytes": (settings.keep_checkpoints + 1) * 4 * gate + weights + gate,
        "adapter_only_disk_bytes": (settings.keep_checkpoints + 1) * 4 * gate + gate,
    }


def _moment_bytes(model: PreTrainedModel, settings: DistillSettings, device: str) -> tuple[int, int]:
    """Of AdamW's two moments, and of what lives while the optimiser steps."""
    sizes = [p.numel() for p in model.parameters()]
    if settings.optimiser.moments == "offload":
        return 0, _FLOAT * _OFFLOADED_TENSORS * max(sizes)
    if settings.optimiser.moments == "float32":
        return 2 * _FLOAT * sum(sizes), 2 * _FLOAT * max(sizes) if device == "cpu" else 0
    small = sum(size for size in sizes if size < MOMENTS_FROM)
    moments = int(2 * _FLOAT * small + 2 * _8BIT * (sum(sizes) - small))
    return moments, _8BIT_TENSORS * _FLOAT * max(sizes) if device == "cpu" else 0


def _teacher_bytes(model: PreTrainedModel, settings: DistillSettings) -> int:
    """The frozen original's weights (`low_bits.reduced`)."""
    total = sum(p.numel() for p in model.parameters())
    if settings.teacher_precision == "float32":
        return _FLOAT * total
    body = _body(model)
    return int(2 * (total - body) + (_NF4 if settings.teacher_precision == "4bit" else 2) * body)


def _narrowed_bytes(model: PreTrainedModel, settings: DistillSettings, device: str) -> int:
    """What `low_bits.narrow_frozen` saves of weights that never change; a model without any has those of its type."""
    if not settings.narrows(device):
        return 0
    layers = [layer.get_parameter("weight") for layer in linear_layers(model).values()]
    if isinstance(layers[0], FakeTensor):
        layers = layers if model.config.dtype == torch.bfloat16 else []
    else:
        layers = [weight for weight in layers if bfloat16_is_exact(weight)]
    return 2 * sum(weight.numel() for weight in layers)


def _body(model: PreTrainedModel) -> int:
    """Weights of the linear layers but the LM head."""
    return sum(layer.get_parameter("weight").numel() for layer in linear_layers(model).values())


def _base_bytes(weights: int) -> int:
    """What this process holds beside the model's weights."""
    if not _STATM.is_file():
        return _UNKNOWN_BASE
    resident = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return max(_UNKNOWN_BASE // 2, resident - weights)


def _cache_bytes(model: BlockDiffusionModel) -> int:
    """Keys and values of one token."""
    config: Any = model.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * _FLOAT * config.num_hidden_layers * heads * width


def _head_bytes(model: BlockDiffusionModel, shape: Shape) -> int:
    """The LM head's chunk of logits, and the buffer that sums its gradient."""
    matrix = model.head_parameters()[0]
    positions = min(shape.rows * shape.response_tokens, max(1, CHUNK_FLOATS // matrix.shape[0]))
    return _FLOAT * (_CHUNK_TENSORS * positions * matrix.shape[0] + matrix.numel())


def growth_of(
    model: BlockDiffusionModel, tokens: SpecialTokens, settings: DistillSettings, device: str | None = None
) -> Growth:
    """Measured on two short sequences; `device`: where training will run, by which its precision goes."""
    low = settings.low_precision(device or model.device.type)
    short, long = (_states(model, tokens, settings, 1, _PROMPT, response) for response in _SHORT)
    (x1, y1), (x2, y2) = ((one.input_ids.shape[1], _saved_bytes(model, settings, one, low)) for one in (short, long))
    if low:  # what does not grow with the rows: the bfloat16 copies of the weights, which `estimate` counts
        copies = 2 * y1 - _saved_bytes(model, settings, _states(model, tokens, settings, 2, _PROMPT, _SHORT[0]), low)
        y1, y2 = y1 - copies, y2 - copies
    square = max(0.0, (y2 / x2 - y1 / x1) / (x2 - x1))
    return Growth(y1 / x1 - square * x1, square)


def _activation_bytes(growth: Growth, settings: DistillSettings, shape: Shape) -> int:
    """What a training pass over the shape's packed sequences keeps for its backward pass."""
    per_block = settings.block_size
    response = -(-shape.response_tokens // per_block) * per_block
    longest = shape.prompt_tokens + 2 * response
    return int(shape.rows * (growth.linear * longest + growth.square * longest**2))


def _states(
    model: BlockDiffusionModel, tokens: SpecialTokens, settings: DistillSettings, rows: int, prompt: int, response: int
) -> StateBatch:
    """States of rows of one repeated token."""
    text = given([[1] * prompt] * rows, [[1] * response] * rows, tokens, settings.block_size, response)
    seed = torch.zeros(rows, dtype=torch.int64, device=model.device)
    choice = StateChoice("one_per_block")
    return select_states(text.to(model.device), model.geometry, choice, seed, mask_token_id=model.mask_token_id)


def _saved_bytes(model: BlockDiffusionModel, settings: DistillSettings, states: StateBatch, low: bool) -> int:
    """What one pass over block-diffusion states keeps; `low`: with bfloat16 matrix products."""
    was_training = model.training
    if settings.gradient_checkpointing:
        model.checkpoint_activations()
    model.train()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=low):
        saved = _kept_bytes(model, lambda: TrainingPass(model).hidden(states))
    if settings.gradient_checkpointing:
        model.checkpoint_activations(False)
    model.train(was_training)
    return saved


def _window_bytes(model: DraftingModel, tokens: SpecialTokens, settings: DistillSettings, shape: Shape) -> int:
    """What a training pass over windows at all anchors of the shape's texts keeps, the texts' keys included."""
    choice = WindowChoice(model.window, settings.anchors)

    def measured(response: int) -> tuple[int, int, int]:
        """Window tokens of a row, keys that they may see, and bytes."""
        text = given([[1] * _PROMPT], [[1] * response], tokens, 1, response).to(model.device)
        windows = select_windows(text, choice, torch.zeros(1, dtype=torch.int64, device=model.device))
        clean = Teacher(model).clean_pass(text)
        queries = windows.input_ids.shape[1]
        saved = _kept_bytes(model, lambda: WindowPass(model).hidden(windows, clean))
        return queries, _PROMPT + response + queries, saved

    (q1, k1, y1), (q2, k2, y2) = (measured(response) for response in _SHORT)
    square = max(0.0, (y2 / q2 - y1 / q1) / (k2 - k1))  # y = linear q + square q k: masks have an entry for each pair
    linear = y1 / q1 - square * k1
    queries = max(1, shape.response_tokens - 1) * model.window
    return int(shape.rows * queries * (linear + square * (shape.prompt_tokens + shape.response_tokens + queries)))


def _kept_bytes(model: BlockDiffusionModel, run: Callable[[], object]) -> int:
    """Bytes of all storages that autograd keeps while `run` runs, the parameters aside; not those of the LM head, whose
    chunks keep nothing behind them.

    Storages are told apart by their C++ object: those of a model without weights have no address of data.
    """
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor.detach()  # itself would hold its own graph, for ever

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())
