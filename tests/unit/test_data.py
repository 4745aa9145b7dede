"""Prompts from files, and every way in which a file can be wrong."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from opdlm.data.prompts import check_lengths, load_prompts, load_responses
from opdlm.errors import ContextLengthError, PromptsError

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def write(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


def as_file(folder: Path, kind: str, rows: list) -> str:
    if kind == "parquet":
        path = folder / "rows.parquet"
        Dataset.from_list(rows).to_parquet(str(path))
        return str(path)
    return write(folder, f"rows.{kind}", json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_records_of_strings_and_of_messages(kind: str, tmp_path: Path) -> None:
    """Else the same prompts would be other prompts in another format."""
    strings = as_file(tmp_path, kind, [{"id": 1, "question": "a?"}, {"id": 2, "question": "b?"}])
    assert load_prompts(strings) == ["a?", "b?"]
    assert load_prompts(strings, limit=1) == ["a?"]
    chats = as_file(tmp_path, kind, [{"messages": MESSAGES, "note": "x"}] * 2)
    assert load_prompts(chats) == [MESSAGES, MESSAGES]
    other = as_file(tmp_path, kind, [{"mine": "yes", "text": "no"}])
    assert load_prompts(other, column="mine") == ["yes"]


def test_plain_rows(tmp_path: Path) -> None:
    """Else lists of strings, of conversations, or lines of text would need a column name."""
    assert load_prompts(write(tmp_path, "a.txt", "one\n\n  two  \n")) == ["one", "two"]
    assert load_prompts(as_file(tmp_path, "json", ["x", "y"])) == ["x", "y"]
    assert load_prompts(as_file(tmp_path, "jsonl", [MESSAGES])) == [MESSAGES]
    assert load_prompts(write(tmp_path, "b.jsonl", '\n{"prompt": "é"}\n\n')) == ["é"]


def test_the_answer_of_a_conversation_is_left_out(tmp_path: Path) -> None:
    """Else the student would continue a finished answer, or learn from ground truth that it is said not to use."""
    row = {"messages": [*MESSAGES, {"role": "assistant", "content": "hello"}]}
    assert load_prompts(as_file(tmp_path, "jsonl", [row])) == [MESSAGES]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "does not exist"),
        ("empty.jsonl", "", "holds no prompts"),
        ("empty.json", "", "holds no prompts"),
        ("blank.txt", "\n \n", "holds no prompts"),
        ("bad.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("bad.json", "[1,", "is not JSON"),
        ("object.json", '{"prompt": "a"}', "not a JSON list"),
        ("columns.jsonl", '{"foo": "a", "bar": "b"}', "--prompts-column: foo, bar"),
        ("row.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "row 1 of"),
        ("blank.jsonl", '{"prompt": "a"}\n{"prompt": " "}', "row 1 of"),
        ("missing.jsonl", '{"prompt": "a"}\n{"text": "b"}', "row 1 of"),
        ("chat.jsonl", '{"messages": [{"role": "user"}]}', "messages with role and content"),
        ("answer.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "row 0 of"),
        ("rows.csv", "a,b", "is not of a known kind; use one of .jsonl"),
    ],
)
def test_mistakes_are_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    """Else a bad file would end in a traceback, or worse, in empty prompts that a run is trained on."""
    source = str(tmp_path / name) if content is None else write(tmp_path, name, content)
    with pytest.raises(PromptsError, match=message):
        load_prompts(source)


def test_more_mistakes_are_named(tmp_path: Path) -> None:
    """Else a wrong column name, an encoding or a broken parquet file would end in a traceback."""
    source = write(tmp_path, "a.jsonl", '{"prompt": "a", "answer": 3}')
    with pytest.raises(PromptsError, match="no column 'nope'"):
        load_prompts(source, column="nope")
    with pytest.raises(PromptsError, match="no text in column 'answer'"):
        load_responses(source, "answer")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("é".encode("latin-1"))
    with pytest.raises(PromptsError, match="not UTF-8"):
        load_prompts(str(latin))
    with pytest.raises(PromptsError, match="is not a readable parquet file"):
        load_prompts(write(tmp_path, "broken.parquet", "no parquet"))


def test_prompts_that_do_not_fit_are_named() -> None:
    """Else decoding would run past the positions that the model knows, and write nonsense there."""
    check_lengths([[1] * 5, [1] * 10], 20, 32, 4)
    check_lengths([[1] * 500], 20, None, 4)
    with pytest.raises(ContextLengthError, match="prompt 1 has 13 tokens"):
        check_lengths([[1] * 5, [1] * 13], 20, 32, 4)
    with pytest.raises(ContextLengthError, match="lower --block-size"):  # shorter responses cannot help
        check_lengths([[1] * 5], 20, 32, 20)
