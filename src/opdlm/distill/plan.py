"""What a large run would take: tokens, FLOPs, memory by part, hours by part. Nothing is loaded, nothing is run.

FLOPs follow from the shapes and the recipe. Hours follow from FLOPs and bytes by rates: of measurements, where a result
file of `benchmarks/gpu.py` is given, else a share of the maker's peak that is assumed, and named so.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from opdlm.config import DistillSettings
from opdlm.core.schedules import planned_updates
from opdlm.distill.footprint import Growth, Shape, estimate
from opdlm.distill.gpu_kinds import GpuKind
from opdlm.errors import RecordError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.shapes import Decoder
from opdlm.models.tokens import SpecialTokens

PAPER_PROMPTS = 61_816
PAPER_TOKENS = {0.6e9: 48e6, 1.7e9: 72e6, 4e9: 76e6, 8e9: 66e6}
"""Parameters -> response tokens of the paper's conversions (arXiv 2606.06712, Tables 1 and 6)."""
PER_NODE = 8
_OUTSIDE = 1e9  # bytes of a GPU that torch's allocator never has: the CUDA context and its libraries; assumed
_USABLE = 0.92  # share of the rest that fragmentation leaves; assumed


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        prompts: how many. prompt_tokens, response_tokens: of a row, on average.
        tokens_per_forward: that rollouts write.
    """

    prompts: int = PAPER_PROMPTS
    prompt_tokens: int = 256
    response_tokens: int = 1000
    tokens_per_forward: float = 1.44


@dataclass(frozen=True)
class Assumed:
    """What is not measured.

    Attributes:
        mfu: share of the peak that training passes reach. bandwidth: share of the memory's that decoding reaches.
        forward_s: seconds that no forward of decoding goes below (launches of many small kernels).
        network: bytes per second between nodes, each GPU. disk: bytes per second of a checkpoint.
        bus: bytes per second between a GPU and the CPU's memory.
    """

    mfu: float = 0.35
    bandwidth: float = 0.6
    forward_s: float = 0.03
    network: float = 50e9
    disk: float = 1e9
    bus: float = 25e9


@dataclass(frozen=True)
class Rates:
    """Of one GPU; `sources` says of each where it comes from."""

    student: float
    teacher: float
    bandwidth: float
    forward_s: float
    link: float
    disk: float
    bus: float
    sources: dict[str, str]


def paper_response_tokens(parameters: int) -> int:
    """Mean tokens of a response in the paper's conversion of the model that is nearest in size."""
    nearest = min(PAPER_TOKENS, key=lambda size: abs(size - parameters))
    return round(PAPER_TOKENS[nearest] / PAPER_PROMPTS)


def rates_of(kind: GpuKind, assumed: Assumed, gpus: int, files: Sequence[Path] = ()) -> Rates:
    """Measured rates in place of the assumed ones, where result files have them. Raises RecordError for other files."""
    link = kind.link if gpus <= PER_NODE else assumed.network
    share = f"assumed: {assumed.mfu:.0%} of {kind.flops:.3g} FLOP/s ({kind.source})"
    rates = Rates(
        student=assumed.mfu * kind.flops,
        teacher=assumed.mfu * kind.flops,
        bandwidth=assumed.bandwidth * kind.bandwidth,
        forward_s=assumed.forward_s,
        link=link,
        disk=assumed.disk,
        bus=assumed.bus,
        sources={
            "student": share,
            "teacher": share,
            "bandwidth": f"assumed: {assumed.bandwidth:.0%} of {kind.bandwidth:.3g} byte/s ({kind.source})",
            "forward_s": f"assumed: no forward of decoding below {assumed.forward_s * 1000:g} ms",
            "link": f"{kind.source}, one node" if gpus <= PER_NODE else f"assumed: {link:.3g} byte/s between nodes",
            "disk": f"assumed: {assumed.disk:.3g} byte/s",
            "bus": f"assumed: {assumed.bus:.3g} byte/s between GPU and CPU",
        },
    )
    for file in files:
        measured = _measured(file)
        sources = rates.sources | dict.fromkeys(measured, f"measured: {file}")
        rates = replace(rates, **measured, sources=sources)
    return rates


