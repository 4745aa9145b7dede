"""One training step against the published formulation of the same loss, in seconds and in memory.

    python benchmarks/train_step.py                  4 layers in float32 on the CPU, about 9 minutes on two cores
    python benchmarks/train_step.py --device cuda --layers 28 --rows 8 --rows-at-once 8

Both sides get the same weights (the shapes of Qwen3-0.6B, random), rows, visited states and normalisation, and return
the same loss and gradient; that is checked before anything is timed, and on the timed rows. The published formulation,
written here in plain torch: teacher and student alike compute the doubled row [noised | clean], padded to the longest,
under a dense mask; the LM head and a float32 log-softmax over the vocabulary run at every position of it, and the KL is
masked afterwards.

A step is the forward and backward pass over all rows with everything before it (states, masks, the teacher). Sampling
and the optimiser, the same for both, are left out. Each measurement is a fresh process that warmed up on short rows.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
import transformers
from measuring import row, write
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from opdlm.config import DistillSettings
from opdlm.core.states import StateChoice, select_states
from opdlm.core.types import Geometry, Rollout
from opdlm.distill.methods import method_of
from opdlm.distill.pair import Pair
from opdlm.distill.rollout import Written, whole_blocks
from opdlm.distill.step import Batch, training_step
from opdlm.distill.teacher import Teacher
from opdlm.models.block_diffusion import NEVER_SAMPLED, BlockDiffusionModel
from opdlm.models.devices import peak_process_bytes
from opdlm.models.tokens import SpecialTokens
from opdlm.parallel.ranks import OneProcess

BLOCK, VOCABULARY = 4, 151_936
MASK = VOCABULARY - 1
GEOMETRY = Geometry(BLOCK)
PROMPT, LONGEST = 256, 1024
TOLERANCE = 1e-4  # of the gradient's norm; both sides are float32, summed in different orders
Result = dict[str, Any]


def main() -> None:
    options = parser().parse_args()
    if options.side:
        print(json.dumps(measured(options)))
        return
    if options.quick:
        options.layers, options.rows, options.pairs = 1, 2, 1
    compare(child("check", options), "on short rows")
    sides: dict[str, list[Result]] = {"ours": [], "published": []}
    for pair in range(options.pairs):
        for side in sorted(sides, reverse=bool(pair % 2)):  # alternating: drift of the machine hits both
            sides[side].append(child(side, options))
            print(side, {name: round(value, 4) for name, value in sides[side][-1].items()}, flush=True)
        compare({side: results[-1] for side, results in sides.items()}, "on the timed rows")
    rows = list(rows_of_record(options, sides["ours"], sides["published"]))
    for made in rows:
        print(f"{made['metric']}: ours {made['ours']}, published {made['rival']}, ratio {made['ratio']}")
    if not options.quick:
        print(f"written: {write('train_step', rows)}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="A training step against the published formulation of the same loss.")
    made.add_argument("--device", default="cpu")
    made.add_argument("--layers", type=int, default=4, help="of 28; the other shapes stay those of Qwen3-0.6B")
    made.add_argument("--rows", type=int, default=3, help="rows of the update")
    made.add_argument("--rows-at-once", type=int, default=1, help="rows of one forward and backward pass, both sides")
    made.add_argument("--pairs", type=int, default=3, help="measurements of each side, alternating")
    made.add_argument("--quick", action="store_true", help="one pair with one layer and two rows, not recorded")
    made.add_argument("--side", choices=("ours", "published", "check"), help=argparse.SUPPRESS)
    return made


def child(side: str, options: argparse.Namespace) -> Result:
    """One measurement in a fresh process, whose peak memory is its own."""
    given = vars(options)
    words = [f"--{name}={given[name.replace('-', '_')]}" for name in ("device", "layers", "rows", "rows-at-once")]
    command = [sys.executable, __file__, f"--side={side}", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(results: Result, where: str) -> None:
    """Stops if the two sides do not compute the same."""
    for name in ("loss", "gradient_norm"):
        ours, published = (results[side][name] for side in ("ours", "published"))
        if not abs(ours - published) <= TOLERANCE * abs(published):
            raise SystemExit(f"{name} {where}: ours {ours}, published {published}; nothing was timed")
    print(f"same loss and gradient {where}: {results['ours']['loss']:.6f}, {results['ours']['gradient_norm']:.6f}")


def rows_of_record(options: argparse.Namespace, ours: list[Result], published: list[Result]):
    """The rows of the record: ratios are ours / published."""
    settings = {
        "model": f"Qwen3-0.6B's shapes with {options.layers} layers, random float32 weights",
        "rows": options.rows,
        "rows_at_once": options.rows_at_once,
        "prompt_tokens": PROMPT,
        "response_tokens": response_lengths(options.rows, LONGEST),
        "block_size": BLOCK,
        "states": "one_per_block, random commit steps",
        "optimiser": "left out on both sides",
    }
    name = "published formulation: doubled rows, dense masks, padded, head at every position"
    metrics = {
        "seconds": ("seconds of a training step", "s"),
        "peak_gib": ("peak memory above the loaded weights", "GiB"),
        "student_tokens": ("tokens computed by the student", "tokens"),
        "teacher_tokens": ("tokens computed by the teacher", "tokens"),
        "head_rows": ("positions at which each LM head ran", "positions"),
    }
    for key, (metric, unit) in metrics.items():
        yield row(metric, unit, [r[key] for r in ours], [r[key] for r in published], name, settings)


# --- one measurement ----------------------------------------------------------------------------------------------


def measured(options: argparse.Namespace) -> Result:
    """What the step of one side costs and gives; for "check", what both sides give on two short rows."""
    device = torch.device(options.device)
    student, teacher = (random_model(seed, options.layers, device) for seed in (0, 1))
    teacher.requires_grad_(False)
    sides: dict[str, Callable[..., Result]] = {"ours": our_step, "published": published_step}
    short = random_rollout(response_lengths(2, 24), 8).to(device)
    if options.side == "check":
        return {side: with_norm(step(student, teacher, short, 2), student) for side, step in sides.items()}
    text = random_rollout(response_lengths(options.rows, LONGEST), PROMPT).to(device)
    loaded = peak_bytes(device)
    step = sides[options.side]
    with_norm(step(student, teacher, short, options.rows_at_once), student)
    began = perf_counter()
    result = step(student, teacher, text, options.rows_at_once)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = perf_counter() - began
    return {"seconds": seconds, "peak_gib": (peak_bytes(device) - loaded) / 2**30, **with_norm(result, student)}


def peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_process_bytes()


def random_model(seed: int, layers: int, device: torch.device) -> PreTrainedModel:
    """Qwen3-0.6B's shapes with fewer layers."""
    torch.manual_seed(seed)
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    attention = "flex_attention" if device.type == "cuda" else "sdpa"
    with device:
        made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    return made.eval()


