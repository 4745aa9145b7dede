"""Any input ends in success or in one line: settings, prompts, problems and model folders that nobody would write.

FUZZ_EXAMPLES raises the number of tries of each test, and makes them random.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opdlm.checkpoints.load import load_ar_config, load_ar_model
from opdlm.checkpoints.source import count_parameters
from opdlm.config import ConvertSettings, GenerationSettings, settings_from
from opdlm.data.prompts import load_prompts
from opdlm.errors import OpdlmError
from opdlm.evals.problem_files import load_problems
from opdlm.models.gaps import GapText
from opdlm.models.tokens import encode_prompt
from opdlm.recipes import load_recipe
from support import MASK, tiny_tokenizer

TRIES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzz(tries):
    """The budget of one test; the same tries each time, unless more are asked for."""
    return settings(
        max_examples=TRIES or tries,
        derandomize=not TRIES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def one_line(function, *words):
    """Calls it: it may fail with one of our errors alone, and with one line."""
    try:
        return function(*words)
    except OpdlmError:  # the command line puts it into one line
        return None


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "\x00", "\u2028", "none", "nan", "1e999", "9" * 5000, "static:2"])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner))
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name"]), VALUES | st.sampled_from(["user", "assistant"]))
    | VALUES,
    max_size=3,
)
ROWS = VALUES | st.dictionaries(
    st.sampled_from(["prompt", "messages", "answer", "family", "calls", "response", "tag"]),
    VALUES | MESSAGES | st.sampled_from(["maths", "code", "recall", "edit"]),
)
LINES = st.lists(
    st.binary(max_size=20)
    | ROWS.map(lambda row: json.dumps(row).encode())
    | st.sampled_from(
        [b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b'"\xe2\x80\xa8"', b"NaN"]
    ),
    max_size=4,
).map(b"\n".join)


def test_settings():
    """Without it a value of a recipe or a flag could end in a traceback of the checks themselves."""
    names = st.sampled_from([*ConvertSettings.model_fields, *GenerationSettings.model_fields, "nothing"])

    @fuzz(400)
    @given(st.dictionaries(names, VALUES, max_size=4))
    def check(values):
        one_line(settings_from, ConvertSettings, values)
        one_line(settings_from, GenerationSettings, values)

    check()


@pytest.mark.parametrize("load", [load_prompts, load_problems])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt", ".parquet"])
def test_files_of_rows(load, suffix, tmp_path):
    """Without it a damaged file of prompts or problems could end in a traceback."""
    path = tmp_path / f"rows{suffix}"

    @fuzz(100)
    @given(LINES)
    def check(content):
        path.write_bytes(content)
        one_line(load, str(path))

    check()


def test_recipes(tmp_path):
    """Without it a damaged recipe could end in a traceback."""
    path = tmp_path / "own.toml"

    @fuzz(100)
    @given(st.binary(max_size=30) | st.text(max_size=30).map(lambda text: f"seed = {text}".encode(errors="replace")))
    def check(content):
        path.write_bytes(content)
        values = one_line(load_recipe, str(path))
        if values is not None:
            one_line(settings_from, ConvertSettings, values)

    check()


@pytest.mark.parametrize("chat", [False, True])
def test_prompts(chat):
    """Without it a text or a message of an odd shape could end in a traceback of the tokenizer or the template."""
    tokenizer = tiny_tokenizer(chat=chat, mask=True)

    @fuzz(200)
    @given(st.text() | MESSAGES | st.sampled_from(["\ud800", "\x00"]))
    def check(prompt):
        one_line(encode_prompt, tokenizer, prompt)
        if isinstance(prompt, str):
            one_line(GapText, tokenizer, prompt + "[[MASK:2]]", MASK, 256)

    check()


def _whole(folder):
    count_parameters(load_ar_config(folder))
    load_ar_model(folder)


def test_model_folders(ar_model):
    """Without it a wrong value in a model's files could end in a traceback out of another library."""
    files = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    content = {name: json.loads((ar_model / name).read_text()) for name in files}
    keys = st.sampled_from([(name, key) for name in files for key in content[name]])
    anywhere = st.tuples(st.sampled_from([*files, "model.safetensors"]), st.integers(0, 400), st.binary(max_size=4))

    @fuzz(30)
    @given(st.tuples(keys, VALUES) | anywhere)
    def check(change):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(shutil.copytree(ar_model, Path(place) / "model"))
            if len(change) == 2:
                (name, key), value = change
                (folder / name).write_text(json.dumps(content[name] | {key: value}))
            else:
                name, at, inserted = change
                old = (folder / name).read_bytes()
                (folder / name).write_bytes(old[:at] + inserted + old[at + len(inserted) :])
            one_line(_whole, folder)

    check()
