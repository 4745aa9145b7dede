"""Decoding as users reach it: gaps, drafts, records, stop strings and compiled passes, by command and from Python."""

import json
import shutil

import pytest
import torch

from cli_support import call, fails
from opdlm.config import GenerationSettings, settings_from
from opdlm.core.types import Geometry
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.api import DiffusionLM
from rollouts import random_prompts, student
from sampling_support import generated
from support import MASK, tiny_model, tiny_tokenizer


@pytest.fixture
def model() -> DiffusionLM:
    return DiffusionLM(student(), tiny_tokenizer(mask=True), GenerationSettings(max_new_tokens=13))


TEXT = "<|user|>What is 3 + 4?<|assistant|>3 + 4 = [[MASK:1]]\n#### [[MASK:1]]"


def test_infill_writes_in_the_gaps_alone(capsys):
    """Else a user's own text would be changed, or something written behind it."""
    assert call("generate", "--infill", TEXT) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert text.startswith(TEXT[: TEXT.index("[[")])
    assert text.count("#### ") == 1
    assert call("generate", "--infill", TEXT, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["text"] == text
    assert numbers["tokens"] == len(numbers["token_ids"]) == len(numbers["commit_steps"]) == 2
    assert all(0 < confidence <= 1 for confidence in numbers["confidences"])
    assert call("generate", "--infill", TEXT, "--watch") == 0
    assert capsys.readouterr().out.rstrip("\n").endswith(text.replace("\n", "⏎"))


def test_a_model_that_checks_its_drafts_fills_gaps_by_masks():
    """Else the default of the small recipes, which writes from left to right, would leave gaps without a decoding."""
    tokenizer, settings = tiny_tokenizer(mask=True), GenerationSettings(max_new_tokens=13)
    usual, checked = (
        DiffusionLM(student(4, "shifted", "causal"), tokenizer, settings_from(GenerationSettings, {"decoding": kind}))
        for kind in (settings.decoding, "checked")
    )
    assert checked.infill("a [[MASK:5]] b") == usual.infill("a [[MASK:5]] b")
    with pytest.raises(UsageError, match="fills no gaps"):
        checked.infill("a [[MASK:5]] b", decoding="checked")


def test_infill_says_what_is_missing(capsys):
    """Else a text without a gap would come back unchanged, or a gap that nothing predicts be filled with noise."""
    assert "no gap" in fails(capsys, "generate", "--infill", "nothing to fill")
    assert "begin the text with a token" in fails(capsys, "generate", "--infill", "[[MASK:2]] and more")
    assert "give one of the two" in fails(capsys, "generate", "model", "prompt", "--infill", "a [[MASK:1]]")


def test_fill_keeps_every_given_token(model):
    """Else filling would move or replace what stands around the gaps, in rows of different lengths."""
    rows = random_prompts((9, 14, 22))
    for row, gaps in zip(rows, ((3,), (0, 1, 13), (5, 6, 20)), strict=True):
        for gap in gaps:
            row[gap] = MASK
    output = model.fill(rows, temperature=1.0, seed=3)
    for found, row in zip(output.sequences.tolist(), rows, strict=True):
        assert MASK not in found
        assert all(token in (MASK, new) for token, new in zip(row, found, strict=False))
        assert set(found[len(row) :]) <= {model.tokens.pad_token_id}
    with pytest.raises(UsageError, match="no gap"):
        model.fill([[5, 6]])


def test_the_stream_ends_with_what_generate_returns(model):
    """Else a program that shows drafts would end on another text than the one that is returned."""
    prompt = random_prompts((6,))
    drafts = list(model.stream(prompt))
    output = model.generate(prompt)
    assert drafts[-1].tolist() == output.sequences[0, 6:].tolist()
    assert len(drafts) == int(output.rollout.forwards)
    for draft in drafts:
        known = draft != MASK
        assert known.any()
        assert torch.equal(draft[known], output.sequences[0, 6 : 6 + len(draft)][known])
    assert not drafts[-1].is_inference()


def test_records_of_every_token(model):
    """Else the order of decoding could not be shown, or a confidence would belong to another token."""
    output = model.generate(random_prompts((6, 3)), decoding="static")
    written = output.commit_steps >= 0
    written &= torch.arange(written.shape[1]) < output.rollout.length[:, None]
    assert (output.confidences[written] > 0).all()
    assert (output.confidences[output.commit_steps < 0] == 0).all()
    assert (output.commit_steps[written] < 4).all(), "a block of four tokens has at most four steps"


def test_stop_strings_reach_the_engine(capsys):
    """Else the setting would be accepted and do nothing."""
    assert call("generate", "What is 3 + 4?", "--json", "--logit-bias", "3:-100", "--max-new-tokens", "24") == 0
    whole = json.loads(capsys.readouterr().out)["text"]
    stop = whole[4:6]
    flags = ("--logit-bias", "3:-100", "--max-new-tokens", "24", "--stop-strings", stop)
    assert call("generate", "What is 3 + 4?", "--json", *flags) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert text in whole
    assert len(text) < len(whole)
    assert stop in text
    assert stop not in text[: -len(stop) - 8]
    assert "stop string is empty" in fails(capsys, "generate", "hello", "--stop-strings", "")
    assert "logit_bias: it names a token" in fails(capsys, "generate", "hello", "--logit-bias", "123456:1")


def test_compiling_says_what_it_needs(capsys, monkeypatch):
    """Else the first forward would end in a traceback of torch's compiler."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install g++" in fails(capsys, "generate", "hello", "--compile")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile uses them itself, as of torch 2.13
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_decoding_writes_the_same():
    """Else `--compile` would be another model. Two prompts that end together: each batch size is compiled anew."""
    plain, compiled = (tiny_model(num_hidden_layers=1, initializer_range=0.35) for _ in range(2))
    students = [BlockDiffusionModel(model, Geometry(4), MASK) for model in (plain, compiled)]
    students[1].compile_decoding()
    settings, never = GenerationSettings(max_new_tokens=9, decoding="static"), SpecialTokens(MASK, 0, ())
    expected, found = (generated(each, never, settings, random_prompts((6, 7))) for each in students)
    assert found.input_ids.tolist() == expected.input_ids.tolist()
