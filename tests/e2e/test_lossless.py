"""`convert --lossless` from end to end: the base's bytes, the folder's forms, resuming, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import opdlm
from cli_support import call, fails
from lossless import responses
from opdlm.distill.api import convert, resume
from opdlm.errors import CheckpointError, ConfigError, ModelNotFoundError, UsageError
from opdlm.evals.original import original_of
from opdlm.records.metrics import StepMetrics
from runs import PROMPTS, SETTINGS, small_ar_model

LOSSLESS: dict[str, Any] = SETTINGS | {
    "recipe": "lossless",
    "window": 3,
    "lora_rank": 4,
    "response_length": {"start": 12, "end": 12, "rollouts": 0},
}
ASKED = ["abc", "what is 2+2?", "z"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_ar_model(tmp_path_factory.mktemp("lossless"))


@pytest.fixture(scope="module", params=["mask", "noise"])
def run(request: pytest.FixtureRequest, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    convert(base, PROMPTS, folder, window_form=request.param, **LOSSLESS)
    return folder


def originals(base: str) -> list[list[int]]:
    """The base's own greedy texts."""
    from transformers import AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    texts = []
    for prompt in ASKED:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        texts.append(made[0, ids.shape[1] :].tolist())
    return texts


def written(folder: str | Path) -> list[list[int]]:
    model = opdlm.load(folder)
    prompts = [model.tokenizer(prompt)["input_ids"] for prompt in ASKED]
    return responses(model.generate(prompts, max_new_tokens=20).rollout)


def test_the_folder_holds_the_base_and_writes_its_text(base: str, run: Path) -> None:
    """The promise: not a byte of the base's weights changes, and the text is its own."""
    original, kept = load_file(f"{base}/model.safetensors"), load_file(run / "model" / "model.safetensors")
    assert original.keys() == kept.keys()
    assert all(torch.equal(original[name], kept[name]) for name in original)
    assert (run / "model" / "gate.safetensors").stat().st_size < (run / "model" / "model.safetensors").stat().st_size
    assert written(run) == originals(base)
    assert "token for token" in (run / "model" / "README.md").read_text()


def test_plain_transformers_writes_the_same(base: str, run: Path, tmp_path: Path) -> None:
    """The folder decodes where opdlm is not installed, also after it was saved again."""
    script = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opdlm":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, again, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
def texts(model):
    made = []
    for prompt in asked:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made.append(model.generate(ids, max_new_tokens=20)[0, ids.shape[1]:].tolist())
    return made
first = texts(model)
model.save_pretrained(again)
second = texts(AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True))
print(json.dumps([first, second, sorted(model.state_dict())[:1]]))
"""
    words = [sys.executable, "-c", script, str(run / "model"), str(tmp_path / "again"), json.dumps(ASKED)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, _ = json.loads(done.stdout.splitlines()[-1])
    assert first == second == originals(base)


def test_a_resumed_run_ends_with_the_same_gate(base: str, tmp_path: Path) -> None:
    """Else an interruption would change the gate without anyone noticing."""

    def cut(line: StepMetrics) -> None:
        if line.rollout == 3:
            raise KeyboardInterrupt

    convert(base, PROMPTS, tmp_path / "whole", **LOSSLESS)
    with pytest.raises(KeyboardInterrupt):
        convert(base, PROMPTS, tmp_path / "cut", on_step=cut, **LOSSLESS)
    resume(tmp_path / "cut")
    whole, again = (load_file(tmp_path / name / "model" / "gate.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any(value.abs().sum() > 0 for name, value in whole.items() if name.endswith("lora_B"))


def test_the_gate_alone(base: str, tmp_path: Path) -> None:
    """A few MB that find their base, and refuse another."""
    own = shutil.copytree(base, tmp_path / "base")
    model = convert(own, PROMPTS, tmp_path / "run", adapter_only=True, **LOSSLESS)
    assert not (model / "model.safetensors").exists()
    assert written(model) == originals(base)
    low = opdlm.load(model, "cpu", "bfloat16").model  # the hash is of the base as it is stored
    assert low.dtype == torch.bfloat16
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    assert original_of(moved) == str(own), "the gate itself names it; no run is beside it"
    weights = own / "model.safetensors"
    changed = load_file(weights)
    name = next(iter(changed))
    from safetensors.torch import save_file

    save_file(changed | {name: changed[name] + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"to use it there: opdlm attach {model} {own} --output DIR"):
        opdlm.load(model)
    shutil.rmtree(own)
    with pytest.raises(ModelNotFoundError, match=r"its base .* is not found"):
        opdlm.load(model)


def test_its_texts_are_scored(base: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no student before training to compare with: the command must do without."""
    (tmp_path / "prompts.txt").write_text("abc\nz\n")
    words = ("--prompts", tmp_path / "prompts.txt", "--temperature", "0", "--max-new-tokens", "20")
    assert call("eval", run, *words) == 0
    printed = capsys.readouterr().out
    assert "original" in printed
    assert "student, verified" in printed
    assert "student before" not in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("| student, verified ")]
    assert row.split("|")[5].strip() == "2", "both greedy texts are the original's"


