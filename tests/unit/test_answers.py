"""Counts, times and shares are what they say, and the writers neither lose nor swap a response."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from opdlm.config import GenerationSettings
from opdlm.core.types import Rollout
from opdlm.errors import RecordError, UsageError
from opdlm.evals import answers
from opdlm.evals.answers import answered
from opdlm.evals.graders import GRADERS, Grader
from opdlm.evals.problem import Problem
from opdlm.evals.writers import Answer, ar_writer, diffusion_writer
from opdlm.records.evaluation import Evaluation, Score, retained, wilson_interval
from opdlm.tiny.tokenizer import train_tokenizer


def question(family, prompt, answer, tag=""):
    return Problem(family, prompt, "", answer, tag=tag)


QUESTIONS = [
    question("edit", "e1", "a"),
    question("recall", "r1", "red", "seen"),
    question("edit", "e2", "b"),
    question("recall", "r2", "blue", "unseen"),
    question("recall", "r3", "green", "unseen"),
]
ANSWERS = {
    "e1": Answer("a", 10, 5, 0.5),
    "e2": Answer("wrong", 30, 5, 0.25),
    "r1": Answer("It is red.", 4, 4, 1.0),
    "r2": Answer("It is blue.", 4, 2, 1.0),
    "r3": Answer("It is pink.", 2, 1, 1.0),
}


class Scripted:
    """A writer that answers from ANSWERS and remembers how it was called."""

    def __init__(self, known=ANSWERS):
        self.answers = known
        self.calls = []

    def __call__(self, prompts):
        self.calls.append(list(prompts))
        return enumerate(self.answers[prompt] for prompt in prompts)


def test_rows_count_by_family_and_by_tag():
    """Without it the report could credit a family with another's answers."""
    report = answered("student", Scripted(), QUESTIONS)
    assert report.rows == (
        Score(family="edit", tag=None, n=2, correct=1, tokens=40, forwards=10, seconds=0.75, empty=0),
        Score(family="recall", tag=None, n=3, correct=2, tokens=10, forwards=7, seconds=3.0, empty=0),
        Score(family="recall", tag="seen", n=1, correct=1, tokens=4, forwards=4, seconds=1.0, empty=0),
        Score(family="recall", tag="unseen", n=2, correct=1, tokens=6, forwards=3, seconds=2.0, empty=0),
    )
    assert report.row("recall", "unseen").accuracy == 0.5
    with pytest.raises(UsageError, match="recall/seen"):
        report.row("maths")


def test_averages():
    """Without it the largest family would decide, or short responses weigh as much as long ones in the speed."""
    report = answered("student", Scripted(), QUESTIONS)
    assert report.accuracy == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert report.total.accuracy == 3 / 5
    assert report.tokens_per_forward == 50 / 17
    assert report.row("edit").tokens_per_forward == 40 / 10  # not the mean of 2 and 6
    assert report.model_copy(update={"seconds": 2.0}).tokens_per_second == 25.0
    assert report.total.seconds == 3.75


def test_unknown_seconds_stay_unknown():
    """Without it a sum over some responses would pass for the time of all."""
    report = answered("student", Scripted({**ANSWERS, "e1": Answer("a", 10, 5)}), QUESTIONS)
    assert report.row("edit").seconds is None
    assert report.row("recall").seconds == 3.0
    assert report.total.seconds is None


def test_the_warm_up_is_not_timed(monkeypatch):
    """Without it the model that is measured first would pay for the start of the libraries."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(answers, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    slowly = Grader(lambda *_: setattr(clock, "now", clock.now + 1000) or True, lambda problem: None)
    for family in ("edit", "recall"):
        monkeypatch.setitem(GRADERS, family, slowly)
    scripted = Scripted()

    def slow(prompts):
        clock.now += 100 if not scripted.calls else 1 + len(prompts)
        return scripted(prompts)

    assert answered("student", slow, QUESTIONS).seconds == 6
    assert scripted.calls == [["e1"], [one.prompt for one in QUESTIONS]]


def test_expressions_and_programs_in_one_file(monkeypatch):
    """Programs are run by threads, and math-verify's signals reach the main one alone: it was a traceback."""
    pytest.importorskip("math_verify")
    double = Problem("code", "c", "", "f", calls=(("f(2)", "4"),))
    problems = [question("math", "m", "\\frac12"), double, question("math", "n", "3")]
    known = {"m": Answer("\\boxed{0.5}", 1, 1), "c": Answer("f = lambda n: 2 * n", 1, 1), "n": Answer("4", 1, 1)}
    found, threads, grader = [], [], GRADERS["math"]

    def watched(*asked):
        threads.append(threading.current_thread())
        return grader.grade(*asked)

    monkeypatch.setitem(GRADERS, "math", Grader(watched, grader.fault))
    answered("student", Scripted(known), problems, on_answer=found.append, allow_unconfined_code=True)
    assert {one.prompt: one.correct for one in found} == {"m": True, "c": True, "n": False}
    assert set(threads) == {threading.main_thread()}
    with ThreadPoolExecutor(1) as pool:  # a user's own thread
        assert pool.submit(grader.grade, problems[0], "\\boxed{0.5}", None).result()


