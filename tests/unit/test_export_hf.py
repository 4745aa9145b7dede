"""The AR reading as a plain folder: it loads without our code and says what the model says from left to right."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lossless import drafting
from opdlm.checkpoints.export_hf import export_hf
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import IdentityCheckError, OutputExistsError, UsageError
from opdlm.evals import exports
from opdlm.evals.exports import to_hf
from opdlm.models.block_diffusion import BlockDiffusionModel
from rollouts import random_prompts
from support import MASK, VOCABULARY, assert_close, tiny_model, tiny_tokenizer

SHIFTED = Geometry(4, "shifted", "causal")


def saved(model: BlockDiffusionModel, folder: Path) -> Path:
    """As a conversion leaves it."""
    mask = model.mask_token_id == MASK
    save_checkpoint(model, tiny_tokenizer(mask=mask), folder, generation=GenerationSettings(), provenance={})
    return folder


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3"])
def test_a_shifted_causal_student(architecture: str, tmp_path: Path) -> None:
    """Else an AR engine would need our code, write the mask token, or lose a tied head."""
    model = BlockDiffusionModel(tiny_model(architecture), SHIFTED, MASK)
    difference = to_hf(str(saved(model, tmp_path / "run" / "model").parent), tmp_path / "hf", dtype="float32")
    assert difference < 1e-5
    assert not list((tmp_path / "hf").glob("*.py"))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert not {"block_diffusion", "auto_map"} & set(config)
    assert "block_diffusion" not in json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    for prompt in random_prompts():
        ids = torch.tensor([prompt])
        ours, theirs = model.logits(model.causal_hidden(ids)), plain(input_ids=ids).logits
        assert_close(ours[..., :MASK], theirs[..., :MASK])
        assert (theirs[..., MASK] == 0).all()


def test_a_lossless_models_base_is_unchanged(tmp_path: Path) -> None:
    """Else `--format hf` of a lossless model would be another model than its original."""
    model = drafting(change=0.3)
    export_hf(model, tiny_tokenizer(), tmp_path / "hf", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    state = tiny_model().state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in state.items())
    assert plain.config.vocab_size == VOCABULARY


def test_rounded(tmp_path: Path) -> None:
    """Else --dtype would say one thing in config.json and another in the weights."""
    folder = saved(BlockDiffusionModel(tiny_model(), SHIFTED, MASK), tmp_path / "model")
    assert to_hf(str(folder), tmp_path / "hf", dtype="bfloat16") < 1e-5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("geometry", [Geometry(4), Geometry(4, "shifted", "block"), Geometry(4, "same", "causal")])
def test_what_an_ar_engine_would_read_wrongly_is_refused(geometry: Geometry, tmp_path: Path) -> None:
    """Else it would write each token one place off, or see blocks that it was not trained to see."""
    model = BlockDiffusionModel(tiny_model(), geometry, MASK)
    with pytest.raises(UsageError, match=r"wrongly.*--format sdar"):
        export_hf(model, tiny_tokenizer(mask=True), tmp_path / "hf", dtype=torch.float32)
    assert not (tmp_path / "hf").exists()


def test_a_folder_that_holds_something_stays(tmp_path: Path) -> None:
    """Else an export would overwrite another model."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "file").write_text("mine")
    with pytest.raises(OutputExistsError):
        export_hf(drafting(), tiny_tokenizer(), tmp_path / "hf", dtype=torch.float32)
    assert (tmp_path / "hf" / "file").read_text() == "mine"


def test_no_export_takes_the_place_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `--output .` would end in a traceback, or pull the ground from under the shell."""
    monkeypatch.chdir(tmp_path)
    for folder in (".", "", "new/.."):
        with pytest.raises(OutputExistsError, match="current one; choose another"):
            export_hf(drafting(), tiny_tokenizer(), folder, dtype=torch.float32)


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """Else the folder would be one that nothing loads."""

    class OwnForCausalLM(LlamaForCausalLM):
        pass

    model = BlockDiffusionModel(OwnForCausalLM(tiny_model().config), SHIFTED, MASK)
    with pytest.raises(UsageError, match="code of its own"):
        export_hf(model, tiny_tokenizer(mask=True), tmp_path / "hf", dtype=torch.float32)
    assert not (tmp_path / "hf").exists()


def test_weights_can_be_read_by_whom_the_config_can_be(tmp_path: Path) -> None:
    """Else a server that runs as another user could not load what safetensors wrote."""
    folder = saved(BlockDiffusionModel(tiny_model(), SHIFTED, MASK), tmp_path / "model")
    export_hf(drafting(), tiny_tokenizer(), tmp_path / "hf", dtype=torch.float32)
    for one in (folder, tmp_path / "hf"):
        assert (one / "model.safetensors").stat().st_mode == (one / "config.json").stat().st_mode


def test_a_folder_that_says_something_else_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else someone would use it, and the next try would find the name taken."""

    def differs(*_: object) -> float:
        raise IdentityCheckError("the logits differ")

    folder = saved(BlockDiffusionModel(tiny_model(), SHIFTED, MASK), tmp_path / "model")
    monkeypatch.setattr(exports, "_difference", differs)
    with pytest.raises(IdentityCheckError):
        to_hf(str(folder), tmp_path / "hf", dtype="float32")
    assert not (tmp_path / "hf").exists()
