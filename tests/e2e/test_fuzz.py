"""Any input ends in success or in one line: settings, prompts, problems and model folders that nobody would write."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import LINES, MESSAGES, VALUES, fuzz, one_line
from opdlm.checkpoints.load import load_ar_config, load_ar_model
from opdlm.checkpoints.source import count_parameters
from opdlm.config import ConvertSettings, GenerationSettings, settings_from
from opdlm.data.prompts import load_prompts
from opdlm.evals.problem_files import load_problems
from opdlm.models.gaps import GapText
from opdlm.models.tokens import encode_prompt
from opdlm.recipes import load_recipe
from support import MASK, tiny_tokenizer


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
