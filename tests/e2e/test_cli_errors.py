"""What bad input gets: one line that names the fix, exit code 2, and nothing half-written."""

import errno
import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM, MambaConfig, PreTrainedTokenizerBase, T5Config

from cli_support import SMALL, call, fails, fingerprint
from opdlm.checkpoints.load import ENTRY
from opdlm.distill import losses
from opdlm.records import run_folder
from support import tiny_config, tiny_model, tiny_tokenizer


def _id(value):
    return value if isinstance(value, str) else " ".join(value)


@pytest.fixture(scope="module")
def converted(ar_model, prompts, tmp_path_factory):
    """A finished run; copy it before breaking it."""
    output = tmp_path_factory.mktemp("converted") / "run"
    assert call("convert", ar_model, "--prompts", prompts, "--output", output, *SMALL) == 0
    return output


@pytest.fixture
def convert_fails(ar_model, prompts, tmp_path, capsys):
    """`opdlm convert` with a part replaced: must fail and leave no output folder. Returns the message."""

    def run(*flags, model=ar_model, file=prompts):
        output = tmp_path / "output"
        message = fails(capsys, "convert", model, "--prompts", file, "--output", output, *SMALL, *flags)
        assert not output.exists()
        return message

    return run


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["convert", "doctor"])
def test_unknown_model(command, prompts, tmp_path, capsys):
    """Without it a typing mistake would end in a page of traceback from the hub's client."""
    flags = ("--prompts", prompts, "--output", tmp_path / "o") if command == "convert" else ()
    assert "nobody/nothing" in fails(capsys, command, "nobody/nothing", *flags)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("config", "reason"), [(T5Config(), "encoder-decoder"), (MambaConfig(), "linear-attention")], ids=["t5", "mamba"]
)
def test_unsupported_architecture(config, reason, convert_fails, tmp_path, capsys):
    """Without it the user would train for hours a model that no mask can make bidirectional."""
    config.save_pretrained(tmp_path / "other")
    assert reason in convert_fails(model=tmp_path / "other")
    assert reason in fails(capsys, "doctor", tmp_path / "other")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_folder_without_a_tokenizer(kind, tmp_path, capsys):
    """Without it an empty tokenizer, which transformers makes up, would be converted, or end in a traceback."""
    tiny_model(kind).save_pretrained(tmp_path / "model")
    fix = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights"
    assert fix in fails(capsys, "doctor", tmp_path / "model", "--no-speed", "--json")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert call("doctor", tmp_path / "model", "--no-speed", "--json") == 0


