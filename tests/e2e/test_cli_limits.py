"""Values at the border of what is sensible: one line that names the fix, or the value works."""

import io
import json
import shutil

import pytest
import torch

from cli_support import SMALL, call, fails
from opdlm.distill.api import convert, resume
from opdlm.errors import PromptsError
from opdlm.sampling.model_file import _parsed
from opdlm.tiny.weights import student_path
from support import tiny_model, tiny_tokenizer

BIG_SEED = "20260606"
TINY = {
    "prompts_per_rollout": 2,
    "rows_per_update": 2,
    "rollouts": 2,
    "response_length": {"start": 8, "end": 8, "rollouts": 0},
}


@pytest.fixture(scope="module")
def run(ar_model, prompts, tmp_path_factory):
    """A finished run whose seed is a date."""
    output = tmp_path_factory.mktemp("limits") / "run"
    assert call("convert", ar_model, "--prompts", prompts, "--output", output, *SMALL, "--seed", BIG_SEED) == 0
    return output


def test_a_large_seed_works_and_a_huge_one_is_refused(run, ar_model, prompts, tmp_path, capsys):
    """Else a date as seed would overflow in the middle of a run."""
    assert (run / "model" / "config.json").is_file()
    huge = ("--seed", str(2**64))
    assert "seed" in fails(capsys, "convert", ar_model, "--prompts", prompts, "--output", tmp_path / "o", *SMALL, *huge)
    assert "seed" in fails(capsys, "generate", run, "a", *huge)


def test_a_rate_that_ruins_the_weights_is_refused(ar_model, prompts, tmp_path, capsys):
    """Else the run would end well, with a model of NaN."""
    words = ("convert", ar_model, "--prompts", prompts, "--output", tmp_path / "o", *SMALL)
    for rate in ("1e30", "inf", "nan"):
        assert "learning_rate" in fails(capsys, *words, "--optimiser.learning-rate", rate)
    assert "finite" in fails(capsys, *words, "--optimiser.l2-sp", "inf")
    assert "weight_decay 1e+30" in fails(capsys, *words, "--optimiser.weight-decay", "1e30")


def test_a_model_of_nan_is_named(prompts, tmp_path, capsys):
    """Else its architecture would be blamed."""
    model = tiny_model()
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    words = ("convert", tmp_path / "model", "--prompts", prompts, "--output", tmp_path / "o", *SMALL)
    assert "not finite" in fails(capsys, *words)


def test_rollouts_leave_samples(run):
    """Else nobody could see what the student wrote on the way."""
    row = json.loads((run / "rollouts" / "rollout-000002.json").read_text())[0]
    assert len(row["token_ids"]) == len(row["commit_steps"]) == len(row["positions"]) > 0
    assert min(row["commit_steps"]) >= 0


def test_the_checked_length_is_the_longest_that_is_written(ar_model, prompts, tmp_path, capsys):
    """Else a ramp that starts above its end, or whose end is rounded up, would decode past the model's context."""
    flags = ("--prompts", prompts, "--output", tmp_path / "o", *SMALL)
    assert "lower start" in fails(capsys, "convert", ar_model, *flags, "--response-length.start", "16")
    wide = ("--block-size", "1024", "--response-length.end", "8")
    assert "context" in fails(capsys, "convert", ar_model, *flags, *wide)


def test_a_list_of_prompts_is_checked_cut_and_kept(ar_model, tmp_path):
    """Else a resumed run would train on other prompts than the first part did."""
    with pytest.raises(PromptsError, match="row 1"):
        convert(ar_model, ["a b", 3], tmp_path / "bad", **TINY)  # type: ignore[list-item]
    convert(ar_model, ["a b", "c d", "e f"], tmp_path / "run", prompt_limit=2, **TINY)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    seen = []
    resume(tmp_path / "run", on_start=lambda trainer, difference: seen.append(len(trainer.prompts)))
    assert len(lines) == 2
    assert seen == [2]


def test_cut_prompts_of_a_chat_model_end_as_the_template_does(tmp_path):
    """Else the student would learn to continue the user's text."""
    tiny_model("llama").save_pretrained(tmp_path / "chat")
    tokenizer = tiny_tokenizer(chat=True)
    tokenizer.save_pretrained(tmp_path / "chat")
    seen = []
    prompts = ["a long question", "short"]
    limits = {**TINY, "rollouts": 1, "prompt_tokens": 12}
    started = {"on_start": lambda trainer, difference: seen.extend(map(tokenizer.decode, trainer.prompts))}
    convert(tmp_path / "chat", prompts, tmp_path / "run", **started, **limits)
    assert seen == ["<s>u:a long;a:", "<s>u:short;a:"]


@pytest.mark.parametrize("decoding", ["static:0", "sequential:0", "dynamic:1.5", "guess"])
def test_a_checkpoint_refuses_what_never_ends(decoding):
    """Else a checkpoint without opdlm would wait for ever for a token to be committed."""
    with pytest.raises(ValueError, match=r"decoding|tokens_per_step|threshold"):
        _parsed(decoding)


def test_damaged_text_is_one_line(run, tmp_path, capsys):
    """Else a file in another encoding would end in a traceback."""
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"prompt": "caf\xe9"}\n')
    assert "UTF-8" in fails(capsys, "eval", run, "--against", run, "--problems", file)
    recipe = tmp_path / "latin.toml"
    recipe.write_bytes(b"# caf\xe9\n")
    assert "TOML" in fails(capsys, "convert", "m", "--output", tmp_path / "o", "--recipe", recipe)
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "config.toml").write_text("block_size = = 4")
    assert "config.toml" in fails(capsys, "convert", "--resume", "--output", broken)


def test_numbers_of_an_evaluation(run, ar_model, prompts, capsys):
    """Else a wrong number would show as a strange message about sequences."""
    words = ("eval", run, "--against", ar_model, "--prompts", prompts, "--max-new-tokens", "4")
    assert "--prompt-limit" in fails(capsys, *words, "--prompt-limit", "0")
    assert "--prompt-tokens" in fails(capsys, *words, "--prompt-tokens", "0")
    assert "temperature" in fails(capsys, *words, "--temperature", "-1")


def test_a_run_is_not_a_prompt(run, capsys, monkeypatch):
    """Else `opdlm generate RUN` would answer the folder's name."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no prompt" in fails(capsys, "generate")
    assert "no prompt" in fails(capsys, "generate", run)
    assert "no prompt" in fails(capsys, "generate", student_path())
    assert "opdlm generate someone/model" in fails(capsys, "generate", "someone/model")


def test_controls_say_which_states_they_need(ar_model, prompts, tmp_path, capsys):
    """Else somebody would believe that a control was trained on states that nobody visited."""
    flags = ("--prompts", prompts, "--output", tmp_path / "o", "--method", "offpolicy_kd", "--states", "all")
    assert "random_mask" in fails(capsys, "convert", ar_model, *flags)
    unused = ("--prompts", prompts, "--output", tmp_path / "o", "--responses-column", "answer")
    assert "responses_column" in fails(capsys, "convert", ar_model, *unused)
