"""The embedded models' problems: endless, repeatable, split without overlap, and graded as their references say."""

import ast
import itertools
import random
import re

import pytest

from opdlm.evals.graders import grade
from opdlm.tiny.families import FAMILIES, GENERATORS, evaluation_set, mixed
from opdlm.tiny.problems import split_of
from opdlm.tiny.recall import facts
from opdlm.tiny.tokenizer import TOKENS, train_tokenizer

SPLITS = ("train", "conversion", "eval")
MODEL_ROWS = 1000


def take(count, stream):
    return list(itertools.islice(stream, count))


@pytest.fixture(scope="module")
def drawn():
    """Problems of each family and split: 3,000, and 2,000 of code, where each is executed as it is drawn."""
    return {(f, s): take(2000 if f == "code" else 3000, GENERATORS[f](0, s)) for f in FAMILIES for s in SPLITS}


@pytest.fixture(scope="module")
def tokenizer(drawn):
    return train_tokenizer(
        text for f in FAMILIES for problem in drawn[f, "train"][:800] for text in (problem.prompt, problem.response)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_problems(family, drawn):
    """Without it two evaluations with one seed would measure different problems."""
    assert take(50, GENERATORS[family](0, "eval")) == drawn[family, "eval"][:50]
    assert take(50, GENERATORS[family](1, "eval")) != drawn[family, "eval"][:50]
    assert take(50, mixed(3, "train")) == take(50, mixed(3, "train"))
    assert take(50, mixed(3, "train")) != take(50, mixed(4, "train"))


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_vary_and_never_end(family, drawn):
    """Without it a long conversion would stop, or learn one problem by heart."""
    prompts = [problem.prompt for problem in drawn[family, "train"]]
    # Recall asks two of four questions about each of 320 facts; the others are drawn from far larger spaces.
    assert len(set(prompts)) > (600 if family == "recall" else 1500)
    assert {problem.family for problem in drawn[family, "train"]} == {family}


def test_splits_share_no_prompt(drawn):
    """Without it the conversion could train on what the evaluation asks."""
    prompts = {s: {problem.prompt for f in FAMILIES for problem in drawn[f, s]} for s in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "recall"])
def test_each_prompt_knows_its_split(family, drawn):
    """Without it the splits would be disjoint only in the sample."""
    for split in SPLITS:
        assert {split_of(problem.prompt) for problem in drawn[family, split]} == {split}


def test_the_split_of_a_prompt_never_changes():
    """Without it a change of the hash would put trained prompts into the evaluation of models trained before."""
    assert split_of("prompt 2") == "train"
    assert split_of("prompt 0") == "conversion"
    assert split_of("prompt 15") == "eval"
    shares = [split_of(f"prompt {i}") for i in range(5000)]
    assert [round(shares.count(split) / 5000, 1) for split in SPLITS] == [0.6, 0.3, 0.1]


def test_each_phrasing_of_a_fact_belongs_to_one_split(drawn):
    """Without it an evaluation question on a fact could have been a training question."""
    for fact in facts():
        asked = [fact.questions_of(split) for split in SPLITS]
        assert [len(questions) for questions in asked] == [2, 1, 1]
        assert sorted(itertools.chain(*asked)) == sorted(set(fact.questions))
    for split in SPLITS:
        allowed = {question for fact in facts() for question in fact.questions_of(split)}
        assert {problem.prompt for problem in drawn["recall", split]} <= allowed


def test_facts():
    """Without it recall could be too small to measure, ambiguous, or answered by its own question."""
    found = facts()
    assert found == facts()
    assert len(found) == 320
    assert len({fact.entity for fact in found}) == 160
    assert len({question for fact in found for question in fact.questions}) == 4 * 320
    unseen = sum(fact.tag == "unseen" for fact in found)
    assert 0.4 < unseen / len(found) < 0.6
    tags = {(fact.entity, fact.tag) for fact in found}
    assert len(tags) == 160  # both facts of an entity have one tag
    for fact in found:
        assert all(fact.value.lower() not in re.findall(r"\w+", question.lower()) for question in fact.questions)


