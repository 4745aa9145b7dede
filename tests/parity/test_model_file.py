"""The checkpoint's own model file, where opdlm is not installed, against our sampler: token for token."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlm.checkpoints.load import load_checkpoint
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry, Rollout
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens, special_tokens
from opdlm.sampling.reference import generate_row
from sampling_support import generated
from support import MASK, tiny_model, tiny_tokenizer

MODELS = {
    "llama": Geometry(4),
    "qwen2": Geometry(8, context="causal"),
    "mistral": Geometry(4, prediction="shifted"),
    "gemma3": Geometry(3, prediction="shifted", context="causal"),
    "gpt_neox": Geometry(1),
}
# Two letters each, in so many ways that a random text soon has one; the last is longer than a block.
STOP_STRINGS = [*map("".join, product("abcdefghijklmnopqrstuvwxyz", "eioVWXYZ0123456789 .,")), "abcabcabcabc"]
LENGTHS = (1, 4, 5, 11, 16)  # shorter than a block, whole blocks, between
SETTINGS: list[dict[str, Any]] = [
    {},  # the checkpoint's own defaults
    {"decoding": "static", "max_new_tokens": 9},
    {"decoding": "sequential:2", "max_new_tokens": 10},
    {"decoding": "dynamic:0.05", "temperature": 1.0, "max_new_tokens": 12, "seed": 7},
    {"decoding": "dynamic:0.02", "temperature": 0.7, "top_k": 9, "top_p": 0.8, "max_new_tokens": 21, "seed": 1},
    {"decoding": "prefix:0.02", "temperature": 1.0, "max_new_tokens": 12, "seed": 3},
    {"decoding": "factor:2.5", "temperature": 1.0, "min_p": 0.2, "max_new_tokens": 12},
    {"decoding": "entropy:4", "temperature": 0.0, "repetition_penalty": 1.5, "max_new_tokens": 12},
    {"decoding": {"kind": "entropy", "bound": 6, "by_confidence": True}, "logit_bias": {"7": 2.5, "40": -4}},
    {"decoding": {"kind": "klass", "threshold": 0.05, "drift": 0.5, "history": 1}, "temperature": 0.0},
    {
        "decoding": {"kind": "klass", "threshold": 0.02, "drift": 1.0},
        "top_k": 30,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "logit_bias": {"41": 1.5},
    },
    {"stop_strings": STOP_STRINGS, "max_new_tokens": 30, "decoding": "factor:2"},
    {"stop_strings": list("eHmt="), "max_new_tokens": 30},
]
DEFAULTS = GenerationSettings.model_validate({"decoding": "dynamic:0.1", "max_new_tokens": 14, "temperature": 1.0})

CHILD = """
import json, sys

job = json.load(sys.stdin)
sys.path[:] = job["path"]

class NoOpdlm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("opdlm", "support"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, NoOpdlm())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from transformers import AutoConfig

config = AutoConfig.from_pretrained(job["folders"][0], trust_remote_code=True)
untrained = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
assert untrained.generate(torch.tensor([[5, 6]]), max_new_tokens=3).shape[1] <= 5
outputs = []
for folder in job["folders"]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    batch = {key: torch.tensor(value) for key, value in job["batch"].items()}
    batch["tokenizer"] = AutoTokenizer.from_pretrained(folder)
    outputs.append([model.generate(**batch, **settings).tolist() for settings in job["settings"]])
model.save_pretrained(job["again"])
again = AutoModelForCausalLM.from_pretrained(job["again"], trust_remote_code=True)
assert again.generate(**batch, **job["settings"][1]).tolist() == outputs[-1][1]
assert type(again).__name__ == "GPTNeoXForCausalLM"
assert not any(name.split(".")[0] == "opdlm" for name in sys.modules)
json.dump(outputs, open(job["output"], "w"))
"""


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, MASK, (length,), generator=generator).tolist() for length in LENGTHS]


def padded_left() -> dict[str, list[list[int]]]:
    width = max(LENGTHS)
    ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts()]
    return {"input_ids": ids, "attention_mask": [[0] * (width - n) + [1] * n for n in LENGTHS]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each of MODELS. Some tokens stop a text, so that rows end in different places."""
    made = {}
    for name, geometry in MODELS.items():
        model = tiny_model(name)
        model.generation_config.eos_token_id = [2, 40, 41, 42]
        made[name] = tmp_path_factory.mktemp(name) / "model"
        save_checkpoint(
            BlockDiffusionModel(model, geometry, MASK),
            tiny_tokenizer(mask=True),
            made[name],
            generation=DEFAULTS,
            provenance={},
        )
    return made


