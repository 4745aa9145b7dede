"""Prompts from files, and every way in which a file can be wrong."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, are_progress_bars_disabled

from opdlm.data.hub_set import HubPart
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
        ("row.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "line 2 is neither"),
        ("blank.jsonl", '{"prompt": "a"}\n{"prompt": " "}', "line 2 is neither"),
        ("missing.jsonl", '{"prompt": "a"}\n{"text": "b"}', "line 2 is neither"),
        ("chat.jsonl", '{"messages": [{"role": "user"}]}', "messages with role and content"),
        ("answer.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}', "line 1 is neither"),
        ("rows.xml", "<a>", "is not of a known kind; use one of .jsonl"),
        ("rows.csv", "a,b", "holds no prompts"),
        ("cells.csv", "prompt\na,b\n", "line 2 has more cells than the first line has names"),
        ("twice.csv", "prompt,prompt\na,b\n", "names a column twice"),
        ("quote.csv", 'prompt\n"a\n', "line 2: unexpected end of data"),
        ("number.jsonl", '{"prompt": ' + "1" * 5000 + "}", "line 1 is JSON that cannot be read"),
        ("deep.jsonl", "[" * 100_000, "line 1 is JSON that cannot be read"),
        ("plain.jsonl.gz", '{"prompt": "a"}', "not a whole gzip file"),
        ("message.jsonl", '{"role": "user", "content": "a"}', "one list a row"),
        ("parts.jsonl", '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "line 1 is neither"),
        ("role.jsonl", '{"conversations": [{"from": "alien", "value": "a"}]}', "line 1 is neither"),
    ],
)
def test_mistakes_are_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    """Else a bad file would end in a traceback, or worse, in empty prompts that a run is trained on."""
    source = str(tmp_path / name) if content is None else write(tmp_path, name, content)
    with pytest.raises(PromptsError, match=message):
        load_prompts(source)


def test_tables(tmp_path: Path) -> None:
    """Else people would have to convert their spreadsheets, or a cell with a comma or a line break become two."""
    table = write(tmp_path, "a.csv", '\ufeffid,prompt\r\n1,"a, b\nc"\r\n2,"say ""hi"""\r\n')
    assert load_prompts(table) == ["a, b\nc", 'say "hi"']
    assert load_prompts(write(tmp_path, "a.tsv", "prompt\tanswer\na, b\tc\n")) == ["a, b"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_compressed_files(name: str, tmp_path: Path) -> None:
    """Else a data set would have to be unpacked, or be read as another kind."""
    content = {"a.jsonl": '{"prompt": "é"}', "a.json": '["é"]', "a.csv": "prompt\né\n", "a.txt": "é\n"}[name]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    assert load_prompts(str(tmp_path / f"{name}.gz")) == ["é"]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode())[:-9])
    with pytest.raises(PromptsError, match="not a whole gzip file"):
        load_prompts(str(tmp_path / f"{name}.gz"))


def test_alpaca_rows_ask_about_their_input(tmp_path: Path) -> None:
    """Else "Translate this sentence" would be asked without the sentence."""
    rows = [
        {"instruction": "Name a colour.", "input": "", "output": "red"},
        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
    ]
    said: list[str] = []
    source = as_file(tmp_path, "json", rows)
    assert load_prompts(source, on_found=said.append) == ["Name a colour.", "Translate.\n\nGuten Tag"]
    assert said == [f"prompts: 2 from {source}, column instruction + input (not used: output)"]
    assert load_prompts(source, column="instruction", limit=1, on_found=said.append) == ["Name a colour."]
    assert said[1] == f"prompts: 1 from {source}, column instruction (not used: input, output)"
    assert load_prompts(source, column="input, output") == ["red", "Guten Tag\n\nGood day"]
    with pytest.raises(PromptsError, match="no column 'nope'"):
        load_prompts(source, column="input,nope")


def test_sharegpt_and_text_parts(tmp_path: Path) -> None:
    """Else the two most common forms of chat data would be refused."""
    turns = [("system", "be brief"), ("human", "hi"), ("gpt", "hello")]
    shared = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    assert load_prompts(as_file(tmp_path, "jsonl", [shared])) == [MESSAGES]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert load_prompts(as_file(tmp_path, "jsonl", [{"messages": parts}])) == [[{"role": "user", "content": "ab"}]]


