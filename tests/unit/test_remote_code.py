"""No code of a model, an adapter, a data set or a run's folder runs unless the user allows it: each known way is tried.

The payload of each way makes a file. `test_the_payloads_work` runs some of them on purpose: a payload that never works
would prove nothing.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import opdlm
from cli_support import SMALL, call, fails
from opdlm.checkpoints.adapter_folder import apply_adapter, base_of
from opdlm.checkpoints.load import load_ar_model, load_checkpoint
from opdlm.checkpoints.save import MODEL_FILE, save_checkpoint
from opdlm.checkpoints.trust import remote_code, trusted
from opdlm.config import GenerationSettings
from opdlm.data.hub_set import WHOLE, load_hub_set
from opdlm.distill.api import convert, resume
from opdlm.errors import CheckpointError, PromptsError, UnsupportedModelError
from opdlm.models.tokens import encode_prompt
from opdlm.records import checksums
from opdlm.records.run_folder import RunFolder
from rollouts import fresh_student
from runs import PROMPTS, SETTINGS, small_ar_model
from support import tiny_tokenizer

FLAG = "--trust-remote-code"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code that does run is copied into the test's own folder; what ran before or here is forgotten."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    # transformers adds such a folder to the path; the one of an earlier test would be looked at first.
    elsewhere = [place for place in sys.path if not (Path(place) / "transformers_modules").is_dir()]
    monkeypatch.setattr(sys, "path", elsewhere)
    forget()
    yield
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("transformers_modules", "megatron")]:
        del sys.modules[name]


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What a payload makes."""
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small AR model, to be changed."""
    return Path(small_ar_model(tmp_path))


def payload(ran: Path) -> str:
    return f"open({str(ran)!r}, 'w').close()\n"


class Pickled:
    """Runs code where it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


def edit(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | entries))


def own_code(folder: Path, ran: Path, kind: str = "own") -> None:
    """A model of its own type, with its config and its class in files; or of a known type, with the same files."""
    (folder / "configuration_own.py").write_text(
        payload(ran) + "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        payload(ran) + "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit(folder / "config.json", model_type=kind, architectures=["OwnForCausalLM"], auto_map=names)


def config_and_class(folder: Path, ran: Path) -> None:
    own_code(folder, ran)
    with pytest.raises(UnsupportedModelError, match=FLAG):
        load_ar_model(folder)


def class_of_a_known_type(folder: Path, ran: Path) -> None:
    own_code(folder, ran, "llama")
    load_ar_model(folder)


def class_elsewhere(folder: Path, ran: Path) -> None:
    own_code(folder, ran)
    edit(folder / "config.json", auto_map={"AutoConfig": "someone/else--configuration_own.OwnConfig"})
    with pytest.raises(UnsupportedModelError, match=FLAG):
        load_ar_model(folder)


def tokenizer_class(folder: Path, ran: Path) -> None:
    (folder / "tokenization_own.py").write_text(payload(ran) + "class OwnTokenizer:\n    pass\n")
    names = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)
    with pytest.raises(CheckpointError, match=FLAG):
        load_ar_model(folder)


def processor_class(folder: Path, ran: Path) -> None:
    (folder / "processing_own.py").write_text(payload(ran) + "class OwnProcessor:\n    pass\n")
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit(folder / name, auto_map={"AutoProcessor": "processing_own.OwnProcessor"})
    load_ar_model(folder)