def test_a_damaged_gate_is_named(run: Path, tmp_path: Path) -> None:
    """Else drafts would come from a gate that is not there, silently slow."""
    copy = shutil.copytree(run / "model", tmp_path / "model")
    (copy / "gate.safetensors").write_bytes(b"no gate")
    with pytest.raises(CheckpointError, match=r"gate\.safetensors of .* cannot be used"):
        opdlm.load(copy)
    (copy / "gate.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"gate\.safetensors of .* cannot be used"):
        opdlm.load(copy)


def test_what_a_lossless_model_does_not_do(run: Path) -> None:
    """Each ends in a line that says what to do."""
    model = opdlm.load(run)
    with pytest.raises(UsageError, match="choose verified, typical, or sequential"):
        model.write("abc", decoding="dynamic")
    with pytest.raises(UsageError, match="fills no gaps"):
        model.infill("a [[MASK:2]] b")
    from opdlm.tiny.weights import student_path

    with pytest.raises(UsageError, match="convert with --lossless"):
        opdlm.load(student_path()).write("abc", decoding="verified")


def test_settings_that_do_not_go_together(base: str, tmp_path: Path) -> None:
    """Else the run would end in a traceback, or train something else."""
    for wrong in ({"lora_rank": None}, {"rollout_decoding": "static"}, {"decoding": "dynamic"}):
        with pytest.raises(ConfigError, match="lossless"):
            convert(base, PROMPTS, tmp_path / "run", **LOSSLESS | wrong)
    with pytest.raises(ConfigError, match="smallest layer"):
        convert(base, PROMPTS, tmp_path / "run", **LOSSLESS | {"lora_rank": 1000})
    with pytest.raises(ConfigError, match="only a lossless conversion"):
        convert(base, PROMPTS, tmp_path / "run", **SETTINGS, rollout_decoding="verified")


def test_the_commands(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`convert --lossless`, `generate`, `eval` and `export` as a user types them."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    flags = ["--rollouts", 2, "--prompts-per-rollout", 2, "--rows-per-update", 2, "--lora", 4, "--window-form", "noise"]
    assert call("convert", base, "--lossless", "--prompts", prompts, "--output", tmp_path / "run", *flags) == 0
    assert "lossless" in capsys.readouterr().out
    assert call("generate", tmp_path / "run", "abc", "--max-new-tokens", 5) == 0
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"prompt": "abc", "answer": "1", "family": "maths"}\n')
    capsys.readouterr()
    assert call("eval", tmp_path / "run", "--problems", problems, "--max-new-tokens", 20) == 0
    assert "1 of 1" in capsys.readouterr().out
    assert call("export", tmp_path / "run", "--output", tmp_path / "uno") == 0
    assert "--speculative-algorithm UNO" in capsys.readouterr().out
    both = ["convert", base, "--lossless", "--recipe", "small", "--prompts", prompts, "--output", tmp_path / "other"]
    assert "leave out --recipe" in fails(capsys, *both)
    assert "is not empty" in fails(capsys, "export", tmp_path / "run", "--output", tmp_path / "uno")
    assert "no model" in fails(capsys, "export")


class Watcher:
    """Keeps all that a streamer of verified decoding sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], list[int]]] = []
        self.final: list[int] = []

    def put_verified(self, ids: torch.Tensor, drafts: torch.Tensor) -> None:
        self.seen.append((ids.tolist(), drafts.tolist()))

    def put_draft(self, ids: torch.Tensor) -> None:
        raise AssertionError("drafts would not be seen")

    def put(self, ids: torch.Tensor) -> None:
        self.final = ids.tolist()

    def end(self) -> None:
        pass


def test_a_streamer_sees_verified_text_and_drafts(run: Path) -> None:
    """Else the live view would show a draft as text, or the wrong drafts as refused."""
    model, watcher = opdlm.load(run), Watcher()
    ids = [model.tokenizer(ASKED[1])["input_ids"]]
    rollout = model.generate(ids, streamer=watcher, max_new_tokens=20, decoding="verified").rollout
    assert len(watcher.seen) == int(rollout.forwards)  # one before the first forward, none behind the last
    assert watcher.seen[0] == ([], [])
    assert any(drafts for _, drafts in watcher.seen)
    known = [verified for verified, _ in watcher.seen] + [watcher.final]
    for (before, drafts), after in zip(watcher.seen, known[1:], strict=True):
        new = after[len(before) :]
        assert watcher.final[: len(after)] == after  # what is verified never changes
        assert 1 <= len(new) <= len(drafts) + 1
        assert new[:-1] == drafts[: len(new) - 1]  # all but the last token were drafted
        assert len(drafts) <= min(3, 20 - len(before))
    streamed = [text.tolist() for text in model.stream(ids, max_new_tokens=20, decoding="verified")]
    assert streamed == known[1:]


def test_watch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`generate --watch` in a pipe: a line for each forward, and the text itself at the end."""
    words = ("generate", run, ASKED[1], "--max-new-tokens", 8, "--decoding", "verified")
    assert call(*words, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert call(*words, "--watch") == 0
    lines = [line[6:] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == numbers["forwards"] + 1
    assert "[" in lines[1]
    assert lines[-1].startswith(numbers["text"].replace("\n", "⏎"))
