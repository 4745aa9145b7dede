"""An adapter saved alone: a few MB that give the same model on the same base, and on no other."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import opdlm
from cli_support import SMALL, call, fails
from opdlm.distill.api import convert, resume
from opdlm.errors import CheckpointError, ModelNotFoundError
from opdlm.records.metrics import StepMetrics
from support import tiny_model, tiny_tokenizer

peft = pytest.importorskip("peft")

SETTINGS = {
    "device": "cpu",
    "rollouts": 3,
    "prompts_per_rollout": 2,
    "rows_per_update": 1,
    "save_every_rollouts": 1,
    "response_length": {"start": 8, "end": 8},
    "optimiser": {"learning_rate": 1e-2},
    "decoding": "prefix:0.8",
    "lora_rank": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An AR model whose embedding grows by the mask token."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_model(vocab_size=96).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(base, tmp_path):
    convert(base, ["a", "b", "c"], tmp_path / "run", adapter_only=True, **SETTINGS)
    return tmp_path / "run"


def state(folder):
    return opdlm.load(folder, device="cpu").model.model.state_dict()


def test_it_is_the_merged_model(base, run, tmp_path):
    """Else the small folder would hold another model than the large one."""
    convert(base, ["a", "b", "c"], tmp_path / "merged", **SETTINGS)
    ours, whole = state(run), state(tmp_path / "merged")
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    original = tiny_model(vocab_size=96).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ours[name], original[name]), "nothing was trained, so nothing was tested"
    assert opdlm.load(run).defaults == opdlm.load(tmp_path / "merged").defaults
    assert not list((run / "model").glob("model*.safetensors"))
    assert not list(run.glob("checkpoints/*/model*.safetensors"))
    low = opdlm.load(run, device="cpu", dtype=torch.bfloat16).model.model
    assert all(parameter.dtype == torch.bfloat16 for parameter in low.parameters())
    with warnings.catch_warnings():  # peft asks a model of transformers by a name that is deprecated there
        warnings.simplefilter("ignore", FutureWarning)
        peft.PeftModel.from_pretrained(tiny_model(vocab_size=96), str(run / "model"))  # peft's own format


def test_a_damaged_adapter_is_named(run):
    """Else weights that were never loaded would be zero, and the model the base without a word."""
    where = run / "model" / "adapter_model.safetensors"
    weights = load_file(where)
    weights.pop(sorted(weights)[0])
    save_file(weights, where)
    with pytest.raises(CheckpointError, match="does not have the weights"):
        opdlm.load(run)
    where.write_bytes(where.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be applied"):
        opdlm.load(run)


def test_it_resumes(base, run, tmp_path):
    """Else a run that saves its adapter alone could not be continued."""

    def cut(metrics: StepMetrics) -> None:
        if metrics.rollout == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(base, ["a", "b", "c"], tmp_path / "cut", adapter_only=True, on_step=cut, **SETTINGS)
    resume(tmp_path / "cut")
    ours, whole = state(tmp_path / "cut"), state(run)
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_another_base_is_refused(base, run, tmp_path):
    """Else an adapter on other weights would write nonsense, and nobody would know why."""
    where = run / "model" / "adapter_config.json"
    config = json.loads(where.read_text())
    assert config["base_model_name_or_path"] == str(base)
    other = tmp_path / "other"
    tiny_model(vocab_size=96, seed=1).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    where.write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    with pytest.raises(CheckpointError, match="not those that the adapter was trained on"):
        opdlm.load(run)
    where.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelNotFoundError, match="is an adapter, and its base"):
        opdlm.load(run)
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    where.write_text(json.dumps(config | {"base_model_name_or_path": str(moved)}))
    opdlm.load(run)


def test_commands(base, prompts, tmp_path, capsys):
    """Else the flag would work from Python alone, or without an adapter save nothing."""
    words = ("convert", base, "--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--adapter-only")
    assert "set lora_rank too" in fails(capsys, *words)
    assert call(*words, "--lora", "2") == 0
    assert call("generate", tmp_path / "run", "one", "--max-new-tokens", "4") == 0
    assert "This is an adapter alone" in (tmp_path / "run" / "model" / "README.md").read_text()