def test_an_end_that_is_no_token(tmp_path, capsys):
    """Without it an eos_token_id beyond the vocabulary would be a traceback."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = 5000
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert call("doctor", tmp_path / "model", "--no-speed") == 0
    assert "5000, no token" in capsys.readouterr().out


def test_doctor_says_no_as_json(tmp_path, capsys):
    """Without it a script could not tell why a model was refused."""
    T5Config().save_pretrained(tmp_path / "t5")
    assert call("doctor", tmp_path / "t5", "--json") == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["convertible"] is False
    assert "encoder-decoder" in answer["reason"]


def test_no_room_for_a_mask_token(tmp_path, convert_fails):
    """Without it the mask would share its embedding with a word."""
    folder = tmp_path / "gaps"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] += 1  # the next new id is taken, the last but one free
    (folder / "tokenizer.json").write_text(json.dumps(words))
    assert "mask" in convert_fails(model=folder)


# --- the prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "does not exist; check the path"),
        ("", "holds no prompts"),
        ('{"title": "a"}\n', "name one of its columns with --prompts-column: title"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n{"prompt": 7}\n', "line 2"),
        (json.dumps({"prompt": "a" * 1020}) + "\n", "context is 1024"),
    ],
    ids=["missing", "empty", "column", "json", "value", "too-long"],
)
def test_bad_prompts(text, expected, tmp_path, convert_fails):
    """Without it a mistake in the file would show after the model was loaded, or as a KeyError."""
    path = tmp_path / "own.jsonl"
    if text is not None:
        path.write_text(text)
    assert expected in convert_fails(file=path)


@pytest.mark.parametrize(
    ("row", "flags", "expected"),
    [
        ('{"text": ""}', [], "neither text nor a list of messages"),
        ('{"prompt": "a"}', ["--prompts-column", "question"], "question"),
        ('{"messages": [{"role": "user", "content": "a"}]}', [], "chat template"),
        (json.dumps({"prompt": "a" * 1020}), [], "context is 1024"),
        ('{"prompt": "a"}', ["--lora-rank", "100000"], "give at most"),
    ],
    ids=["empty", "column", "messages", "long", "rank"],
)
def test_doctor_refuses_what_convert_refuses(row, flags, expected, ar_model, tmp_path, convert_fails, capsys):
    """Without it doctor would pass a model and prompts that a conversion then refuses, or one would save half a run."""
    path = tmp_path / "own.jsonl"
    path.write_text(row + "\n")
    refused = convert_fails(*flags, file=path)
    assert expected in refused
    output = call("doctor", ar_model, "--no-speed", "--prompts", path, *flags), capsys.readouterr().err
    assert output[0] == 2
    assert output[1].split(" and its response")[0] == f"{refused}\n".split(" and its response")[0]


def test_prompt_longer_than_the_context(converted, capsys):
    """Without it the model would silently read positions that it was never trained for."""
    message = fails(capsys, "generate", converted, "a" * 1020)
    assert "1024" in message
    assert "--max-new-tokens" in message


# --- the settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--blok-size", "4"], "did you mean --block-size"),
        (["--learning-rate", "1"], "did you mean --optimiser.learning-rate"),
        (["--block-size", "0"], "block_size"),
        (["--block-size", "99999"], "block_size"),
        (["--block-size", "four"], "block_size"),
        (["--rollout-decoding", "fast"], "'dynamic'"),
        (["--rollout-decoding", "dynamic:2"], "threshold"),
        (["--context", "both"], "'causal'"),
        (["--response-length.end", "0"], "response_length.end"),
        (["--recipe", "paper-smal"], "did you mean 'paper-small'"),
        (["--device", "abacus"], "abacus"),
        (["--rows-per-update"], "expected one argument"),
    ],
    ids=_id,
)
def test_bad_settings(flags, expected, convert_fails):
    """Without it a mistyped setting would be ignored, and the run would not be what the user asked for."""
    assert expected in convert_fails(*flags)


def test_a_block_longer_than_the_context(tmp_path, convert_fails):
    """Without it the message would ask for shorter prompts, which cannot help."""
    tiny_model("llama", max_position_embeddings=64).save_pretrained(tmp_path / "short")
    tiny_tokenizer().save_pretrained(tmp_path / "short")
    assert "lower --block-size" in convert_fails("--block-size", "128", model=tmp_path / "short")


def test_unknown_setting_in_a_recipe(tmp_path, convert_fails):
    """Without it a mistyped line of a recipe would be ignored."""
    (tmp_path / "own.toml").write_text("blocksize = 8\n")
    assert "did you mean 'block_size'" in convert_fails("--recipe", tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["convrt"], "did you mean 'convert'"),
        (["generate", "--tempratur", "1", "hello"], "did you mean --temperature"),
        (["generate", "m", "a", "b"], "unexpected argument 'b'"),
        (["generate", "m", "a", "--top-p", "2"], "top_p"),
        (["convert"], "no model given"),
        (["convert", "m"], "no prompts given"),
        (["convert", "--resume"], "name its folder"),
        (["convert", "--resume", "--output", "o", "--seed", "1"], "leave out --seed"),
        (["eval", "--decoding", "fast"], "'dynamic'"),
        (["eval", "--batch-size", "0"], "--batch-size"),
        (["eval", "--problems", "nowhere.jsonl"], "does not exist"),
        (["eval", "m", "--problems", "a.jsonl", "--prompts", "b.jsonl"], "--problems does nothing with --prompts"),
        (["eval", "m", "--prompt-tokens", "4"], "--prompt-tokens does nothing with problems"),
        (["eval", "m", "--per-family", "4", "--problems", "a.jsonl"], "leave it out with --problems"),
        (["eval", "--temperature", "-1"], "temperature"),
        (["eval", "--json", "no/such/folder/out.json"], "out.json cannot be written"),
        (["eval", "--json", ""], ". cannot be written"),
        (["demo", "--picture", "no/such/folder/demo.svg"], "demo.svg cannot be written"),
        (["eval", "--answers", "."], ". cannot be written"),
        (["doctor", "m", "--block-size", "0"], "block_size"),
        (["doctor"], "no model given"),
    ],
    ids=_id,
)
def test_bad_command_lines(words, expected, capsys, monkeypatch, tmp_path):
    """Without it argparse would print its usage, or the model would be loaded before the mistake is found."""
    monkeypatch.chdir(tmp_path)
    assert expected in fails(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "no problems"),
        ("{", "not JSON"),
        ('{"prompt": "a"}', "missing: answer, family"),
        ('{"prompt": "a", "answer": "1", "family": "sport"}', "'sport'"),
        ('{"prompt": "a", "answer": "f", "family": "code", "calls": [1]}', "needs calls"),
        ('{"prompt": "a", "answer": "f", "family": "code"}', "needs calls"),
        ('{"prompt": "a", "answer": "many", "family": "maths"}', "no number"),
        ("[1]", "missing: prompt, answer, family"),
        ('{"prompt": null, "answer": "1", "family": "maths"}', "line 1 is neither text nor a list of messages"),
        ('{"prompt": 5, "answer": "1", "family": "maths"}', "line 1 is neither text nor a list of messages"),
        ('{"prompt": "a", "answer": null, "family": "edit"}', "line 1 has null as answer"),
        ('{"prompt": "a", "answer": ["x"], "family": "edit"}', "line 1 has a list as answer"),
        ('{"prompt": "a", "answer": true, "family": "edit"}', "line 1 has a bool as answer"),
        ('{"prompt": "a", "answer": "1", "family": null}', "line 1 has null as family"),
        ('{"prompt": "a", "answer": "1", "family": "maths", "tag": {}}', "line 1 has a dict as tag"),
    ],
)
def test_bad_problems(line, expected, tmp_path, capsys):
    """Without it an evaluation would stop in the middle, or grade by the wrong rule."""
    path = tmp_path / "problems.jsonl"
    path.write_text(line + "\n")
    assert expected in fails(capsys, "eval", "--problems", path)


# --- the output ---------------------------------------------------------------------------------------------------


def test_output_not_empty(ar_model, prompts, tmp_path, capsys):
    """Without it a new run would overwrite an old one."""
    (tmp_path / "notes.txt").write_text("mine")
    for command in (("convert", ar_model, "--prompts", prompts, *SMALL), ("demo", "--model", ar_model)):
        recipe = tmp_path.parent / "tiny.toml"
        recipe.write_text("rollouts = 1\nprompts_per_rollout = 8\n")
        more = ("--recipe", recipe) if command[0] == "demo" else ()
        message = fails(capsys, *command, "--output", tmp_path, *more)
        assert "is not empty" in message
    assert fingerprint(tmp_path).keys() == {"notes.txt"}


def test_disk_full_at_the_start(ar_model, prompts, tmp_path, capsys, monkeypatch):
    """Without it a folder would be left that the next try refuses as not empty."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.tomli_w, "dumps", full)
    message = fails(capsys, "convert", ar_model, "--prompts", prompts, "--output", tmp_path / "o", *SMALL)
    assert "No space left" in message
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("part", ["weights", "tokenizer", "state", "metrics"])
def test_disk_full_at_a_checkpoint(part, ar_model, prompts, tmp_path, capsys, monkeypatch):
    """Without it a full disk would cost the checkpoint that was already there, or leave half of a new one."""
    kept = {}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    targets = {
        "weights": (LlamaForCausalLM, "save_pretrained"),
        "tokenizer": (PreTrainedTokenizerBase, "save_pretrained"),
        "state": (torch, "save"),
        "metrics": (run_folder.RunFolder, "log"),
    }

    def after_the_first_rollout(line):
        kept.update(fingerprint(tmp_path / "o" / "checkpoints"))
        if part != "metrics":
            monkeypatch.setattr(*targets[part], full)

    monkeypatch.setattr("opdlm.cli.views.ConversionView.step", lambda view, line: after_the_first_rollout(line))
    if part == "metrics":
        before = run_folder.Path.open

        def open_unless_metrics(path, *args, **kwargs):
            return full() if path.name == "metrics.jsonl" and kept else before(path, *args, **kwargs)

        monkeypatch.setattr(run_folder.Path, "open", open_unless_metrics)
    flags = (*SMALL, "--no-async-save")  # else the first checkpoint may still be under way when the disk is full
    message = fails(capsys, "convert", ar_model, "--prompts", prompts, "--output", tmp_path / "o", *flags)
    monkeypatch.undo()
    assert "--resume" in message or "free some" in message
    now = fingerprint(tmp_path / "o" / "checkpoints")
    assert kept
    assert {name: now.get(name) for name in kept} == kept
    assert {path.name for path in (tmp_path / "o" / "checkpoints").iterdir()} <= {"rollout-000001", "rollout-000002"}
    assert call("convert", "--resume", "--output", tmp_path / "o") == 0


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_truncated_checkpoint(converted, tmp_path, capsys):
    """Without it half a download would end in a traceback, or in a model of random weights."""
    shutil.copytree(converted / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "truncated" in fails(capsys, "generate", tmp_path / "model", "hello")


def test_truncated_training_state(converted, tmp_path, capsys):
    """Without it a resumed run could continue with the optimiser of another."""
    shutil.copytree(converted, tmp_path / "run")
    state = tmp_path / "run" / "checkpoints" / "rollout-000002" / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    before = fingerprint(tmp_path / "run")
    assert "damaged" in fails(capsys, "convert", "--resume", "--output", tmp_path / "run")
    assert fingerprint(tmp_path / "run") == before


def test_checkpoint_of_another_architecture(converted, tmp_path, capsys):
    """Without it weights that do not fit would be replaced by random ones."""
    shutil.copytree(converted / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**tiny_config("qwen3").to_dict(), ENTRY: config[ENTRY]}))
    message = fails(capsys, "generate", tmp_path / "model", "hello")
    assert "config" in message


