"""The gate of one lossless model on another: by `attach` as it is, by `gate_from` to go on training it.

The text must stay that of the model that gets it.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import opdlm
from cli_support import call, fails
from lossless import responses
from opdlm.distill.api import convert, resume
from opdlm.errors import CheckpointError, ConfigError, OutputExistsError, UsageError
from opdlm.records.metrics import StepMetrics
from runs import PROMPTS, SETTINGS, small_ar_model
from support import tiny_model

LOSSLESS: dict[str, Any] = SETTINGS | {
    "recipe": "lossless",
    "window": 3,
    "lora_rank": 4,
    "response_length": {"start": 12, "end": 12, "rollouts": 0},
}
ASKED = ["abc", "what is 2+2?", "z"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_ar_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=["mask", "noise"])
def donor(request: pytest.FixtureRequest, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    convert(base, PROMPTS, folder, window_form=request.param, **LOSSLESS, decoding="verified:2")
    return folder


@pytest.fixture(scope="module")
def tuned(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune of the base: all its weights differ."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * parameter.data.std() * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def originals(folder: Path) -> list[list[int]]:
    """The AR model's own greedy texts."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in ASKED:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        texts.append(made[0, ids.shape[1] :].tolist())
    return texts


def written(folder: Path) -> list[list[int]]:
    model = opdlm.load(folder, device="cpu")
    prompts = [model.tokenizer(prompt)["input_ids"] for prompt in ASKED]
    return responses(model.generate(prompts, max_new_tokens=20).rollout)


def gate_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "gate.safetensors")


