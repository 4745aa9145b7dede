"""Models and prompts on disk, made once for all end-to-end tests; nobody writes into them."""

import json

import pytest

from support import tiny_model, tiny_tokenizer

WORDS = ("one", "two words", "and three words", "four are here now")


@pytest.fixture(scope="session")
def ar_model(tmp_path_factory):
    """Folder of a tiny random AR model."""
    folder = tmp_path_factory.mktemp("ar_model") / "model"
    tiny_model("llama", max_position_embeddings=1024).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """A file of eight prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{words} {i}"}) + "\n" for i in range(2) for words in WORDS))
    return path