def custom_generate(folder: Path, ran: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(payload(ran) + "def generate(model, **_):\n    pass\n")
    load_ar_model(folder)


def pickled_weights(folder: Path, ran: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Pickled(payload(ran))}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights"):
        load_ar_model(folder)


def pickled_training_state(folder: Path, ran: Path) -> None:
    torch.save(Pickled(payload(ran)), folder / "training_state.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        RunFolder.load_state(folder)


def chat_template(folder: Path, ran: Path) -> None:
    (folder / "chat_template.jinja").write_text(template(ran))
    _, tokenizer = load_ar_model(folder)
    assert tokenizer.chat_template == template(ran)
    with pytest.raises(PromptsError):
        encode_prompt(tokenizer, "abc")


def template(ran: Path) -> str:
    return f"{{{{ cycler.__init__.__globals__.os.open('{ran}', {os.O_CREAT}) }}}}"


def module_named_by_an_adapter(folder: Path, ran: Path) -> None:
    evil_module(folder, ran)
    model, _ = load_ar_model(without_adapter(folder))
    with pytest.raises(CheckpointError, match="adapter"):
        apply_adapter(model, folder)


def pickled_adapter(folder: Path, ran: Path) -> None:
    adapter(folder)
    torch.save({"x": Pickled(payload(ran))}, folder / "adapter_model.bin")
    assert base_of(folder) == "base"
    model, _ = load_ar_model(without_adapter(folder))
    with pytest.raises(CheckpointError, match="adapter"):
        apply_adapter(model, folder)


def adapter_beside_a_model(folder: Path, ran: Path) -> None:
    evil_module(folder, ran)
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds an adapter beside the model"):
        load_ar_model(folder)


def adapter(folder: Path, **more: Any) -> None:
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "base"}
    edit(folder / "adapter_config.json", **settings | {"auto_mapping": {"parent_library": "evil"}} | more)


def evil_module(folder: Path, ran: Path) -> None:
    """Beside the adapter whose config names it, by a name that peft takes."""
    (folder / "megatron").mkdir()
    (folder / "megatron" / "evil.py").write_text(payload(ran))
    sys.path.insert(0, str(folder))  # as `python -m opdlm` does with the folder where it is started
    adapter(folder, megatron_config={"a": 1}, megatron_core="megatron.evil")


def without_adapter(folder: Path) -> Path:
    ignore = shutil.ignore_patterns("adapter_*")
    return Path(shutil.copytree(folder, folder.with_name("base"), ignore=ignore))


def attention_from_the_hub(folder: Path, ran: Path) -> None:
    for name in ("someone/kernel", "kernels-community/flash-attn2@main:fn", "flash_attention_2"):
        edit(folder / "config.json", attn_implementation=name)
        with pytest.raises(UnsupportedModelError, match="code on the hub"):
            load_ar_model(folder)


def quantiser(folder: Path, ran: Path) -> None:
    (folder / "evil.py").write_text(payload(ran))
    sys.path.insert(0, str(folder))
    edit(folder / "config.json", quantization_config={"quant_method": "evil", "modules": "evil"})
    load_ar_model(folder)  # no quantiser of this name is known, and the weights are plain


def model_file_of_a_checkpoint(folder: Path, ran: Path) -> None:
    checkpoint = folder.parent / "checkpoint"
    settings = GenerationSettings()
    save_checkpoint(fresh_student(), tiny_tokenizer(mask=True), checkpoint, generation=settings, provenance={})
    (checkpoint / MODEL_FILE).write_text(payload(ran) + "class BlockDiffusionForCausalLM:\n    pass\n")
    load_checkpoint(checkpoint)
    opdlm.load(checkpoint, device="cpu", trust_remote_code=True)  # it is for those who have no opdlm


def script_of_a_data_set(folder: Path, ran: Path) -> None:
    made = folder.parent / "evil_set"
    made.mkdir()
    (made / "evil_set.py").write_text(payload(ran))
    with pytest.raises(PromptsError):
        load_hub_set(str(made), WHOLE)


def settings_of_a_run(folder: Path, ran: Path) -> None:
    run = RunFolder(folder.parent / "run")
    convert(str(folder), PROMPTS, run.path, **SETTINGS | {"rollouts": 1})
    own_code(folder, ran)
    run.config.write_text(run.config.read_text().replace("trust_remote_code = false", "trust_remote_code = true"))
    assert run.settings().trust_remote_code
    with pytest.raises(UnsupportedModelError, match=FLAG):
        resume(run.path)


WAYS: tuple[Callable[[Path, Path], None], ...] = (
    config_and_class,
    class_of_a_known_type,
    class_elsewhere,
    tokenizer_class,
    processor_class,
    custom_generate,
    pickled_weights,
    pickled_training_state,
    chat_template,
    module_named_by_an_adapter,
    pickled_adapter,
    adapter_beside_a_model,
    attention_from_the_hub,
    quantiser,
    model_file_of_a_checkpoint,
    script_of_a_data_set,
    settings_of_a_run,
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_runs(way: Callable[[Path, Path], None], folder: Path, ran: Path) -> None:
    """Else whoever tries a model would run its author's code with all rights, unasked."""
    way(folder, ran)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["class", "tokenizer", "pickle", "template", "module", "model file"])
def test_the_payloads_work(kind: str, folder: Path, ran: Path) -> None:
    """Else a payload that does nothing would pass for one that was stopped."""
    if kind == "class":
        own_code(folder, ran)
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    elif kind == "tokenizer":
        tokenizer_class(folder, ran)
        with pytest.raises(AttributeError):  # the class has no from_pretrained
            AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    elif kind == "pickle":
        pickle.loads(pickle.dumps(Pickled(payload(ran))))
    elif kind == "template":
        jinja2.Environment().from_string(template(ran)).render()
    elif kind == "module":
        (folder / "evil.py").write_text(payload(ran))
        subprocess.run([sys.executable, "-c", "import evil"], cwd=folder, check=True)
    else:
        model_file_of_a_checkpoint(folder, ran)
        checkpoint = folder.parent / "checkpoint"
        with pytest.raises(AttributeError):  # the class has no from_pretrained
            AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True)
    assert ran.exists()


def test_leave_ends_with_its_context() -> None:
    """Else code that was allowed once would be allowed for ever."""
    assert not trusted()
    with remote_code(True):
        with remote_code(False):
            assert trusted(), "the command's flag holds inside"
        assert trusted()
    assert not trusted()


def test_a_model_with_its_own_code(folder: Path, ran: Path, prompts_file: Path, capsys: Any) -> None:
    """Else the flag would be a promise: with it a model of an unknown type is examined, converted and used."""
    own_code(folder, ran)
    run = folder.parent / "run"
    words = ("convert", folder, "--prompts", prompts_file, "--output", run, *SMALL, "--device", "cpu")
    for command in (words, ("doctor", folder)):
        assert FLAG in fails(capsys, *command)
    assert not ran.exists()
    assert not run.exists()
    assert call(*words, FLAG) == 0
    assert ran.exists()
    ran.unlink()
    assert (run / "model" / "modeling_own.py").is_file()
    (run / "model" / MODEL_FILE).write_text("raise SystemExit('this is for those who have no opdlm')")
    asked = ("generate", run, "abc", "--max-new-tokens", "4", "--device", "cpu")
    assert FLAG in fails(capsys, *asked)
    assert not ran.exists()
    assert call(*asked, FLAG) == 0
    shutil.rmtree(run / "model")
    assert FLAG in fails(capsys, "convert", "--resume", run)
    assert call("convert", "--resume", run, FLAG) == 0
    newest = RunFolder(run).latest()
    assert newest is not None
    assert checksums.damage(newest) is None


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path
