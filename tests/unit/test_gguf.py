"""GGUF files as AR models: the same logits, plain weights, and errors that name the fix."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from opdlm.checkpoints import gguf_file
from opdlm.checkpoints.gguf_file import OLDEST
from opdlm.checkpoints.load import load_ar_config, load_ar_model, load_checkpoint, weights_note
from opdlm.errors import CheckpointError, MissingExtraError, ModelNotFoundError, OpdlmError, UnsupportedModelError
from support import assert_close, tiny_tokenizer

pytest.importorskip("gguf", reason="needs gguf: pip install 'opdlm[gguf]'")

if Version(transformers.__version__) < Version(OLDEST):
    pytest.skip(f"GGUF files need transformers {OLDEST} or newer", allow_module_level=True)

from gguf_support import GGUF_ARCHITECTURES, SPECIALS, gguf_model, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", gguf_model())


def refused(path: Path, kind: type[OpdlmError], *words: str) -> None:
    """The file is refused with `kind`, in one line that holds the words."""
    with pytest.raises(kind) as caught:
        load_ar_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# --- what comes over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GGUF_ARCHITECTURES)
def test_the_model_is_the_one_that_was_written(name: str, tmp_path: Path) -> None:
    """Else the teacher would be another model than the file's, which stores heads and norms in its own way."""
    model = gguf_model(name)
    loaded, _ = load_ar_model(write_gguf(tmp_path / "tiny.gguf", model, name))
    ids = torch.randint(3, 260, (2, 20), generator=torch.Generator().manual_seed(0))
    assert_close(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("quantisation", ["F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_0"])
def test_quantised_weights_become_plain_ones(quantisation: str, tmp_path: Path) -> None:
    """Else a conversion would end in an error at its first checkpoint, or train from other numbers than the file's."""
    from gguf import GGMLQuantizationType, quants

    model = gguf_model()
    path = write_gguf(tmp_path / "tiny.gguf", model, quantisation=quantisation)
    loaded, _ = load_ar_model(path)
    kind = GGMLQuantizationType[quantisation]
    given = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    expected = torch.tensor(quants.dequantize(quants.quantize(given, kind), kind))
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, expected)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    loaded.save_pretrained(tmp_path / "plain")
    again = type(loaded).from_pretrained(tmp_path / "plain")
    assert not hasattr(again.config, "quantization_config")
    assert torch.equal(again.lm_head.weight, loaded.lm_head.weight)
    assert str(tmp_path) not in (tmp_path / "plain" / "config.json").read_text()


