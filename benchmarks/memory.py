"""Does `footprint.estimate` predict the memory of training? Updates of a random model, each way in its own process.

    python benchmarks/memory.py                 33 million parameters on the CPU, some minutes
    python benchmarks/memory.py --layers 28 --hidden 1024          on a GPU, which is taken where there is one

Predicted from the model's config alone, without weights, as `opdlm doctor --plan` does; measured: the largest resident
size of the process (on a GPU: of torch's allocator) after two updates, the first of which makes the optimiser's state.
Both without what the process held before the model was made, so that Python and torch, which are easy to predict, do
not count. Texts have exactly the length that is predicted for. Ratio: predicted / measured.
"""

import argparse
import copy
import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any

import measuring
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from opdlm.config import DistillSettings, settings_from
from opdlm.core.types import Geometry
from opdlm.distill.footprint import Shape, estimate
from opdlm.distill.loop import Trainer
from opdlm.distill.methods import method_of
from opdlm.distill.pair import Pair
from opdlm.distill.rollout import Written, given
from opdlm.distill.step import Batch, Plan
from opdlm.distill.teacher import Teacher
from opdlm.models import adapter, low_bits
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import peak_process_bytes
from opdlm.models.shapes import without_weights
from opdlm.models.tokens import SpecialTokens

VOCABULARY, PROMPT, RESPONSE, ROWS = 16_000, 32, 128, 2
TOKENS = SpecialTokens(VOCABULARY - 1, 0, ())
LESS = {"gradient_checkpointing": True, "teacher_precision": "bfloat16", "optimiser": {"moments": "8bit"}}
RUNS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "all weights, a row at a time": {"rows_per_micro_batch": 1},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bfloat16 products": {"precision": "bfloat16"},
    "bfloat16 products, gradient checkpointing": {"precision": "bfloat16", "gradient_checkpointing": True},
    "teacher in bfloat16": {"teacher_precision": "bfloat16"},
    "teacher in 4 bits": {"teacher_precision": "4bit"},
    "moments in 8 bits": {"optimiser": {"moments": "8bit"}},
    "moments in the CPU's memory": {"optimiser": {"moments": "offload"}},
    "gradient checkpointing, teacher in bfloat16, moments in 8 bits": LESS,
    "LoRA, rank 32": {"lora_rank": 32},
    "LoRA, rank 32, bfloat16 products": {"lora_rank": 32, "precision": "bfloat16"},
}


def main() -> None:
    """Measures each run, shows it, writes `results/memory.json` as it goes."""
    options = arguments()
    if options.run:
        print(json.dumps(measured(options)))
        return
    rows: list[dict[str, Any]] = []
    for name, settings in list(RUNS.items())[:: 4 if options.quick else 1]:
        if ("8bit" in str(settings) or "4bit" in str(settings)) and find_spec("bitsandbytes") is None:
            print(f"{name}: left out, needs bitsandbytes")
            continue
        if "offload" in str(settings) and not options.device.startswith("cuda"):
            print(f"{name}: left out, needs a GPU")
            continue
        flags = [f"--{key}={getattr(options, key)}" for key in ("device", "hidden", "layers")]
        command = [sys.executable, __file__, "--run", name, *flags]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        shown = {**settings, "hidden_size": options.hidden, "layers": options.layers, "vocabulary": VOCABULARY}
        shown |= {"prompt": PROMPT, "response": RESPONSE, "rows": ROWS, "parts": found["parts"]}
        row = measuring.row(name, "byte", [found["predicted"]], [found["measured"]], "measured", shown)
        rows.append(row)
        print(f"{name}: predicted {row['ours']:.4g}, measured {row['rival']:.4g}, ratio {row['ratio']}", flush=True)
        if not options.quick:
            measuring.write("memory" if options.device == "cpu" else "gpu_memory", rows)


def arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden", type=int, default=512, metavar="N", help="hidden size (512)")
    parser.add_argument("--layers", type=int, default=8, metavar="N")
    parser.add_argument("--quick", action="store_true", help="three runs of a tiny model, nothing recorded")
    parser.add_argument("--run", choices=list(RUNS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.hidden, chosen.layers = 64, 2
    return chosen


def config_of(options: argparse.Namespace) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128 or 1,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        dtype="bfloat16",
    )


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One way to train, in this process."""
    values = {"rows_per_micro_batch": ROWS, **RUNS[options.run], "rollouts": 2, "prompts_per_rollout": ROWS}
    settings = settings_from(DistillSettings, {**values, "rows_per_update": ROWS})
    predicted = prediction(options, settings)
    torch.manual_seed(0)
    with torch.device(options.device):
        decoder = AutoModelForCausalLM.from_config(config_of(options)).eval().float()  # published in bfloat16
    student = BlockDiffusionModel(decoder, Geometry(4), TOKENS.mask_token_id)
    pair = Pair.of(student, teacher_of(student, settings), TOKENS)
    if settings.gradient_checkpointing:
        student.checkpoint_activations()
    Trainer(pair, [[1] * PROMPT] * ROWS, settings, method=partial(written, settings)).train()
    cuda = options.device.startswith("cuda")
    found = torch.cuda.max_memory_allocated() if cuda else peak_process_bytes()
    found -= predicted["base_bytes"]
    needed = predicted["training_bytes"] - predicted["base_bytes"]
    if settings.lora_rank is not None:  # no checkpoint here, at which an adapter is merged into a copy of the weights
        needed = predicted["lora_bytes"] - predicted["base_bytes"] - 2 * predicted["weights_bytes"]
    return {"predicted": needed, "measured": found, "parts": predicted}


def teacher_of(student: BlockDiffusionModel, settings: DistillSettings) -> Teacher:
    """As `convert` makes it."""
    if settings.lora_rank is not None:
        adapter.add_adapter(student.model, settings.lora_rank)
        if settings.narrows(student.device.type):
            low_bits.narrow_frozen(student.model)
        return Teacher(student, frozen=partial(adapter.adapter_off, student.model))
    original = low_bits.reduced(copy.deepcopy(student.model).requires_grad_(False), settings.teacher_precision)
    if settings.narrows(student.device.type):
        low_bits.narrow_frozen(original)
    return Teacher(BlockDiffusionModel(original, student.geometry, student.mask_token_id))


def written(settings: DistillSettings, pair: Pair, index: int) -> Plan:
    """The paper's step, on texts of exactly RESPONSE tokens that nobody had to write."""
    plan = method_of(settings)(pair, index)

    def write(batch: Batch) -> Written:
        text = given(batch.prompts, [[2] * RESPONSE] * len(batch.prompts), TOKENS, settings.block_size, RESPONSE)
        return Written(text.to(pair.student.device), 0)

    return Plan(write, plan.states, plan.targets, plan.loss)


def prediction(options: argparse.Namespace, settings: DistillSettings) -> dict[str, Any]:
    model = BlockDiffusionModel(without_weights(config_of(options)), Geometry(4), TOKENS.mask_token_id)
    shape = Shape(settings.rows_per_micro_batch or ROWS, PROMPT, RESPONSE, 1, options.device.partition(":")[0])
    found = estimate(model, TOKENS, settings, settings.lora_rank or 32, shape)
    return {name: value for name, value in found.items() if name.endswith("_bytes")}


if __name__ == "__main__":
    main()
