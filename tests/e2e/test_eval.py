"""`opdlm eval`: what it asks, keeps and says."""

import json
import shutil

import pytest

from cli_support import SMALL, call, fails
from opdlm.records.evaluation import GradedAnswer

PROBLEMS = [
    {"prompt": "one", "answer": 1, "family": "maths", "tag": None},
    {"prompt": "two", "answer": "x", "family": "edit"},
]


@pytest.fixture(scope="module")
def run(ar_model, prompts, tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert call("convert", ar_model, "--prompts", prompts, "--output", output, *SMALL) == 0
    return output


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return path


def test_eval_keeps_every_answer_and_knows_the_original(ar_model, run, problems, tmp_path, capsys):
    """Without it nobody could see why a number is low, and everybody would have to remember the original."""
    numbers = tmp_path / "out.json"
    flags = ("--problems", problems, "--decoding", "static", "--max-new-tokens", "8", "--json", numbers)
    assert call("eval", run, *flags) == 0
    shown = capsys.readouterr()
    assert f"teacher {ar_model}, student {run}" in shown.out
    assert shown.err.splitlines() == [f"{who}: {n} of 2 answers" for who in ("teacher", "static") for n in (0, 2)]
    kept = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().splitlines()]
    assert {(one["model"], one["decoding"], one["number"]) for one in kept} == {
        (str(model), decoding, number) for model, decoding in ((ar_model, ""), (run, "static")) for number in (0, 1)
    }
    assert {one["expected"] for one in kept} == {"1", "x"}
    found = json.loads(numbers.read_text())
    assert found["against"] == str(ar_model)
    assert found["students"][0]["total"]["tokens"] == sum(one["tokens"] for one in kept if one["decoding"])
    assert call("eval", run / "model", *flags) == 0  # the model's folder knows its run too
    assert call("eval", run / "checkpoints" / "rollout-000002", *flags) == 0


def test_eval_keeps_the_texts_that_nobody_grades(ar_model, run, prompts, tmp_path, capsys):
    """Without it a number of bits per byte could not be looked into."""
    numbers = tmp_path / "out.json"
    flags = ("--decoding", "static", "--max-new-tokens", "8", "--prompt-limit", "3", "--json", numbers)
    assert call("eval", run, "--prompts", prompts, *flags) == 0
    assert f"every text is in {tmp_path / 'out.answers.jsonl'}" in capsys.readouterr().out
    kept = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().splitlines()]
    assert [(one["name"], one["number"]) for one in kept] == [
        (name, number) for name in ("original", "student before", "student") for number in range(3)
    ]
    assert {one["prompt"] for one in kept} == {"one 0", "two words 0", "and three words 0"}
    rows = json.loads(numbers.read_text())["likelihood"]
    assert [row["tokens"] for row in rows] == [sum(one["tokens"] for one in kept[i : i + 3]) for i in (0, 3, 6)]
    own = ("--answers", tmp_path / "own.jsonl")
    assert call("eval", run, "--prompts", prompts, *flags, *own) == 0
    assert len((tmp_path / "own.jsonl").read_text().splitlines()) == 9


def test_problems_of_a_part_of_a_hub_data_set(monkeypatch, capsys, run):
    """Without it only the split "train" could be asked, which models were trained on."""
    monkeypatch.setattr("opdlm.data.hub_set.ask_hub", lambda name, kind: "there")
    asked = []

    def load_dataset(*names, **options):
        asked.append((*names, options))
        raise ValueError("no such part")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    part = ("--problems-config", "main", "--problems-split", "test", "--problems-revision", "v1")
    message = fails(capsys, "eval", run, "--problems", "some/set", *part)
    assert asked == [("some/set", "main", {"split": "test", "revision": "v1"})]
    assert "--problems-split" in message
    assert "name it with --problems" in fails(capsys, "eval", run, *part[:2])


def test_eval_samples_where_it_is_asked_to(run, problems, tmp_path):
    """Without it `--temperature` would be taken and do nothing."""

    def texts(*flags):
        answers = tmp_path / "answers.jsonl"
        words = ("eval", run, "--problems", problems, "--decoding", "static", "--max-new-tokens", "8")
        assert call(*words, "--answers", answers, *flags) == 0
        kept = [json.loads(line) for line in answers.read_text().splitlines()]
        return {(one["decoding"], one["number"]): one["response"] for one in kept}

    greedy, hot = texts(), texts("--temperature", "3")
    assert {who for who in hot if hot[who] != greedy[who]} >= {("", 0), ("static", 0)}
    assert hot == texts("--temperature", "3")
    assert texts("--temperature", "3", "--top-k", "1") == greedy


def test_eval_asks_messages_as_a_chat(tmp_path):
    """Without it a conversation would be asked as the text that Python prints for it."""
    asked = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "Ben has 2 books. Ben finds 3 more. How many books does Ben have now?"}]
    rows = [{"prompt": prompt, "answer": "5", "family": "maths"} for prompt in (messages, messages[0]["content"])]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = tmp_path / "answers.jsonl"
    assert call("eval", "--problems", asked, "--decoding", "static", "--answers", answers) == 0
    kept = [json.loads(line) for line in answers.read_text().splitlines()]
    for decoding in ("", "static"):
        of_one = {one["number"]: one for one in kept if one["decoding"] == decoding}
        first, second = of_one[0], of_one[1]
        assert first["prompt"] == messages
        assert first["response"] == second["response"]


def test_a_model_away_from_its_run_names_its_original_by_its_card(run, problems, tmp_path, capsys):
    """Without it a downloaded model could not be compared, or would be compared with a stranger."""
    shutil.copytree(run / "model", tmp_path / "moved")
    assert "name it with --against" in fails(capsys, "eval", tmp_path / "moved", "--problems", problems)
    card = tmp_path / "moved" / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nbase_model: no-such/original\n", 1))
    assert "no-such/original" in fails(capsys, "eval", tmp_path / "moved", "--problems", problems)
    card.write_text("---\nbase_model: [\n---\n")
    assert "cannot be read" in fails(capsys, "eval", tmp_path / "moved", "--problems", problems)


def test_half_a_surrogate_pair_in_a_problem(run, tmp_path):
    """JSON may hold one: without it the answers would end in a traceback, and could not be gone on with."""
    path, numbers = tmp_path / "problems.jsonl", tmp_path / "numbers.json"
    problem = {"prompt": "one", "answer": "a\ud83d", "family": "recall", "tag": "\ud800"}
    path.write_text(json.dumps(problem) + "\n")
    flags = ("--problems", path, "--max-new-tokens", "2", "--decoding", "static", "--json", numbers)
    assert call("eval", run, *flags) == 0
    lines = (tmp_path / "numbers.answers.jsonl").read_text("utf-8").splitlines()
    answers = [GradedAnswer.from_json(json.loads(line), "here") for line in lines]
    assert {(one.expected, one.tag) for one in answers} == {("a\ud83d", "\ud800")}
    assert json.loads(numbers.read_text("utf-8"))["teacher"]["rows"][1]["tag"] == "\ud800"
