"""A training pass: its share of what the card can do, and the longest response that fits."""

from functools import partial

import torch

from on_gpu import BLOCK, Bench
from opdlm.config import DistillSettings, OptimiserSettings
from opdlm.core.states import StateChoice, select_states
from opdlm.core.types import Geometry, Rollout
from opdlm.distill import losses
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.distill.update import Updater
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.shapes import Decoder
from opdlm.models.tokens import SpecialTokens

MATMUL = "bfloat16 matrix product of the same run"
PROMPT, ROWS, RESPONSE = 256, 8, 1024


def mfu(bench: Bench) -> None:
    """The teacher's and the student's pass in FLOP/s, beside a large matrix product on the same card."""
    rows, prompt, response = (ROWS, PROMPT, RESPONSE) if bench.real else (2, 8, 16)
    peak = [matmul_flops(bench)]
    for attention in bench.options.attention if bench.real else ["sdpa"]:
        for checkpointing in (False, True):
            if bench.time_left:
                _passes(bench, attention, checkpointing, rows, bench.text(rows, prompt, response), peak)


def matmul_flops(bench: Bench) -> float:
    """FLOP/s of a square bfloat16 product."""
    size = 8192 if bench.real else 128
    one, other = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(bench.seconds(lambda: one @ other, 10))


def _passes(bench: Bench, attention: str, checkpointing: bool, rows: int, text: Rollout, peak: list[float]) -> None:
    bench.forget_peak()
    pair = training_pair(bench, attention, checkpointing)
    decoder = Decoder.of(pair.student.model)
    states = select_states(
        text, pair.student.geometry, StateChoice("one_per_block"), torch.arange(rows, device=bench.device),
        mask_token_id=bench.mask, capacity=pair.student.packing_capacity,
    )  # fmt: skip
    targets = pair.teacher.targets(text)
    length = int(text.length[0])
    shown = {"attention": attention, "gradient_checkpointing": checkpointing, "rows": rows, "tokens_a_row": length}

    def student() -> None:
        pair.student.train()
        loss = losses.divergence_loss(pair, losses.log_divergence(DistillSettings()), states, text, targets)
        loss.total.backward()
        pair.student.zero_grad()

    with torch.autocast(bench.device.type, torch.bfloat16):
        by_teacher = bench.seconds(lambda: pair.teacher.targets(text))
        by_student = bench.seconds(student)
    # Counted as the method needs them: recomputed activations and masked pairs are no useful work.
    seen = rows * length**2 / 2
    useful = decoder.forward_flops(rows * length, seen)
    bench.add("teacher's FLOP/s", "FLOP/s", [useful / s for s in by_teacher], peak * len(by_teacher), MATMUL, shown)
    positions, tokens = len(states.row), int((states.stream >= 0).sum())
    useful = 3 * decoder.forward_flops(tokens, 2 * seen, positions) + decoder.forward_flops(0, 0, positions)
    bench.add("student's FLOP/s", "FLOP/s", [useful / s for s in by_student], peak * len(by_student), MATMUL, shown)
    bench.add("peak memory", "byte", [bench.peak_bytes()], [4.0 * decoder.parameters], "the weights alone", shown)


def training_pair(bench: Bench, attention: str, checkpointing: bool) -> Pair:
    """A student and a teacher of their own weights."""
    geometry = Geometry(BLOCK)
    student = BlockDiffusionModel(bench.model(0, attention=attention), geometry, bench.mask)
    frozen = BlockDiffusionModel(bench.model(1, attention=attention).requires_grad_(False), geometry, bench.mask)
    if checkpointing:
        student.checkpoint_activations()
    return Pair.of(student, Teacher(frozen), SpecialTokens(bench.mask, 0, ()))


def longest(bench: Bench) -> None:
    """The longest response whose update fits, one row of it, with AdamW's moments: doubled, then narrowed down."""
    step, most = (256, 32_768) if bench.real else (16, 64)
    for attention in bench.options.attention if bench.real else ["sdpa"]:
        for checkpointing in (False, True):
            if not bench.time_left:
                return
            bench.forget_peak()
            pair = training_pair(bench, attention, checkpointing)
            fits = partial(_fits, bench, pair, Updater(list(pair.student.parameters()), OptimiserSettings(), 1))
            good, bad = 0, step
            while bad <= most and fits(bad):
                good, bad = bad, 2 * bad
            while most > good and bad - good > step and bench.time_left:
                middle = (good + bad) // 2 // step * step
                good, bad = (middle, bad) if fits(middle) else (good, middle)
            shown = {"attention": attention, "gradient_checkpointing": checkpointing, "prompt": PROMPT, "most": most}
            bench.add("longest response of one row", "token", [max(good, 1)], [4000.0], "the paper's longest", shown)
            del pair, fits


def _fits(bench: Bench, pair: Pair, updater: Updater, response: int) -> bool:
    """Whether a whole update of one row finds memory."""
    try:
        text = bench.text(1, PROMPT if bench.real else 8, response)
        states = select_states(
            text, pair.student.geometry, StateChoice("one_per_block"), torch.arange(1, device=bench.device),
            mask_token_id=bench.mask, capacity=pair.student.packing_capacity,
        )  # fmt: skip
        pair.student.train()
        with torch.autocast(bench.device.type, torch.bfloat16):
            targets = pair.teacher.targets(text)
            loss = losses.divergence_loss(pair, losses.log_divergence(DistillSettings()), states, text, targets)
            loss.total.backward()
        updater.update(float(loss.total.detach()), [0])
    except torch.OutOfMemoryError:
        pair.student.zero_grad()
        bench.forget_peak()
        return False
    return True
