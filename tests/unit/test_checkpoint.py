"""Checkpoints: what is written, what comes back, and what bad folders get. Nothing here reaches the network."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import opdlm
from opdlm.checkpoints import save
from opdlm.checkpoints.load import generation_settings, is_checkpoint, load_checkpoint
from opdlm.checkpoints.save import save_checkpoint
from opdlm.checkpoints.source import count_parameters
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import (
    CheckpointError,
    ModelNotFoundError,
    NonFiniteWeightsError,
    OpdlmError,
    OutputExistsError,
    StorageError,
    UnsupportedModelError,
)
from opdlm.models.block_diffusion import BlockDiffusionModel
from support import MASK, tiny_model, tiny_tokenizer

GENERATION = GenerationSettings.model_validate({"decoding": "dynamic:0.7", "max_new_tokens": 33})


def saved(folder: Path, name: str = "llama", seed: int = 0) -> BlockDiffusionModel:
    model = BlockDiffusionModel(tiny_model(name, seed=seed), Geometry(4, "shifted", "causal"), MASK)
    provenance = {"base_model": "someone/small", "accuracy": 0.5}
    save_checkpoint(model, tiny_tokenizer(chat=True, mask=True), folder, generation=GENERATION, provenance=provenance)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    saved(folder)
    return folder


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- there and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_what_is_saved_comes_back(name: str, tmp_path: Path) -> None:
    """Else a finished conversion could not be used, or only almost."""
    original = saved(tmp_path / "model", name)
    model, tokenizer = load_checkpoint(tmp_path / "model")
    assert model.geometry == Geometry(4, "shifted", "causal")
    assert model.mask_token_id == tokenizer.mask_token_id == MASK
    assert tokenizer.chat_template == tiny_tokenizer(chat=True).chat_template
    assert generation_settings(model.model.generation_config) == GENERATION
    assert_same_weights(model.model, original.model)
    assert type(model.model) is type(original.model)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_checkpoint_is_also_a_plain_model(folder: Path) -> None:
    """Else the weights could not be used, compared or converted again by tools that know nothing of opdlm."""
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert_same_weights(plain, tiny_model())
    assert AutoTokenizer.from_pretrained(folder).mask_token_id == MASK


def test_saving_leaves_the_live_model_as_it_was(tmp_path: Path) -> None:
    """Else the first checkpoint of a run would change the config that training goes on with."""
    model = tiny_model()
    before = model.config.to_dict()
    save_checkpoint(
        BlockDiffusionModel(model, Geometry(4), MASK),
        tiny_tokenizer(mask=True),
        tmp_path / "model",
        generation=GENERATION,
        provenance={},
    )
    after = model.config.to_dict()
    assert not hasattr(model.config, "block_diffusion")
    assert {key for key in before if before[key] != after[key]} <= {"architectures", "dtype"}


def test_a_contradictory_generation_config_is_kept(tmp_path: Path) -> None:
    """Else a conversion of a model whose publisher wrote one would fail at its first checkpoint, after hours."""
    model = tiny_model()
    model.generation_config.update(temperature=0.6, do_sample=False, eos_token_id=[2, 7])
    adapted = BlockDiffusionModel(model, Geometry(4), MASK)
    tokenizer = tiny_tokenizer(mask=True)
    save_checkpoint(adapted, tokenizer, tmp_path / "model", generation=GENERATION, provenance={})
    assert model.generation_config.temperature == 0.6
    loaded = load_checkpoint(tmp_path / "model")[0].model.generation_config
    assert (loaded.temperature, loaded.do_sample, loaded.eos_token_id) == (0.6, False, [2, 7])


def test_stop_tokens_of_the_tokenizer_are_in_the_generation_config(tmp_path: Path) -> None:
    """Else the folder's own code, which sees no tokenizer, would write on where opdlm stops."""
    model = tiny_model()
    model.generation_config.eos_token_id = 9
    adapted = BlockDiffusionModel(model, Geometry(4), MASK)
    save_checkpoint(adapted, tiny_tokenizer(mask=True), tmp_path / "model", generation=GENERATION, provenance={})
    content = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert content["eos_token_id"] == [2, 9]
    assert content["pad_token_id"] == 0


def test_the_folder_is_described(folder: Path) -> None:
    """Else a reader of the folder would not know its block size, its origin or what was measured."""
    config = json.loads((folder / "config.json").read_text())
    assert config["block_diffusion"] == {
        "block_size": 4,
        "mask_token_id": MASK,
        "prediction": "shifted",
        "context": "causal",
        "base_model": "someone/small",
        "opdlm_version": opdlm.__version__,
    }
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_opdlm.BlockDiffusionForCausalLM"}
    assert config["architectures"] == ["LlamaForCausalLM"]
    card = (folder / "README.md").read_text()
    assert "base_model: someone/small" in card
    assert "| accuracy | 0.5 |" in card
    assert is_checkpoint(folder)
    assert not is_checkpoint(folder.parent)
    assert not is_checkpoint(folder / "config.json")


# --- writing, completely or not at all ----------------------------------------------------------------------------