def test_answers_come_in_any_order_and_none_is_lost():
    """Without it a long evaluation would look dead, and be lost with its answers when it is stopped."""
    seen, kept = [], []

    def backwards(prompts):
        return reversed(list(enumerate(ANSWERS[prompt] for prompt in prompts)))

    whole = answered("student", Scripted(), QUESTIONS)
    report = answered(
        "student",
        backwards,
        QUESTIONS,
        decoding="static",
        on_progress=lambda *at: seen.append(at),
        on_answer=kept.append,
    )
    assert seen == [(done, 5) for done in range(6)]
    assert report.rows == whole.rows
    assert [(one.number, one.prompt, one.correct) for one in kept][-2:] == [(1, "r1", True), (0, "e1", True)]
    assert kept[0].to_json() == {
        "version": 1,
        "name": "student",
        "decoding": "static",
        "model": "",
        "number": 4,
        "family": "recall",
        "tag": "unseen",
        "prompt": "r3",
        "response": "It is pink.",
        "expected": "green",
        "calls": [],
        "correct": False,
        "tokens": 2,
        "forwards": 1,
        "seconds": 1.0,
        "waited": kept[0].waited,
        "options": [],
        "scores": [],
    }
    assert report.seconds == sum(one.waited for one in kept)


def test_an_evaluation_of_nothing_has_numbers():
    """Without it a report over no problem would end in a division by zero."""
    nothing = Evaluation(name="student", rows=(), seconds=0.0)
    assert (nothing.accuracy, nothing.total.accuracy, nothing.tokens_per_second) == (0, 0, 0)
    assert Evaluation.from_json(nothing.to_json(), "file") == nothing


def test_nothing_to_answered():
    """Without it an empty set would end in a division by zero."""
    with pytest.raises(UsageError, match="no problems"):
        answered("student", Scripted(), [])


def test_report_survives_json():
    """Without it a saved evaluation could not be compared with a later one."""
    report = answered("student", Scripted(), QUESTIONS)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert Evaluation.from_json(data, "file") == report
    assert data["accuracy"] == report.accuracy
    assert data["rows"][0]["interval"] == list(report.rows[0].interval)
    assert data["total"]["n"] == 5
    for damaged in ({"name": "x"}, {"name": "x", "seconds": 1.0, "rows": [{"family": "edit"}]}, [], None):
        with pytest.raises(RecordError, match=r"file is not a Evaluation of version 1 .* write it again"):
            Evaluation.from_json(damaged, "file")
    with pytest.raises(RecordError, match="version: Input should be 1"):
        Evaluation.from_json({**data, "version": 2}, "file")


def test_wilson_interval():
    """Without it small samples would look surer than they are. Values as R's prop.test(correct=FALSE) gives them."""
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in (1, 7, 200):
        for correct in range(n + 1):
            low, high = wilson_interval(correct, n)
            assert 0 <= low <= correct / n <= high <= 1


def test_retained():
    """Without it the share kept could be turned upside down, or compare different problems."""
    right = {one.prompt: Answer(one.answer, 1, 1) for one in QUESTIONS}
    teacher = answered("teacher", Scripted(right), QUESTIONS)
    student = answered("student", Scripted(), QUESTIONS)
    assert retained(student, teacher) == pytest.approx(
        {
            "overall": 7 / 12,
            "micro": 3 / 5,
            "edit": 1 / 2,
            "recall": 2 / 3,
            "recall/seen": 1.0,
            "recall/unseen": 1 / 2,
        }
    )
    hopeless = answered("teacher", Scripted({prompt: Answer("", 1, 1) for prompt in right}), QUESTIONS)
    assert set(retained(student, hopeless).values()) == {None}
    with pytest.raises(UsageError, match="different problems"):
        retained(student, answered("teacher", Scripted(right), QUESTIONS[1:]))