def test_conversion_prompts_never_name_unseen_entities(drawn):
    """Without it "unseen" facts would be practised in the conversion, and forgetting would look mild."""
    unseen = [fact.entity for fact in facts() if fact.tag == "unseen"]
    text = "\n".join(problem.prompt for f in FAMILIES for problem in drawn[f, "conversion"])
    text += "\n".join(problem.prompt for problem in take(3000, mixed(9, "conversion")))
    assert [entity for entity in unseen if entity in text] == []
    assert all(fact.entity in text for fact in facts() if fact.tag == "seen")


def test_evaluation_set_is_balanced():
    """Without it one family, or the facts seen in the conversion, could dominate the result."""
    chosen = evaluation_set(100)
    assert chosen == evaluation_set(100)
    for family in FAMILIES:
        assert sum(problem.family == family for problem in chosen) == 100
    recall = [problem.tag for problem in chosen if problem.family == "recall"]
    assert recall.count("seen") == recall.count("unseen") == 50
    assert len({problem.prompt for problem in chosen if problem.family == "recall"}) == 100


# What each kind of problem asks for, read from the words of its prompt alone.

MATHS = {
    "gain": lambda a, b: a + b,
    "gain_then_lose": lambda a, b, c: a + b - c,
    "share": lambda total, friends, lost: total // friends - lost,
    "boxes": lambda boxes, each, loose: boxes * each + loose,
    "two_people": lambda a, more: a + a + more,
    "spend": lambda money, count, price: money - count * price,
}


