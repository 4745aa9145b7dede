"""The way of a user: doctor, convert, stop, resume, generate, eval, demo."""

import io
import json
import tomllib

import pytest
from rich.console import Console

from cli_support import SMALL, call, fails, fingerprint
from opdlm.cli.views import ConversionView
from opdlm.cli.watch import MASK_SIGN, DraftView
from opdlm.config import ConvertSettings
from opdlm.recipes import load_recipe
from opdlm.sampling.api import load


@pytest.fixture(scope="module")
def run(ar_model, prompts, tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert call("convert", ar_model, "--prompts", prompts, "--output", output, *SMALL) == 0
    return output


def test_convert_reports_and_leaves_a_model(ar_model, prompts, tmp_path, capsys):
    """Without it the user would not know whether the check passed, how it went, and what to type next."""
    output = tmp_path / "run"
    assert call("convert", "--profile", "--prompts", prompts, ar_model, "--output", output, *SMALL) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"prompts: 8 from {prompts}, column prompt\n" in shown.out
    for expected in ("identity check passed", "rollout 2/2", "tokens/forward", f"opdlm generate {output}"):
        assert expected in shown.out
    for part in ("rollout", "states", "teacher", "student", "optimiser", "saving", "rest", "all"):
        assert f"\n  {part:10} " in shown.out
    assert (output / "model" / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    parts = sum(sum(line["seconds"].values()) for line in lines)
    assert lines[-1]["total"]["seconds"] == pytest.approx(parts, abs=0.01), "the parts, the rest among them, are all"
    assert all(line["seconds"]["rest"] >= 0 for line in lines)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "small"),
        (("--recipe", "none"), "small"),
        (("--lora", "1"), "small"),
        (("--recipe", "paper-large"), "paper-large"),
    ],
)
def test_without_a_recipe_the_size_decides(ar_model, prompts, tmp_path, capsys, flags, expected):
    """Without it small models would be converted by settings for large ones, and the user would not know by which."""
    assert call("convert", ar_model, "--prompts", prompts, "--output", tmp_path / "run", *SMALL, *flags) == 0
    found = ConvertSettings(**tomllib.loads((tmp_path / "run" / "config.toml").read_text()))
    assert found.recipe == expected
    assert found.context == load_recipe(expected)["context"]
    assert load(tmp_path / "run" / "model").defaults.decoding == found.usual_decoding
    assert found.usual_decoding.kind == ("dynamic" if expected.startswith("paper") else "checked")
    assert (f"recipe {expected}, by the size" in capsys.readouterr().out) == ("paper-large" not in flags)


def test_a_flag_replaces_one_value_of_a_recipe_group(ar_model, prompts, tmp_path):
    """Without it `--optimiser.learning-rate` would reset the rest of the optimiser, or defaults win."""
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        "prompts_per_rollout = 8\nrows_per_update = 2\nrollouts = 1\nblock_size = 8\ntop_k = 5\n"
        "optimiser = { learning_rate = 1e-4, clip_norm = 0.5 }\n"
        'response_length = { start = 6, end = 6, rollouts = 3, shape = "linear" }\n'
    )
    words = ("convert", ar_model, "--prompts", prompts, "--output", tmp_path / "run", "--recipe", recipe)
    assert call(*words, "--optimiser.learning-rate", "2e-4", "--response-length.end", "7", "--top-k", "none") == 0
    found = ConvertSettings(**tomllib.loads((tmp_path / "run" / "config.toml").read_text()))
    assert (found.optimiser.learning_rate, found.optimiser.clip_norm) == (2e-4, 0.5)
    assert found.response_length.model_dump() == {"start": 6, "end": 7, "rollouts": 3, "shape": "linear"}
    assert (found.block_size, found.rows_per_update, found.top_k) == (8, 2, None)


def test_lora_is_short_for_lora_rank(ar_model, prompts, tmp_path):
    """Without it the short flag could be accepted and do nothing."""
    pytest.importorskip("peft")
    output = tmp_path / "run"
    assert call("convert", ar_model, "--prompts", prompts, "--output", output, *SMALL, "--lora", "2") == 0
    assert tomllib.loads((output / "config.toml").read_text())["lora_rank"] == 2


@pytest.mark.parametrize("resume", [("--resume", "--output"), ("--resume",)], ids=["flag", "folder"])
def test_stop_and_resume(resume, ar_model, prompts, run, tmp_path, capsys, monkeypatch):
    """Without it Ctrl-C would cost the run, or leave the user without the command that continues it."""
    output = tmp_path / "run"

    def stop_after_the_first(view, line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ConversionView, "step", stop_after_the_first)
        assert call("convert", ar_model, "--prompts", prompts, "--output", output, *SMALL) == 130
    shown = capsys.readouterr()
    assert f"opdlm convert --resume --output {output}" in shown.out
    assert "rollout-000001" in shown.out
    assert "Traceback" not in shown.err
    assert call("convert", *resume, output) == 0
    assert "continuing from" in capsys.readouterr().out
    ours, uninterrupted = fingerprint(output / "model"), fingerprint(run / "model")
    assert ours["model.safetensors"] == uninterrupted["model.safetensors"]