def test_the_tokenizer_comes_with_template_and_ends(file: Path) -> None:
    """Else prompts would be given without the chat template, and no answer would stop."""
    model, tokenizer = load_ar_model(file)
    messages = [{"role": "user", "content": "the end"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<s>u:the end;a:"
    assert tokenizer.eos_token == "</s>"
    assert model.generation_config.eos_token_id == 2
    ids = tokenizer("the</s>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["th", "e", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the"
    assert set(SPECIALS) <= set(tokenizer.all_special_tokens)


def test_digits_are_split_as_the_file_says(file: Path) -> None:
    """Else numbers behind blank lines would be given in tokens that the model was not trained on."""
    _, tokenizer = load_ar_model(file)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")
    assert [piece for piece, _ in pieces] == ["a", "ĊĊ", "1", "2"]


def test_files_beside_it_are_not_read(file: Path, tmp_path: Path) -> None:
    """Else the tokenizer of another model in the folder would be taken without a word."""
    tiny_tokenizer(chat=True).save_pretrained(tmp_path)
    shutil.copy(file, tmp_path / "tiny.gguf")
    _, tokenizer = load_ar_model(tmp_path / "tiny.gguf")
    assert tokenizer.get_vocab()["th"] == 259


def test_a_folder_with_one_file_is_that_file(file: Path, tmp_path: Path) -> None:
    """Else a downloaded folder would be refused although it is clear what is meant."""
    shutil.copy(file, tmp_path / "tiny.gguf")
    assert load_ar_config(tmp_path).vocab_size == 264


def test_what_the_weights_were_is_said(file: Path, tmp_path: Path) -> None:
    """Else a user would take the dequantised model for the original."""
    path = write_gguf(tmp_path / "tiny.gguf", gguf_model(), quantisation="Q4_1")
    assert weights_note(path) == "dequantised from a GGUF file in Q4_1; the teacher is the dequantised model"
    assert weights_note(file) == "a GGUF file in F32"


# --- what is refused ----------------------------------------------------------------------------------------------


def test_several_files(file: Path, tmp_path: Path) -> None:
    """Else one of several quantisations would be chosen for the user."""
    for name in ("a.gguf", "b.GGUF"):
        shutil.copy(file, tmp_path / name)
    refused(tmp_path, ModelNotFoundError, "2 GGUF files", "name one", "a.gguf")


def test_no_file(tmp_path: Path) -> None:
    """Else the name would be looked up on the hub."""
    refused(tmp_path / "none.gguf", ModelNotFoundError, "no file", "check the path")


def test_a_cut_file(file: Path, tmp_path: Path) -> None:
    """Else a broken download would be a traceback of another library."""
    whole = file.read_bytes()
    for size in (0, 3, 10, 200, len(whole) // 2, len(whole) - 1000):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        refused(tmp_path / "cut.gguf", CheckpointError, "cut.gguf", "download it again")


def test_another_file(tmp_path: Path) -> None:
    """Else text that is called .gguf would be a traceback."""
    (tmp_path / "text.gguf").write_text("no model at all " * 100)
    refused(tmp_path / "text.gguf", CheckpointError, "text.gguf", "download it again")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    """Else the user would not know what to give instead."""
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "new.gguf", "newest")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "new.gguf", UnsupportedModelError, "newest", "safetensors")


def test_an_unknown_quantisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the user would not learn that another file of the model would do."""
    from gguf import quants

    path = write_gguf(tmp_path / "tiny.gguf", gguf_model(), quantisation="Q5_0")
    kind = next(kind for kind in quants._type_traits if kind.name == "Q5_0")
    monkeypatch.delitem(quants._type_traits, kind)
    refused(path, UnsupportedModelError, "Q5_0", "another quantisation")


def test_a_missing_tensor(tmp_path: Path) -> None:
    """Else transformers would fill it with random numbers, and the teacher would be nonsense."""
    path = write_gguf(tmp_path / "tiny.gguf", gguf_model(), leave_out="blk.1.ffn_up.weight")
    refused(path, CheckpointError, "lacks 1 weights", "layers.1.mlp.up_proj")


def test_stretched_positions(tmp_path: Path) -> None:
    """Else transformers would drop them without a word, and the teacher would be another model."""
    path = write_gguf(tmp_path / "a.gguf", gguf_model(), rope_freqs__weight=torch.ones(4).numpy())
    refused(path, UnsupportedModelError, "rope_freqs.weight", "safetensors")
    path = write_gguf(tmp_path / "b.gguf", gguf_model(), llama__rope__scaling__type="yarn")
    refused(path, UnsupportedModelError, "rope scaling yarn", "safetensors")


def test_one_of_several_parts(tmp_path: Path) -> None:
    """Else half a model would be said to lack weights."""
    path = write_gguf(tmp_path / "tiny-00001-of-00002.gguf", gguf_model(), split__count=2)
    refused(path, UnsupportedModelError, "2 parts", "--merge")


@pytest.mark.parametrize("lacking", ["gguf", "accelerate"])
def test_a_package_that_is_not_there(lacking: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the error would come from another library and name no extra."""
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None if name == lacking else sys)
    refused(file, MissingExtraError, lacking, "pip install 'opdlm[gguf]'")


def test_it_is_no_converted_model(file: Path) -> None:
    """Else `opdlm generate file.gguf` would say that a folder has no config.json."""
    with pytest.raises(CheckpointError, match="convert it first"):
        load_checkpoint(file)