def solve_edit(problem):
    lead, _, items = problem.prompt.partition(": ")
    words = items.split()
    match problem.tag:
        case "sort_words":
            return " ".join(sorted(words))
        case "sort_numbers":
            return ",".join(map(str, sorted(map(int, items.split(",")), reverse="from largest" in lead)))
        case "reverse":
            return " ".join(words[::-1])
        case "count":
            return str(words.count(lead.split()[4]))
        case "pick":
            return words[{"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1}[lead.split()[4]]]
        case "repeat":
            return " ".join(words * int(lead.split()[2]))


def solve_code(tag, prompt, argument):
    _, _, asked = prompt.partition(" that ")
    numbers = [int(number) for number in re.findall(r"\d+", asked)]
    first = numbers[0]
    match tag:
        case "linear":
            return argument * first + (numbers[1] if "plus" in asked else -numbers[1])
        case "compare":
            high, limit, low = numbers
            return high if argument > limit else low
        case "loop_sum" if " times " in asked:
            return sum(argument) * first
        case "loop_sum":
            return sum(argument) + len(argument) * (first if "plus" in asked else -first)
        case "count_if":
            return len([x for x in argument if (x > first if "more" in asked else x < first)])
        case "aggregate":
            return sorted(argument)[-1 if "largest" in asked else 0] * first
        case "text" if "reversed" in asked:
            return "".join(reversed(argument)) * first
        case "text":
            return (argument.upper() if "upper" in asked else argument.lower()) * first


def test_references_answer_what_is_asked(drawn):
    """Without it the model could be taught, and the conversion measured, on wrong answers."""
    for problem in drawn["maths", "eval"]:
        numbers = [int(number) for number in re.findall(r"\d+", problem.prompt)]
        assert int(problem.answer) == MATHS[problem.tag](*numbers), problem
        for step in re.findall(r"(\S+)=(\d+)\.", problem.response):
            assert eval(step[0]) == int(step[1]), problem
    for problem in drawn["edit", "eval"]:
        assert problem.answer == problem.response == solve_edit(problem), problem
    for problem in drawn["code", "eval"]:
        for call, expected in problem.calls:
            argument = ast.literal_eval(call.removeprefix(f"{problem.answer}(").removesuffix(")"))
            assert expected == repr(solve_code(problem.tag, problem.prompt, argument)), (problem, call)
    for fact in facts():
        assert fact.entity in fact.sentence
        assert fact.sentence.endswith(f" {fact.value}.")
        assert all(fact.entity in question for question in fact.questions)


def corrupted(problem, rng):
    """A response that is wrong in a small way."""
    if problem.family == "maths":
        return problem.response.removesuffix(problem.answer) + str(int(problem.answer) + rng.choice((-1, 1)))
    if problem.family == "recall":
        others = sorted({fact.value for fact in facts()} - {problem.answer})
        return problem.response.replace(f"{problem.answer}.", f"{rng.choice(others)}.")
    if problem.family == "edit":
        return rng.choice((problem.answer[:-1], problem.answer + " x", "x " + problem.answer))
    head, number, tail = re.match(r"(.*\D)(\d+)(.*)", problem.response, re.DOTALL).groups()
    return f"{head}{int(number) + 1}{tail}"


def of_each_kind(problems, count):
    """The first `count` problems of each tag."""
    kinds = {}
    for problem in problems:
        kinds.setdefault(problem.tag, []).append(problem)
    return [problem for found in kinds.values() for problem in found[:count]]


@pytest.mark.parametrize("family", FAMILIES)
def test_references_are_right_and_corrupted_ones_wrong(family, drawn):
    """Without it the score of a perfect model would not be 1, or a wrong answer would earn it."""
    rng = random.Random(0)
    # Each code answer starts a process.
    chosen = of_each_kind(drawn[family, "eval"], 4 if family == "code" else 150)
    assert len(chosen) >= 24
    for problem in chosen:
        assert grade(problem, problem.response), problem
        wrong = corrupted(problem, rng)
        assert wrong != problem.response
        assert not grade(problem, wrong), (problem, wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_to_other_problems_are_wrong(family, drawn):
    """Without it a response that ignores the prompt could be graded as right."""
    problems = [
        problem
        for problem in drawn[family, "eval"][: 12 if family == "code" else 60]
        if problem.family != "edit" or " " in problem.answer
    ]
    for one, other in itertools.pairwise(problems):
        if one.answer != other.answer or (family == "code" and one.response != other.response):
            assert not grade(one, other.response), (one, other)


def test_digits_stand_alone(tokenizer):
    """Without it the arithmetic of the embedded model would hang on how its numbers happen to be cut."""
    ids = tokenizer.encode("1234567890 and 42+17=59")
    pieces = [tokenizer.decode([token]) for token in ids]
    digits = [piece for piece in pieces if re.search(r"\d", piece)]
    assert digits == list("1234567890421759")
    assert [token for token in tokenizer.get_vocab() if re.search(r"[0-9].|.[0-9]", token)] == []


def test_any_text_round_trips(tokenizer):
    """Without it a prompt of a user could lose characters before the model sees them."""
    rng = random.Random(0)
    points = [*range(0xD800), *range(0xE000, 0x110000)]  # all but the surrogates
    texts = [
        "",
        " ",
        "  two  spaces ",
        "a\n\tb\r\n",
        "naïve café ½",
        "日本語",
        "🙂👩‍👩‍👧",
        "\u202eabc\u200d",
        "\x00\x7f",
        " .  , 's n't",
    ]
    texts += ["".join(map(chr, rng.choices(points, k=20))) for _ in range(200)]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_vocabulary_leaves_room_for_a_mask_token(tokenizer, drawn):
    """Without it a conversion of the embedded model would have to grow its embedding."""
    assert len(tokenizer) == TOKENS < MODEL_ROWS
    assert max(tokenizer.get_vocab().values()) < MODEL_ROWS
    longest = max(len(tokenizer.encode(problem.prompt)) for problem in take(500, mixed(0, "eval")))
    assert longest < 100  # merges were learnt: bytes alone would need more


def test_chat_template_round_trips(tokenizer):
    """Without it the model would be asked in another form than it was trained in."""
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "#### 4"}]
    asked = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    assert asked == "<|user|>2 + 2?<|end|><|assistant|>"
    answered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert answered == f"{asked}#### 4<|end|>"
    ids = tokenizer.encode(answered)
    assert tokenizer.decode(ids) == answered
    assert ids == [*tokenizer.encode(asked), *tokenizer.encode("#### 4"), tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "2 + 2?#### 4"
    assert ids.count(tokenizer.eos_token_id) == 2