def test_stop_before_anything_was_written(ar_model, prompts, tmp_path, capsys, monkeypatch):
    """Without it the user would be told to resume from nothing."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("opdlm.distill.prepare.load_ar_model", stop)
    assert call("convert", ar_model, "--prompts", prompts, "--output", tmp_path / "run", *SMALL) == 130
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_generate_as_text_and_json(run, capsys, monkeypatch):
    """Without it the two outputs could tell of different responses, or the counts of another run."""
    flags = ("--max-new-tokens", "9", "--decoding", "static")
    assert call("generate", run, "two words", *flags) == 0
    text = capsys.readouterr().out
    assert call("generate", run / "model", "two words", "--json", *flags) == 0
    numbers = json.loads(capsys.readouterr().out)
    counts = {"text", "tokens", "forwards", "tokens_per_forward", "seconds"}
    assert numbers.keys() == counts | {
        "version",
        "prompt_ids",
        "positions",
        "token_ids",
        "commit_steps",
        "confidences",
        "block_size",
        "decoding",
        "prompt",
        "texts",
        "verified",
        "alternatives",
        "kl",
        "refused",
    }
    assert numbers["decoding"] == "static:1"
    assert len(numbers["texts"]) == len(numbers["alternatives"]) == numbers["tokens"]
    assert text == numbers["text"] + "\n"
    assert 1 <= numbers["tokens"] <= 9
    assert numbers["forwards"] >= numbers["tokens"]
    monkeypatch.setattr("sys.stdin", io.StringIO("two words\n"))
    assert call("generate", run, "-", *flags) == 0
    assert capsys.readouterr().out == text


def test_generate_defaults_to_the_packages_student(run, capsys, monkeypatch):
    """Without it a first try would need a model."""
    monkeypatch.setattr("opdlm.tiny.weights.student_path", lambda: run / "model")
    assert call("generate", "two words", "--max-new-tokens", "4") == 0
    assert capsys.readouterr().out


def test_watch_prints_drafts_where_there_is_no_terminal(run, capsys):
    """Without it a log file would be full of control codes, or the drafts not end in the text."""
    flags = ("--max-new-tokens", "9", "--decoding", "static")
    assert call("generate", run, "two words", "--watch", *flags) == 0
    drafts = [line[6:] for line in capsys.readouterr().out.rstrip("\n").split("\n")]
    assert call("generate", run, "two words", "--json", *flags) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert len(drafts) == numbers["forwards"] + 1
    assert MASK_SIGN in drafts[0]
    assert MASK_SIGN not in drafts[-1]
    assert drafts[-1].startswith(numbers["text"].replace("\n", "⏎"))


def test_watch_on_a_terminal(run):
    """Without it nobody would see which tokens are new, or how many a forward makes."""
    screen = io.StringIO()
    model = load(run)
    view = DraftView(Console(file=screen, force_terminal=True, width=80), model.tokenizer, model.tokens.mask_token_id)
    ids = model.tokenizer("one", add_special_tokens=False)["input_ids"]
    output = model.generate([ids], streamer=view, max_new_tokens=6, decoding="static")
    shown = screen.getvalue()
    forwards = int(output.rollout.forwards[0])
    assert "\x1b[1;32m" in shown  # what was just fixed
    assert "\x1b[2m" in shown  # masks and counts
    assert f"step {forwards}, " in shown
    assert f"{output.tokens_per_forward:.2f} tokens per forward" in shown


def test_eval_on_a_file(ar_model, run, tmp_path, capsys):
    """Without it the table and the numbers could disagree, or a family be left out."""
    problems = tmp_path / "problems.jsonl"
    rows = [
        {"prompt": "one", "answer": "1", "family": "maths"},
        {"prompt": "two", "answer": "x", "family": "edit"},
        {"prompt": "add", "answer": "f", "family": "code", "calls": [["f(1)", "2"]]},
        {"prompt": "red", "answer": "red", "family": "recall", "tag": "seen"},
    ]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (
        "eval",
        run,
        "--against",
        ar_model,
        "--problems",
        problems,
        "--decoding",
        "static",
        "--decoding",
        "dynamic:0.5",
    )
    assert call(*words, "--max-new-tokens", "8", "--json", tmp_path / "out.json") == 0
    shown = capsys.readouterr().out
    for expected in ("teacher", "student, static", "student, dynamic:0.5", "maths", "recall seen", "tokens/s"):
        assert expected in shown
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert [student["decoding"] for student in numbers["students"]] == ["static", "dynamic:0.5"]
    assert numbers["teacher"]["total"]["n"] == 4
    assert numbers["students"][0]["tokens_per_forward"] > 0


def test_doctor(ar_model, prompts, capsys):
    """Without it costs and obstacles would be found out by an expensive try."""
    before = fingerprint(ar_model)
    assert call("doctor", ar_model, "--json", "--lora-rank", "1") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["convertible"] is True
    assert found["mask_token"]["plan"] == "an unused row of the embedding"
    assert found["memory"]["training_bytes"] > 20 * found["parameters"]
    assert found["memory"]["checkpoint_bytes"] == 12 * found["parameters"]
    assert found["memory"]["lora_checkpoint_bytes"] < found["memory"]["checkpoint_bytes"]
    assert found["command_fits"]
    assert found["speed"]["tokens_per_second"] > 0
    assert found["command"].startswith(f"opdlm convert {ar_model} --prompts PROMPTS.jsonl")
    assert call("doctor", ar_model, "--no-speed") == 0
    printed = capsys.readouterr().out
    assert "not measured" in printed
    assert f"opdlm prompts {ar_model} --output PROMPTS.jsonl" in printed
    assert call("doctor", ar_model, "--no-speed", "--prompts", prompts) == 0
    assert "opdlm prompts" not in capsys.readouterr().out
    assert fingerprint(ar_model) == before


def test_doctor_of_a_lossless_conversion(ar_model, capsys):
    """Else what a gate costs, and whether the model can have one, would be found out by an expensive try."""
    before = fingerprint(ar_model)
    assert call("doctor", ar_model, "--lossless", "--lora-rank", "2", "--response-tokens", "16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lossless"] is True
    assert "mask_token" not in found
    assert found["gate"]["bytes"] == 4 * found["gate"]["parameters"]
    memory = found["memory"]
    assert memory["training_bytes"] > memory["weights_bytes"] + 4 * memory["gate_bytes"] + memory["activation_bytes"]
    assert found["command"] == f"opdlm convert {ar_model} --prompts PROMPTS.jsonl --output RUN --lossless --lora 2"
    assert call("doctor", ar_model, "--lossless", "--lora-rank", "2") == 0
    printed = capsys.readouterr().out
    assert "own weights, which do not change" in printed
    assert "with --adapter-only" in printed
    assert "rank" in fails(capsys, "doctor", ar_model, "--lossless", "--lora-rank", "10000")
    assert "--block-size" in fails(capsys, "doctor", ar_model, "--lossless", "--block-size", "4")
    assert fingerprint(ar_model) == before


RECIPE = """
prompts_per_rollout = 4
rows_per_update = 4
rollouts = 3
save_every_rollouts = 1
response_length = { start = 8, end = 8, rollouts = 0, shape = "linear" }
"""


def test_demo(ar_model, tmp_path, capsys, monkeypatch):
    """Without it the first command that people type could be broken."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    monkeypatch.setattr("opdlm.tiny.weights.ar_model_path", lambda: ar_model)
    output = tmp_path / "demo"
    few = "".join(f"{name} = 2\n" for name in ("lora_rank", "rollouts", "prompts_per_rollout", "rows_per_update"))
    (tmp_path / "gate.toml").write_text('base = "demo-lossless"\n' + few)
    words = ("demo", "--recipe", tmp_path / "tiny.toml", "--lossless-recipe", tmp_path / "gate.toml")
    words += ("--output", output, "--per-family", "2")

    def stop(view, line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ConversionView, "step", stop)
        assert call(*words) == 130
    assert f"opdlm demo --resume --output {output}" in capsys.readouterr().out
    assert call(*words, "--resume") == 0
    shown = capsys.readouterr().out
    for expected in (
        "identity check passed",
        "after rollout 3",
        "distilled, dynamic:0.9",
        "unseen facts",
        "report.html",
    ):
        assert expected in shown
    numbers = json.loads((output / "evaluation.json").read_text())
    assert numbers["conversion"]["tokens_trained"] > 0
    page = (output / "report.html").read_text()
    for expected in ("<svg", '<th scope="col">dynamic:0.9</th>', "recall, unseen", "the finished model"):
        assert expected in page
    assert "http" not in page  # nothing from outside


def test_demo_needs_a_number_of_rollouts(ar_model, tmp_path, capsys):
    """Without it the number of prompts would be unknown, and the demo end in a TypeError."""
    (tmp_path / "open.toml").write_text("prompts_per_rollout = 8\n")
    words = ("demo", "--model", ar_model, "--recipe", tmp_path / "open.toml", "--output", tmp_path / "demo")
    assert call(*words) == 2
    assert "does not set `rollouts`" in capsys.readouterr().err
