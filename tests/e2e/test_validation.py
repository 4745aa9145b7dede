"""What a run says about its own worth: at its end, in its folder, and meanwhile with --eval-every."""

import json
from pathlib import Path

import pytest

from cli_support import SMALL, call, fails, fingerprint
from opdlm.checkpoints.save import save_checkpoint
from opdlm.config import GenerationSettings
from opdlm.distill.api import convert, resume
from opdlm.records.metrics import StepMetrics
from opdlm.records.run_folder import RunFolder
from rollouts import fresh_student
from support import tiny_tokenizer

PROMPTS = ["abc", "what is 2+2?", "one, two, ", "xyz!", "a=b"]
SETTINGS = {
    "device": "cpu",
    "rollouts": 4,
    "prompts_per_rollout": 2,
    "rows_per_update": 1,
    "save_every_rollouts": 2,
    "response_length": {"start": 8, "end": 8},
    "optimiser": {"learning_rate": 1e-2},
}


def validated(run: Path) -> list[int]:
    return [line.rollout for line in RunFolder(run).logged() if line.validation is not None]


def test_a_validated_run_ends_in_the_same_weights(ar_model, tmp_path):
    """Else whoever looks at a run would change it."""
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("new one\nnew two\n")
    convert(ar_model, PROMPTS, tmp_path / "plain", **SETTINGS)
    convert(ar_model, PROMPTS, tmp_path / "seen", eval_every=1, eval_prompts=str(held_out), **SETTINGS)
    plain, seen = fingerprint(tmp_path / "plain" / "model"), fingerprint(tmp_path / "seen" / "model")
    assert plain["model.safetensors"] == seen["model.safetensors"]
    assert validated(tmp_path / "plain") == [4]
    assert validated(tmp_path / "seen") == [1, 2, 3, 4]
    worth = RunFolder(tmp_path / "seen").kept_worth()
    assert worth is not None
    assert (worth.held_out, worth.updates, worth.before.responses, worth.after.responses) == (True, 7, 2, 2)
    assert worth.before != worth.after
    card = (tmp_path / "seen" / "model" / "README.md").read_text()
    assert f"| agreement with the teacher | {worth.before.agreement:.0%} before training" in card
    assert "| updates | 7 |" in card


def test_held_out_prompts_are_not_trained_on(ar_model, tmp_path):
    """Else agreement on them would be that of the training set."""
    seen = []
    settings = SETTINGS | {"eval_count": 2}
    convert(ar_model, PROMPTS, tmp_path / "run", on_start=lambda trainer, _: seen.append(trainer), **settings)
    (trainer,) = seen
    assert (len(trainer.prompts), len(trainer.validate.prompts)) == (3, 2)
    assert not {tuple(ids) for ids in trainer.prompts} & {tuple(ids) for ids in trainer.validate.prompts}


def test_a_resumed_run_knows_how_it_began(ar_model, tmp_path):
    """Else the agreement before would be that of a half-trained student."""

    def cut(metrics: StepMetrics) -> None:
        if metrics.rollout == 3:
            raise KeyboardInterrupt

    settings = SETTINGS | {"eval_count": 2, "eval_every": 1}
    convert(ar_model, PROMPTS, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        convert(ar_model, PROMPTS, tmp_path / "cut", on_step=cut, **settings)
    resume(tmp_path / "cut")
    assert RunFolder(tmp_path / "whole").kept_worth() == RunFolder(tmp_path / "cut").kept_worth()
    assert validated(tmp_path / "cut") == [1, 2, 3, 4]


def test_a_small_run_says_so(ar_model, prompts, tmp_path, capsys):
    """Else the model of two updates would be presented like any other."""
    words = ("--prompts", prompts, "--output", tmp_path / "run", *SMALL, "--eval-every", "1", "--eval-count", "2")
    assert call("convert", ar_model, *words) == 0
    shown = capsys.readouterr().out
    for expected in ("updates: 2", "on 2 held-out prompts", "note: 2 updates: too little", "loss", "agreement "):
        assert expected in shown
    lines = [line for line in shown.splitlines() if line.startswith("rollout 2/2")]
    assert "  agreement " in lines[0]


def test_mistakes(ar_model, prompts, tmp_path, capsys):
    """Else a run would begin and then validate on nothing, or train on nothing."""
    words = ("convert", ar_model, "--prompts", prompts, "--output", tmp_path / "run", *SMALL)
    assert "name a file with eval_prompts" in fails(capsys, *words, "--eval-every", "1")
    assert "keeps 8 of 8 prompts" in fails(capsys, *words, "--eval-count", "8")
    assert not (tmp_path / "run").exists()


def test_empty_answers_are_explained(ar_model, tmp_path, capsys):
    """Else `0 tokens/s` would look like a slow machine, and nothing at all like a broken terminal."""
    silent = fresh_student(eos_token_id=[0, 2])
    silent.model.lm_head.weight.data.zero_()  # all logits equal: the first token, a stop token, is taken
    settings = GenerationSettings(max_new_tokens=4)
    save_checkpoint(silent, tiny_tokenizer(mask=True), tmp_path / "silent", generation=settings, provenance={})
    assert call("generate", tmp_path / "silent", "one") == 0
    assert "the model stopped at once" in capsys.readouterr().err
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"prompt": "one", "answer": "1", "family": "maths"}) + "\n")
    words = ("eval", tmp_path / "silent", "--against", ar_model, "--problems", problems, "--decoding", "static")
    assert call(*words, "--max-new-tokens", "4") == 0
    assert "note: student, static: 1 of 1 responses are empty" in capsys.readouterr().out