def test_a_column_named_role_is_no_message(tmp_path: Path) -> None:
    """Else a data set of personas would be refused."""
    assert load_prompts(as_file(tmp_path, "jsonl", [{"role": "doctor", "prompt": "a"}])) == ["a"]


def test_parts_of_a_hub_data_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else only the train split of data sets with a single configuration could be used."""
    asked: list[tuple] = []

    def load_dataset(*names: object, **options: object) -> Dataset:
        asked.append((*names, options))
        assert are_progress_bars_disabled(), "bars would be printed between a caller's own lines"
        if names[1] == "nope":
            raise ValueError("BuilderConfig 'nope' not found.\nAvailable: ['main', 'socratic']")
        return Dataset.from_list([{"question": "a?"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("opdlm.data.hub_set.ask_hub", lambda name, kind: "there")
    assert load_prompts("some/set") == ["a?"]
    assert load_prompts("some/set", part=HubPart("main", "test", "v1")) == ["a?"]
    assert asked == [
        ("some/set", None, {"split": "train", "revision": None}),
        ("some/set", "main", {"split": "test", "revision": "v1"}),
    ]
    with pytest.raises(PromptsError, match=r"Available: \['main', 'socratic'\].*--prompts-config"):
        load_prompts("some/set", part=HubPart("nope"))
    with pytest.raises(PromptsError, match="leave out --prompts-split"):
        load_prompts(write(tmp_path, "a.txt", "a"), part=HubPart(split="test"))


WITHOUT_A_HUB = """
import sys
from datasets import Dataset, load_dataset
from opdlm.data.hub_set import HubPart
from opdlm.data.prompts import load_prompts
from opdlm.errors import PromptsError
if sys.argv[1] == "make":
    Dataset.from_list([{"question": "a?"}]).to_parquet(sys.argv[2] + "/train.parquet")
    load_dataset(sys.argv[2])
    sys.exit()
try:
    print(load_prompts(sys.argv[1], part=HubPart(revision=sys.argv[2] or None)))
except PromptsError as error:
    print(error)
"""


def without_a_hub(home: Path, *words: str, offline: str = "0") -> tuple[str, str]:
    """What a process prints (stdout, stderr) whose hub is a closed port of this machine."""
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    closed |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"), "")
    command = [sys.executable, "-c", WITHOUT_A_HUB, *words]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | closed)
    return ran.stdout.strip(), ran.stderr


def test_a_misspelt_file_without_a_network_fails_at_once(tmp_path: Path) -> None:
    """Else the hub's client would repeat its question for half a minute, and print each time."""
    said, noise = without_a_hub(tmp_path, "prompts/jsnl", "")
    assert said.startswith("prompts/jsnl is no file,")
    assert "hub cannot be reached" in said
    assert noise == ""
    assert "HF_HUB_OFFLINE keeps" in without_a_hub(tmp_path, "prompts/jsnl", "", offline="1")[0]


def test_a_downloaded_data_set_is_read_without_a_network(tmp_path: Path) -> None:
    """Else a node without internet could not use it; of another revision it would be used without a word."""
    (tmp_path / "set").mkdir()
    without_a_hub(tmp_path, "make", str(tmp_path / "set"))
    cache = tmp_path / "datasets"
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    made.rename(cache / "someone___set")  # as a download from the hub is named
    for file in cache.rglob("parquet-train.arrow"):
        file.rename(file.with_name("set-train.arrow"))
    assert without_a_hub(tmp_path, "someone/set", "") == ("['a?']", "")
    assert "nobody can say whether" in without_a_hub(tmp_path, "someone/set", "v2")[0]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """Else the message would say that an existing folder does not exist."""
    (tmp_path / "data.jsonl").mkdir()
    for folder in (tmp_path, tmp_path / "data.jsonl"):
        with pytest.raises(PromptsError, match="is a folder; name a file in it"):
            load_prompts(str(folder))


@pytest.mark.parametrize("suffix", ["", ".jsonl"])
def test_a_name_that_no_file_can_have(suffix: str) -> None:
    """Else a text in place of a file's name would end in a traceback of the system."""
    with pytest.raises(PromptsError, match="check the path"):
        load_prompts("a" * 5000 + suffix)


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