@pytest.fixture(scope="module")
def remote(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[list[int]]]]:
    """Outputs [model][settings][row] of a process that has no opdlm."""
    scratch = tmp_path_factory.mktemp("remote")
    job = {
        "path": [path for path in sys.path if path and not (Path(path) / "opdlm").is_dir()],
        "folders": [str(folder) for folder in folders.values()],
        "batch": padded_left(),
        "settings": SETTINGS,
        "again": str(scratch / "again"),
        "output": str(scratch / "outputs.json"),
    }
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "home"), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD],
        input=json.dumps(job),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = json.loads((scratch / "outputs.json").read_text())
    return dict(zip(folders, outputs, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_model_file_writes_what_our_sampler_writes(
    name: str, folders: dict[str, Path], remote: dict[str, list[list[list[int]]]]
) -> None:
    """Else a user without opdlm would get another model than the one that was measured.

    Rows of different lengths in one left-padded batch, against the engine (batched, cached) and the slow reference (one
    row, no cache).
    """
    model, tokenizer = load_checkpoint(folders[name])
    tokens = special_tokens(model.model, tokenizer)
    endings, strings = set(), 0
    for settings, outputs in zip(SETTINGS, remote[name], strict=True):
        chosen = GenerationSettings.model_validate({**DEFAULTS.model_dump(), **settings})
        batched = generated(model, tokens, chosen, prompts(), tokenizer=tokenizer)
        strings += int((batched.stopped & ~ends_with_stop_token(batched, tokens)).sum())
        for row, prompt in enumerate(prompts()):
            response = batched.input_ids[row, len(prompt) : int(batched.length[row])].tolist()
            slow = generate_row(model, prompt, chosen, tokens, chosen.seed + row)
            ended_by_string = len(response) < int(slow.length) - len(prompt)  # the slow one knows no stop strings
            assert ended_by_string <= bool(chosen.stop_strings)
            assert slow.input_ids[0, len(prompt) : len(prompt) + len(response)].tolist() == response
            padding = [tokens.pad_token_id] * (len(outputs[row]) - max(LENGTHS) - len(response))
            assert outputs[row] == padded_left()["input_ids"][row] + response + padding, (settings, row)
            endings.add(bool(batched.stopped[row]))
    assert endings == {True, False}, "rows must end in both ways, or the test says less than it seems to"
    assert strings >= 2, "and some by a stop string"


def ends_with_stop_token(rollout: Rollout, tokens: SpecialTokens) -> torch.Tensor:
    last = rollout.input_ids.gather(1, rollout.length[:, None] - 1)[:, 0]
    return torch.isin(last, torch.tensor(tokens.stop_token_ids))


def test_unknown_arguments_are_refused(folders: dict[str, Path]) -> None:
    """Else `num_beams=4`, a misspelt setting or stop strings that nothing can find would be ignored in silence."""
    from opdlm.sampling.model_file import BlockDiffusionForCausalLM

    model = BlockDiffusionForCausalLM.from_pretrained(str(folders["llama"]))
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(torch.tensor([[5]]), num_beams=4)
    for settings, message in (
        ({"decoding": "dynamo"}, "choose static"),
        ({"decoding": "static:0"}, "tokens_per_step is 0.0, and must be at least 1"),
        ({"decoding": {"kind": "klass", "threshold": 2}}, "threshold is 2, and must be at most 1"),
        ({"stop_strings": "a"}, "need the tokenizer"),
        ({"stop_strings": [""], "tokenizer": tiny_tokenizer()}, "is empty"),
        ({"logit_bias": {97: 1.0}}, "from 0 to 96"),
        ({"logit_bias": {3: 1e39}}, "logit_bias is 1e.39"),
        ({"max_new_tokens": 256}, "context of 256"),
        ({"max_new_tokens": 10**9}, "must be at most 1048576"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(torch.tensor([[5]]), **settings)
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(torch.tensor([[5]]), attention_mask=torch.tensor([[0]]))