def test_a_model_that_was_never_converted(ar_model, capsys):
    """Without it an AR model would be decoded by blocks and write nonsense."""
    assert "convert it first with `opdlm convert`" in fails(capsys, "generate", ar_model, "hello")


def test_a_converted_model_is_no_ar_model(converted, prompts, tmp_path, capsys):
    """Without it a student would be its own teacher, or be compared with itself."""
    model = converted / "model"
    for words in (
        ("doctor", model),
        ("convert", model, "--prompts", prompts, "--output", tmp_path / "o"),
        ("eval", model, "--against", model),
    ):
        message = fails(capsys, *words)
        assert "is a converted model already" in message
        assert f"--resume --output {converted}" in message


def test_eval_against_another_family(converted, tmp_path, capsys):
    """Without it the accuracy retained would be that of a stranger."""
    tiny_model("llama").save_pretrained(tmp_path / "other")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["stranger"])
    tokenizer.save_pretrained(tmp_path / "other")
    problems = tmp_path / "p.jsonl"
    problems.write_text('{"prompt": "a", "answer": "1", "family": "maths"}\n')
    message = fails(capsys, "eval", converted, "--against", tmp_path / "other", "--problems", problems)
    assert "different vocabularies" in message


def test_a_loss_that_is_not_finite_has_its_own_exit_code(ar_model, prompts, tmp_path, capsys, monkeypatch):
    """Without it a script could not tell a diverged run from a mistake in the command."""

    def broken(*args, **kwargs):
        return losses.LossSum(torch.tensor(float("nan"), requires_grad=True), torch.tensor(1.0))

    monkeypatch.setattr(losses, "divergence_loss", broken)
    output = tmp_path / "o"
    fails(capsys, "convert", ar_model, "--prompts", prompts, "--output", output, *SMALL, code=1)