def _measured(file: Path) -> dict[str, float]:
    """Rates in a result file of `benchmarks/gpu.py`: the fastest passes, and the forward of the largest batch."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        found: dict[str, list[float]] = {}
        for row in rows:
            found.setdefault(row["metric"], []).append(float(row["ours"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{file} is no result file of benchmarks/gpu.py ({error!r}); give another") from error
    known = {"student's FLOP/s": ("student", max), "teacher's FLOP/s": ("teacher", max)}
    known |= {"seconds of a forward": ("forward_s", lambda values: values[-1])}
    rates = {name: choose(found[metric]) for metric, (name, choose) in known.items() if metric in found}
    if not rates:
        raise RecordError(f"{file} has no rate that a plan needs; give a result of gpu.py mfu or gpu.py decode")
    return rates


def flops(decoder: Decoder, settings: DistillSettings, job: Job) -> dict[str, float]:
    """Of the whole run, by part. Attention over every pair that is computed: with a dense mask, masked ones too."""
    prompt, response, size = job.prompt_tokens, job.response_tokens, settings.block_size
    steps = size / job.tokens_per_forward  # denoising steps of a block; its first one also commits the block before
    written, text = response * (steps + 1), prompt + response
    masked = response * (steps + 1) / (2 * steps)  # positions that a visited state hides, on average
    packed = text + response
    seen = packed**2 if settings.attention == "dense" else text**2 / 2 + response * (prompt + response / 2)
    student = decoder.forward_flops(packed, seen, masked)
    passes = 4 if settings.gradient_checkpointing else 3
    passes -= settings.lora_rank is not None  # frozen weights have no gradients of their own
    parts = {
        "rollouts": decoder.forward_flops(prompt + written, written * (prompt + response / 2), written),
        "teacher": decoder.forward_flops(text, text**2 / 2, masked),
        "student": passes * student,
    }
    return {name: job.prompts * value for name, value in parts.items()}


def hours(
    decoder: Decoder, settings: DistillSettings, job: Job, rates: Rates, gpus: int, parts: dict[str, float]
) -> dict[str, float]:
    """Hours of the whole run, by part, one after the other as they are. `parts`: of `memory`."""
    trained = parts["gradient"] / 4  # float32
    total = flops(decoder, settings, job)
    rollouts = -(-job.prompts // settings.prompts_per_rollout)
    updates = planned_updates(rollouts, job.prompts, settings.prompts_per_rollout, settings.rows_per_update)
    working = min(gpus, settings.rows_per_update)  # data parallel: a row of an update is on one GPU
    carried = 16.0 * trained if settings.optimiser.moments == "offload" else 0.0  # both moments, there and back
    seconds = {
        "rollouts": rollouts * _rollout_s(decoder, settings, job, rates, gpus),
        "teacher": total["teacher"] / (rates.teacher * working),
        "student": total["student"] / (rates.student * working),
        # Weights, gradients and moments are read, all but the gradients written; clipping reads and writes these once.
        "optimiser": updates * (40.0 * trained / rates.bandwidth + carried / rates.bus),
        # A ring sends float32 gradients twice.
        "exchange": updates * 8.0 * trained / rates.link if gpus > 1 else 0.0,
        "checkpoints": rollouts / settings.save_every_rollouts * parts["checkpoint"] / rates.disk,
    }
    return {name: value / 3600 for name, value in seconds.items()}


def _rollout_s(decoder: Decoder, settings: DistillSettings, job: Job, rates: Rates, gpus: int) -> float:
    """Of one rollout: forwards until its longest row, taken to reach the cap, is done, and all rows of a GPU are."""
    rows = -(-settings.prompts_per_rollout // gpus)
    batch, middle = min(rows, settings.rollout_batch), job.prompt_tokens + job.response_tokens / 2
    size = settings.block_size
    tokens = batch * (size + job.tokens_per_forward)  # a block, and now and then the one before
    compute = decoder.forward_flops(tokens, tokens * middle, batch * size) / rates.student
    read = (2.0 * decoder.parameters + 4.0 * decoder.cached * batch * middle) / rates.bandwidth
    longest = max(settings.response_length.end, rows * job.response_tokens / batch)
    return longest / job.tokens_per_forward * max(compute, read, rates.forward_s)


def memory(
    model: BlockDiffusionModel, settings: DistillSettings, job: Job, gpus: int, growth: Growth
) -> dict[str, Any]:
    """Bytes on each GPU, by part, replicated and with all state in equal shards; of a row at its longest."""
    rows = settings.rows_per_micro_batch or -(-settings.rows_per_update // gpus)
    batch = min(-(-settings.prompts_per_rollout // gpus), settings.rollout_batch)
    shape = Shape(rows, job.prompt_tokens, settings.response_length.end, batch, "cuda")
    tokens = SpecialTokens(model.mask_token_id, 0, ())

    def parts_of(sharding: str) -> dict[str, Any]:
        one = settings.model_copy(update={"sharding": sharding})
        found = estimate(model, tokens, one, settings.lora_rank or 32, shape, growth)
        found = _of_adapter(found) if settings.lora_rank is not None else found
        return {name.removesuffix("_bytes"): value for name, value in found.items() if name.endswith("_bytes")}

    parts, shards = parts_of("none"), parts_of("full")
    state = sum(shards[name] for name in ("weights", "gradient", "moment", "teacher"))
    sharded = state / gpus + shards["training"] - state
    return {"rows": rows, "parts": parts, "replicated": parts["training"], "sharded": sharded}


def _of_adapter(found: dict[str, Any]) -> dict[str, Any]:
    """`found` where only an adapter trains: its gradients and moments, no teacher beside the frozen weights."""
    adapter = found["lora_checkpoint_bytes"] // 4
    parts = {"gradient_bytes": adapter, "moment_bytes": 2 * adapter, "teacher_bytes": 0}
    parts |= {name: found[name] - found["narrowed_bytes"] for name in ("weights_bytes", "copy_bytes")}
    parts |= {"training_bytes": found["lora_bytes"], "checkpoint_bytes": found["lora_checkpoint_bytes"]}
    return found | parts


def fits(needed: float, kind: GpuKind) -> bool:
    """Whether so many bytes of tensors find room on such a GPU."""
    return needed <= _USABLE * (kind.memory - _OUTSIDE)


def plan(
    model: BlockDiffusionModel,
    settings: DistillSettings,
    job: Job,
    kind: GpuKind,
    rates: Rates,
    gpus: int,
    growth: Growth,
) -> dict[str, Any]:
    """Everything, for `opdlm doctor --plan`."""
    decoder = Decoder.of(model.model)
    rollouts = -(-job.prompts // settings.prompts_per_rollout)
    needed = memory(model, settings, job, gpus, growth)
    spent = hours(decoder, settings, job, rates, gpus, needed["parts"])
    work = flops(decoder, settings, job)
    return {
        "parameters": decoder.parameters,
        "job": asdict(job),
        "gpus": gpus,
        "gpu": asdict(kind),
        "response_tokens": job.prompts * job.response_tokens,
        "rollouts": rollouts,
        "updates": planned_updates(rollouts, job.prompts, settings.prompts_per_rollout, settings.rows_per_update),
        "working_gpus": min(gpus, settings.rows_per_update),
        "flops": {**work, "total": sum(work.values())},
        "memory": needed,
        "fits": {name: fits(needed[name], kind) for name in ("replicated", "sharded")},
        "hours": {**spent, "total": sum(spent.values())},
        "rates": asdict(rates),
    }
