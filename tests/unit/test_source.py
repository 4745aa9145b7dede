"""What is taken for an AR model, and what broken files of one get: one line that names the file. No network."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opdlm.checkpoints.load import load_ar_config, load_ar_model, load_checkpoint
from opdlm.checkpoints.save import save_checkpoint
from opdlm.checkpoints.source import count_parameters
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.errors import CheckpointError, ModelNotFoundError, OpdlmError
from opdlm.models.block_diffusion import BlockDiffusionModel
from support import MASK, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(original: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def refused(load: Callable[[Any], object], place: Path | str, kind: type[OpdlmError], *words: str) -> None:
    """Loading fails with `kind`, in one line that holds the words."""
    with pytest.raises(kind) as caught:
        load(place)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert all(word in message for word in words), message


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what is no AR model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_ar_model, load_ar_config])
def test_a_converted_model_is_no_ar_model(load: Callable[[Any], object], tmp_path: Path) -> None:
    """Else a student would be its own teacher, or be compared with itself, and every number would be good."""
    (tmp_path / "config.toml").write_text("")
    folder = tmp_path / "model"
    model = BlockDiffusionModel(tiny_model(), Geometry(4), MASK)
    save_checkpoint(
        model,
        tiny_tokenizer(mask=True),
        folder,
        generation=GenerationSettings(),
        provenance={"base_model": "someone/small"},
    )
    words = ("converted model already", "blocks of 4", "made from someone/small", "give someone/small")
    refused(load, folder, CheckpointError, *words, "opdlm generate", f"--resume --output {tmp_path}")
    assert load_checkpoint(folder)[0].geometry == Geometry(4)


def test_a_converted_model_that_does_not_say_its_original(damaged: Path) -> None:
    """Else models of earlier versions would still be taken."""
    edit(damaged / "config.json", block_diffusion={"block_size": 4})
    refused(load_ar_model, damaged, CheckpointError, "give the AR model that it was made from")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    """Else its base would be converted without it, or the message would ask for a config.json."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/small"}))
    refused(load_ar_model, tmp_path, ModelNotFoundError, "adapter", "someone/small")


def test_a_run_is_no_model(tmp_path: Path) -> None:
    """Else the user would look for a config.json that a run never has."""
    (tmp_path / "config.toml").write_text("")
    refused(load_ar_model, tmp_path, ModelNotFoundError, "run of opdlm convert", "--resume")


def test_a_file_is_no_model(damaged: Path) -> None:
    """Else the hub would be asked for a path to weights."""
    refused(load_ar_model, damaged / "model.safetensors", ModelNotFoundError, "is a file", "folder")


# --- the hub ------------------------------------------------------------------------------------------------------

ASK = """
import sys
from opdlm.checkpoints.load import load_ar_model
from opdlm.errors import OpdlmError
try:
    model, _ = load_ar_model(sys.argv[1])
    print(type(model).__name__)
except OpdlmError as error:
    print(type(error).__name__, error)
"""


def asked(name: str, cache: Path, **environment: str) -> str:
    """What loading `name` says in a process of its own, whose hub is a closed port of this machine."""
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    closed |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), "")
    ran = subprocess.run(
        [sys.executable, "-c", ASK, name], capture_output=True, text=True, env=os.environ | closed | environment
    )
    assert "Retrying" not in ran.stderr
    return ran.stdout


def cached(original: Path, cache: Path, name: str) -> None:
    """Puts the model into the hub's cache as a download does."""
    repository = cache / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(original, repository / "snapshots" / ("0" * 40))


def test_a_misspelt_name_without_a_network_fails_at_once(tmp_path: Path) -> None:
    """Else the hub's client would repeat its question for half a minute, and print each time."""
    answer = asked("nobody/nothing", tmp_path)
    assert answer.startswith("ModelNotFoundError no local folder is named nobody/nothing")
    assert "hub cannot be reached" in answer
    assert "HF_HUB_OFFLINE keeps" in asked("nobody/nothing", tmp_path, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_downloaded_model_loads_without_a_network(offline: str, original: Path, tmp_path: Path) -> None:
    """Else a node without internet could not convert what was downloaded to it."""
    cached(original, tmp_path, "someone/small")
    assert asked("someone/small", tmp_path, HF_HUB_OFFLINE=offline).strip() == "LlamaForCausalLM"


# --- broken files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4"}, "hidden_size"),
        ({"hidden_size": -32}, "config.json"),
        ({"vocab_size": -1}, "vocab_size = -1"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"sliding_window": "7"}, "sliding_window"),
        ({"hidden_act": "x"}, "config.json"),
        ({"dtype": "float33"}, "config.json"),
        ({"architectures": 4}, "architectures"),
        ({"architectures": [None]}, "architectures"),
        ({"model_type": []}, "config.json"),
        ({"layer_types": 1}, "config.json"),
        ({"pad_token_id": 10**6}, "config.json"),
        ({"auto_map": None}, "config.json"),
        ({"quantization_config": "x"}, "config.json"),
        ({"rope_parameters": []}, "config.json"),
    ],
    ids=str,
)
def test_a_config_with_a_wrong_value(changes: dict[str, object], words: str, damaged: Path) -> None:
    """Else the message would be a traceback out of another library."""
    edit(damaged / "config.json", **changes)

    def whole(place: Path) -> None:
        count_parameters(load_ar_config(place))
        load_ar_model(place)

    refused(whole, damaged, OpdlmError, words)


BROKEN = {
    "deep": "[" * 100_000,
    "long number": '{"vocab_size": ' + "9" * 5000 + "}",
    "list": "[1]",
    "text": "hello",
    "not UTF-8": b"\xff\xfe{}",
    "empty": "",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_object(name: str, content: str | bytes, damaged: Path) -> None:
    """Else the user would not learn which file to download again."""
    (damaged / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(load_ar_model, damaged, CheckpointError, name)


@pytest.mark.parametrize("content", [b"no weights", b"", b"PK\x03\x04no archive", b"\x80\x02}q\x00."])
def test_a_bin_file_that_holds_no_weights(content: bytes, damaged: Path) -> None:
    """Else torch's unpickler would speak to the user."""
    (damaged / "model.safetensors").unlink()
    (damaged / "pytorch_model.bin").write_bytes(content)
    refused(load_ar_model, damaged, CheckpointError, "weights")


@pytest.mark.parametrize(
    "index",
    [
        {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}},
        {"weight_map": {}},
        {},
        [],
        {"weight_map": {"a": 1}},
    ],
    ids=str,
)
def test_an_index_of_shards_that_are_not_there(index: object, damaged: Path) -> None:
    """Else half a download would end in a traceback."""
    (damaged / "model.safetensors").unlink()
    (damaged / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(load_ar_model, damaged, CheckpointError, str(damaged))


@pytest.mark.parametrize(
    "entry", ["x", [], 4, True, {"block_size": "many"}, {"block_size": 10**30}, {"block_size": None}], ids=str
)
def test_an_entry_of_the_wrong_type(entry: object, damaged: Path) -> None:
    """Else a damaged config of a converted model would be a traceback."""
    edit(damaged / "config.json", block_diffusion=entry)
    refused(load_checkpoint, damaged, CheckpointError, "entry", "damaged")


def test_weights_that_are_not_finite(damaged: Path) -> None:
    """Else the identity check would blame the architecture."""
    from opdlm.models.identity import identity_check

    model = tiny_model()
    model.model.embed_tokens.weight.data.fill_(torch.nan)

    refused(lambda _: identity_check(BlockDiffusionModel(model, Geometry(4), MASK)), damaged, OpdlmError, "not finite")