@pytest.mark.parametrize("adapter_only", [False, True])
def test_the_fine_tune_keeps_its_text_and_gets_the_gate(
    donor: Path, base: str, tuned: Path, tmp_path: Path, adapter_only: bool
) -> None:
    """The promise; and without the second half nothing would have been attached."""
    made = opdlm.attach(donor, tuned, tmp_path / "made", adapter_only=adapter_only)
    assert written(made) == originals(tuned) != originals(Path(base))
    theirs, ours = gate_of(donor / "model"), gate_of(made)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert any(value.any() for name, value in ours.items() if name.endswith("lora_B")), "the gate does nothing"
    assert opdlm.load(made).defaults == opdlm.load(donor).defaults
    assert (made / "model.safetensors").exists() is not adapter_only
    if not adapter_only:
        before, after = load_file(tuned / "model.safetensors"), load_file(made / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert "| gate from | run |" in (made / "README.md").read_text()


def test_a_gate_alone_can_be_attached_again(donor: Path, base: str, tuned: Path, tmp_path: Path) -> None:
    """Else only those who have the donor's whole folder could use its gate; and back on its base it is as before."""
    alone = opdlm.attach(donor, tuned, tmp_path / "alone", adapter_only=True)
    back = opdlm.attach(alone, base, tmp_path / "back")
    assert written(back) == originals(Path(base))
    theirs, ours = gate_of(donor / "model"), gate_of(back)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_what_does_not_fit_is_refused(donor: Path, base: str, tuned: Path, tmp_path: Path) -> None:
    """Else a gate of another size would be an error of torch, or half a folder would stay."""
    other = tmp_path / "other"
    tiny_model(hidden_size=24).save_pretrained(other)
    AutoTokenizer.from_pretrained(base).save_pretrained(other)
    with pytest.raises(UsageError, match=r"does not fit .*other.*layers of the same sizes"):
        opdlm.attach(donor, other, tmp_path / "made")
    with pytest.raises(UsageError, match="has no gate"):
        opdlm.attach(base, tuned, tmp_path / "made")
    with pytest.raises(CheckpointError, match="converted model already"):
        opdlm.attach(donor, donor / "model", tmp_path / "made")
    convert(base, PROMPTS, tmp_path / "distilled", **SETTINGS)
    with pytest.raises(UsageError, match="has no gate"):
        opdlm.attach(tmp_path / "distilled", tuned, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    with pytest.raises(OutputExistsError, match="not empty"):
        opdlm.attach(donor, tuned, tuned)


def test_what_is_damaged_is_refused(donor: Path, tuned: Path, tmp_path: Path) -> None:
    """Else a broken gate would only be slow, and nobody would know why."""
    run = shutil.copytree(donor, tmp_path / "run")
    checkpoint = max((run / "checkpoints").iterdir())
    assert gate_of(opdlm.attach(checkpoint, tuned, tmp_path / "one")).keys() == gate_of(donor / "model").keys()
    weights = checkpoint / "gate.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"gate\.safetensors is damaged"):
        opdlm.attach(checkpoint, tuned, tmp_path / "made")
    shutil.rmtree(run / "model")
    with pytest.raises(CheckpointError, match="not finished"):
        opdlm.attach(run, tuned, tmp_path / "made")
    broken = shutil.copytree(donor / "model", tmp_path / "broken")
    tensors = gate_of(broken)
    save_file({name: value * float("nan") for name, value in tensors.items()}, broken / "gate.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        opdlm.attach(broken, tuned, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_command(donor: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the flags would not reach the function."""
    assert call("attach", donor, tuned, "--output", tmp_path / "made", "--adapter-only") == 0
    printed = capsys.readouterr().out
    assert f"opdlm generate {tmp_path / 'made'}" in printed
    assert f"opdlm eval {tmp_path / 'made'} --against {tuned}" in printed
    assert not (tmp_path / "made" / "model.safetensors").exists()
    assert call("attach", donor, tuned, "--output", tmp_path / "whole") == 0
    assert "name it with --base" in fails(capsys, "export", tmp_path / "whole", "--output", tmp_path / "uno")
    assert "GATE MODEL --output DIR" in fails(capsys, "attach", donor, "--output", tmp_path / "more")


WITHOUT_SHAPE = {name: value for name, value in LOSSLESS.items() if name not in ("window", "lora_rank")}


def test_a_conversion_begins_with_the_gate(donor: Path, tuned: Path, tmp_path: Path) -> None:
    """Else a fine-tune would need a gate from nothing; and what the gate is must not have to be said again."""
    still = WITHOUT_SHAPE | {"rollouts": 1, "optimiser": {"learning_rate": 1e-9, "final_learning_rate": 1e-9}}
    convert(tuned, PROMPTS, tmp_path / "run", gate_from=donor, **still)
    theirs, ours = gate_of(donor / "model"), gate_of(tmp_path / "run" / "model")
    assert theirs.keys() == ours.keys()
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in theirs)
    assert written(tmp_path / "run") == originals(tuned)
    assert "| gate from | run |" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_it_goes_on_without_the_donor(donor: Path, tuned: Path, tmp_path: Path) -> None:
    """A checkpoint has the gate: what it came from may be gone, and must not come back over what was learnt."""

    def cut(line: StepMetrics) -> None:
        if line.rollout == 3:
            raise KeyboardInterrupt

    shutil.copytree(donor, tmp_path / "donor")
    given = WITHOUT_SHAPE | {"gate_from": str(tmp_path / "donor")}
    convert(tuned, PROMPTS, tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        convert(tuned, PROMPTS, tmp_path / "cut", on_step=cut, **given)
    shutil.rmtree(tmp_path / "donor")
    resume(tmp_path / "cut")
    whole, again = gate_of(tmp_path / "whole" / "model"), gate_of(tmp_path / "cut" / "model")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_it_begins_again_from_elsewhere(
    donor: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first checkpoint the donor is read again: the same one, from any folder, and as it was."""

    def cut(line: StepMetrics) -> None:
        raise KeyboardInterrupt

    shutil.copytree(donor, tmp_path / "donor")
    recipe = tmp_path / "mine.toml"
    recipe.write_text('base = "lossless"\ngate_from = "donor"\n')
    given = WITHOUT_SHAPE | {"recipe": str(recipe), "save_every_rollouts": 5}
    monkeypatch.chdir(tmp_path)
    for name in ("cut", "cut again"):
        with pytest.raises(KeyboardInterrupt):
            convert(tuned, PROMPTS, name, on_step=cut, **given)
        shutil.rmtree(tmp_path / name / "checkpoints", ignore_errors=True)
    monkeypatch.chdir("/")
    resume(tmp_path / "cut")
    assert written(tmp_path / "cut") == originals(tuned)
    shutil.rmtree(tmp_path / "donor")
    convert(tuned, PROMPTS, tmp_path / "donor", window_form="noise", **(LOSSLESS | {"lora_rank": 2, "rollouts": 1}))
    with pytest.raises(ConfigError, match=r"has (noise|2) now; begin a new run"):
        resume(tmp_path / "cut again")


def test_a_gate_that_a_conversion_cannot_begin_with(donor: Path, base: str, tuned: Path, tmp_path: Path) -> None:
    """Each before anything is written."""
    output = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"window: the gate of .* has 3; leave it out"):
        convert(tuned, PROMPTS, output, gate_from=str(donor), **(LOSSLESS | {"window": 5}))
    with pytest.raises(ConfigError, match="add --lossless"):
        convert(tuned, PROMPTS, output, gate_from=str(donor), **SETTINGS)
    with pytest.raises(UsageError, match="has no gate"):
        convert(tuned, PROMPTS, output, gate_from=base, **WITHOUT_SHAPE)
    other = tmp_path / "other"
    tiny_model(hidden_size=24).save_pretrained(other)
    AutoTokenizer.from_pretrained(base).save_pretrained(other)
    with pytest.raises(UsageError, match="does not fit"):
        convert(other, PROMPTS, output, gate_from=str(donor), **WITHOUT_SHAPE)
    assert not output.exists()