def response_lengths(rows: int, longest: int) -> list[int]:
    """Evenly spread up to the longest."""
    return [longest * (i + 1) // rows for i in range(rows)]


def random_rollout(lengths: list[int], prompt: int) -> Rollout:
    """Rows of random tokens; each token of a block is committed in the step of the one before it, or in the next."""
    generator = torch.Generator().manual_seed(0)
    rows, width = len(lengths), prompt + max(lengths)
    length = prompt + torch.tensor(lengths)
    later = torch.randint(0, 2, (rows, -(-width // BLOCK), BLOCK), generator=generator)
    later[..., 0] = 0
    order = torch.rand(later.shape, generator=generator).argsort(-1)
    steps = later.cumsum(-1).gather(-1, order)  # 1 to BLOCK steps a block, its tokens in any order
    steps = steps.flatten(1)[:, :width].masked_fill(torch.arange(width) < prompt, -1)
    text = Rollout(
        input_ids=torch.randint(0, MASK, (rows, width), generator=generator),
        prompt_length=torch.full((rows,), prompt),
        length=length,
        end=length,
        commit_step=steps.short(),
        stopped=torch.ones(rows, dtype=torch.bool),
        forwards=torch.zeros(rows, dtype=torch.int64),
    )
    return whole_blocks(text, MASK, BLOCK)


def with_norm(result: Result, student: PreTrainedModel) -> Result:
    """The result with the norm of the gradient, which is dropped."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in student.parameters() if p.grad is not None])
    student.zero_grad()
    return {**result, "gradient_norm": float(norm)}


# --- ours ---------------------------------------------------------------------------------------------------------


class Kept:
    """In place of the optimiser: the gradients stay where they are."""

    def update(self, loss: float, rows: object) -> float:
        return 0.0


def our_step(student: PreTrainedModel, teacher: PreTrainedModel, text: Rollout, rows_at_once: int) -> Result:
    rows = len(text.length)
    model = BlockDiffusionModel(student, GEOMETRY, MASK)
    frozen = Teacher(BlockDiffusionModel(teacher, GEOMETRY, MASK))
    settings = DistillSettings(prompts_per_rollout=rows, rows_per_update=rows, rows_per_micro_batch=rows_at_once)

    pair = Pair.of(model, frozen, SpecialTokens(MASK, MASK, ()))
    plan = replace(method_of(settings)(pair, 0), write=lambda batch: Written(text, 0))
    batch = Batch([[]] * rows, range(rows))
    counts = training_step(batch, plan, pair, Kept(), settings, OneProcess())  # type: ignore[arg-type]
    return {
        "loss": counts.losses[0],
        "student_tokens": counts.student_query_tokens,
        "teacher_tokens": counts.teacher_query_tokens,
        "head_rows": counts.positions_supervised,
    }


# --- the published formulation ------------------------------------------------------------------------------------


def published_step(student: PreTrainedModel, teacher: PreTrainedModel, text: Rollout, rows_at_once: int) -> Result:
    for model in (student, teacher):
        model.set_attn_implementation("sdpa")
    clean, rows = text.input_ids, len(text.length)
    width = clean.shape[1]
    noised, supervised = noised_rows(text)
    count, total = int(supervised.sum()), 0.0
    for part in torch.arange(rows, device=clean.device).split(rows_at_once):
        ids = torch.cat([noised[part], clean[part]], 1)
        position = torch.arange(width, device=ids.device).repeat(2).expand_as(ids)
        with torch.no_grad():
            expected = log_probabilities(teacher, ids, position, doubled_mask(width, 1, ids.device))
            expected = expected[:, width - 1 : -1]  # in the clean half; the target of token i stands at i - 1
        predicted = log_probabilities(student, ids, position, doubled_mask(width, BLOCK, ids.device))[:, :width]
        kl = kl_div(predicted, expected, reduction="none", log_target=True).sum(-1)
        loss = (kl * supervised[part]).sum() / count
        loss.backward()
        total += float(loss.detach())
    computed = rows * 2 * width
    return {"loss": total, "student_tokens": computed, "teacher_tokens": computed, "head_rows": computed}


def noised_rows(text: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] ids with the masks of the same states that ours trains on, and which of the masked tokens are learnt."""
    seeds = torch.arange(len(text.length), device=text.length.device)
    states = select_states(text, GEOMETRY, StateChoice("one_per_block"), seeds, mask_token_id=MASK)
    noised, supervised = text.input_ids.clone(), torch.zeros_like(text.input_ids, dtype=torch.bool)
    there = states.stream > 0
    noised[states.document[there], states.position_ids[there]] = states.input_ids[there]
    supervised[states.row, states.position] = True
    return noised, supervised


def doubled_mask(width: int, size: int, device: torch.device) -> torch.Tensor:
    """[1, 1, 2T, 2T] bool of [noised | clean] (BD3-LM, arXiv 2503.09573, figure 3); with a block of 1, causal."""
    index = torch.arange(2 * width, device=device)
    block, clean = index % width // size, index >= width
    q, k, q_clean, k_clean = block[:, None], block[None], clean[:, None], clean[None]
    diagonal = (q == k) & (q_clean == k_clean)
    offset_causal = (q > k) & k_clean & ~q_clean
    block_causal = (q >= k) & k_clean & q_clean
    return (diagonal | offset_causal | block_causal)[None, None]


def log_probabilities(
    model: PreTrainedModel, ids: torch.Tensor, position: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """[B, 2T, V] float32."""
    logits = model(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits.float()
    return logits.index_fill_(-1, torch.tensor(MASK, device=ids.device), NEVER_SAMPLED).log_softmax(-1)


if __name__ == "__main__":
    main()