# --- writers ------------------------------------------------------------------------------------------------------

PROMPTS = ["sort these words: dog cat", "hi", "a much longer prompt with a great many more words in it", "2+2?", "x"]
LIMIT = 12


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(PROMPTS)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
        initializer_range=1.0,  # far from uniform, so that the argmax hangs on the context
    )
    return Qwen3ForCausalLM(config).eval()


def in_order(answers):
    by_index = dict(answers)
    return [by_index[index] for index in range(len(by_index))]


def greedy(model, tokenizer, prompt, stop_ids):
    """The oracle: one row, no cache, no padding."""
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    written = []
    while len(written) < LIMIT and not (written and written[-1] in stop_ids):
        with torch.no_grad():
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


def stopping_early(model, tokenizer):
    """Lets the model stop at a token that it does write in the middle of one of its answers."""
    written = [greedy(model, tokenizer, prompt, set()) for prompt in PROMPTS]
    stop = written[0][5]
    model.generation_config = GenerationConfig(
        eos_token_id=[stop], do_sample=True, temperature=0.6, top_k=20, repetition_penalty=2.0
    )
    return {stop, tokenizer.eos_token_id}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_ar_writer_is_greedy_decoding_row_by_row(model, tokenizer, batch_size):
    """Without it padding, batching, sorting or the model's own settings could change the teacher's answers."""
    stop_ids = stopping_early(model, tokenizer)
    expected = [greedy(model, tokenizer, prompt, stop_ids) for prompt in PROMPTS]
    assert {len(ids) for ids in expected} > {LIMIT}  # some rows stop, some are cut
    settings = GenerationSettings(max_new_tokens=LIMIT)
    got = in_order(ar_writer(model, tokenizer, settings, batch_size=batch_size)(PROMPTS))
    assert [response.text for response in got] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert [response.tokens for response in got] == [len(ids) for ids in expected]
    assert [response.forwards for response in got] == [len(ids) for ids in expected]


def test_ar_writer_without_template_or_padding_token(model, tokenizer):
    """Without it base models, which have neither, could not be evaluated."""
    plain = train_tokenizer(PROMPTS)
    plain.chat_template = plain.pad_token = None
    write = ar_writer(model, plain, GenerationSettings(max_new_tokens=3), batch_size=2)
    ids = tokenizer.encode(PROMPTS[0])
    with torch.no_grad():
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert in_order(write(PROMPTS))[0].text.startswith(tokenizer.decode([first]))
    with pytest.raises(UsageError, match="empty"):
        list(write(["x", ""]))


def test_ar_writer_samples_as_asked(model, tokenizer):
    """Without it `--temperature` would change the student's answers and leave the teacher's greedy."""

    def texts(**settings):
        chosen = GenerationSettings(max_new_tokens=LIMIT, **settings)
        return [answer.text for answer in in_order(ar_writer(model, tokenizer, chosen, batch_size=2)(PROMPTS))]

    state = torch.random.get_rng_state()
    hot = texts(temperature=3.0)
    assert hot != texts()
    assert hot == texts(temperature=3.0)
    assert hot != texts(temperature=3.0, seed=1)
    assert texts(temperature=3.0, top_k=1) == texts()
    assert torch.equal(state, torch.random.get_rng_state())


def test_diffusion_writer_reads_the_rollout(tokenizer):
    """Without it the prompt, or the rest of the last block, would be graded and counted as response."""
    asked = []
    answers = [tokenizer.encode("cat dog<|end|>"), tokenizer.encode("no")]
    rest = tokenizer.encode("junk")

    def generate(prompts):
        asked.extend(prompts)
        for index, (answer, forwards) in enumerate(zip(answers, [2, 7], strict=True)):
            ids = prompts[index] + answer + rest
            begin = torch.tensor([len(prompts[index])])
            yield (
                index,
                Rollout(
                    input_ids=torch.tensor([ids]),
                    prompt_length=begin,
                    length=begin + len(answer),
                    end=torch.tensor([len(ids)]),
                    commit_step=torch.zeros(1, len(ids), dtype=torch.int16),
                    stopped=torch.tensor([index == 0]),
                    forwards=torch.tensor([forwards]),
                ),
            )

    got = in_order(diffusion_writer(generate, tokenizer)(PROMPTS[:2]))
    assert got == [Answer("cat dog", len(answers[0]), 2), Answer("no", len(answers[1]), 7)]
    assert tokenizer.decode(asked[0]) == f"<|user|>{PROMPTS[0]}<|end|><|assistant|>"