def test_an_earlier_checkpoint_is_replaced_only_by_a_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a full disk would cost the last good checkpoint together with the new one."""
    first = saved(tmp_path / "model")

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(save, "model_card", full)
        with pytest.raises(StorageError, match="disk is full"):
            saved(tmp_path / "model", seed=1)
    assert_same_weights(load_checkpoint(tmp_path / "model")[0].model, first.model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    second = saved(tmp_path / "model", seed=2)
    assert_same_weights(load_checkpoint(tmp_path / "model")[0].model, second.model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """Else a model of NaN would take the place of the last good one."""
    model = saved(tmp_path / "model")
    with torch.no_grad():
        next(model.model.parameters())[3, 0] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match="earlier checkpoint"):
        save_checkpoint(model, tiny_tokenizer(mask=True), tmp_path / "model", generation=GENERATION, provenance={})
    assert torch.isfinite(next(load_checkpoint(tmp_path / "model")[0].model.parameters())).all()


def test_a_failed_rename_brings_the_earlier_checkpoint_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the last step of saving could lose what it was about to replace."""
    first = saved(tmp_path / "model")
    rename = Path.rename

    def fails_for_the_new_one(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails_for_the_new_one)
        with pytest.raises(StorageError, match="Input/output error"):
            saved(tmp_path / "model", seed=1)
    assert_same_weights(load_checkpoint(tmp_path / "model")[0].model, first.model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """Else a half-written folder would look like a checkpoint. Here the system itself refuses: no file may grow."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(StorageError, match="could not be written"):
            saved(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Ctrl-C while saving would leave a hidden folder of the model's size."""

    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    """Else `--output .` would delete the user's work."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("years")
    with pytest.raises(OutputExistsError, match="choose another"):
        saved(tmp_path / "model")
    assert (tmp_path / "model" / "thesis.txt").read_text() == "years"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """Else the end of a long run would be a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        saved(tmp_path / "file" / "model")


# --- what bad input gets ------------------------------------------------------------------------------------------


def refused(path: Path | str, kind: type[OpdlmError], *words: str) -> None:
    """Loading fails with `kind`, in one line that holds the words."""
    with pytest.raises(kind) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_parameters_are_counted_without_weights(name: str) -> None:
    """Else a model would get the recipe for another size; tied weights count once."""
    model = tiny_model(name)
    assert count_parameters(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["nobody/nothing", "./no/such/folder", "/no/such/folder", "nothing"])
def test_unknown_models(name: str) -> None:
    """Else a misspelt name would end in the hub's traceback."""
    refused(name, ModelNotFoundError, name, "check the spelling")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    """Else the parent of the right folder would be reported as an unknown architecture."""
    refused(tmp_path, ModelNotFoundError, "no config.json")


def test_a_damaged_config(damaged: Path) -> None:
    """Else the message would speak of a model hub that has nothing to do with it."""
    (damaged / "config.json").write_text('{"model_type": ')
    refused(damaged, CheckpointError, "not valid JSON")


def test_unknown_architectures(damaged: Path) -> None:
    """Else code from the folder would be asked for, or run."""
    edit(damaged / "config.json", model_type="foo", auto_map={"AutoConfig": "x.Foo"})
    refused(damaged, UnsupportedModelError, "choose a model")


def test_unsupported_architectures_before_any_weight(damaged: Path) -> None:
    """Else gigabytes would be read first."""
    (damaged / "model.safetensors").unlink()
    edit(damaged / "config.json", model_type="mamba")
    refused(damaged, UnsupportedModelError, "state-space")


@pytest.mark.parametrize("kept", [0.5, 0.0001])
def test_truncated_weights(damaged: Path, kept: float) -> None:
    """Else an interrupted copy would end in a traceback of the file format."""
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: int(len(weights) * kept)])
    refused(damaged, CheckpointError, "truncated or damaged")


def test_missing_weights(damaged: Path) -> None:
    """Else transformers would fill the layers that are not there with random numbers and go on."""
    edit(damaged / "config.json", num_hidden_layers=4)
    refused(damaged, CheckpointError, "lacks 9 weights")


def test_no_weights(damaged: Path) -> None:
    """Else the message would be another library's."""
    (damaged / "model.safetensors").unlink()
    refused(damaged, CheckpointError, "cannot be read")


def test_weights_of_another_shape(damaged: Path) -> None:
    """Else a config beside the wrong weights would end in a table of every tensor."""
    edit(damaged / "config.json", hidden_size=64)
    refused(damaged, CheckpointError, "do not fit its config.json")


def test_no_tokenizer(damaged: Path) -> None:
    """Else the first prompt would be the first to notice."""
    for path in damaged.glob("tokenizer*"):
        path.unlink()
    refused(damaged, CheckpointError, "no tokenizer")


def test_a_plain_ar_model_is_not_a_checkpoint(tmp_path: Path) -> None:
    """Else an unconverted model would be decoded in blocks and write nonsense."""
    tiny_model().save_pretrained(tmp_path)
    refused(tmp_path, CheckpointError, "opdlm convert")


def test_a_damaged_entry(damaged: Path) -> None:
    """Else a missing block size would be guessed."""
    edit(damaged / "config.json", block_diffusion={"mask_token_id": MASK})
    refused(damaged, CheckpointError, "block_size")


def test_damaged_decoding_defaults(damaged: Path) -> None:
    """Else a misspelt setting would be ignored and the default used in its place."""
    edit(damaged / "generation_config.json", block_diffusion={"decoding": "dynamic:1.7"})
    with pytest.raises(CheckpointError, match="threshold"):
        generation_settings(load_checkpoint(damaged)[0].model.generation_config)


def test_adapters_are_merged_first(tmp_path: Path) -> None:
    """Else a checkpoint would hold renamed weights that no other tool can load."""
    model = tiny_model()
    model.lora_something = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="merge"):
        save_checkpoint(
            BlockDiffusionModel(model, Geometry(4), MASK),
            tiny_tokenizer(mask=True),
            tmp_path / "model",
            generation=GENERATION,
            provenance={},
        )
