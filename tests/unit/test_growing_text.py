"""Text that grows: its pieces are the whole, and nothing is handed out that would be taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from opdlm.serve.text import GrowingText
from opdlm.tiny.weights import student_path
from support import tiny_tokenizer

BYTES = AutoTokenizer.from_pretrained(student_path())
"""Byte-level: a character may be several tokens."""


def pieces(ids: list[int], cuts: list[int], stops: tuple[str, ...] = (), tokenizer=BYTES) -> list[str]:
    growing = GrowingText(tokenizer, stops)
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {len(ids)})
    return [growing.more(ids[:end], last=end == len(ids)) for end in ends]


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40), st.lists(st.integers(0, 60), max_size=12))
def test_the_pieces_are_the_text(text: str, cuts: list[int]) -> None:
    """Else a stream would lose or double characters, above all those of several tokens."""
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    found = pieces(ids, cuts)
    assert "".join(found) == BYTES.decode(ids, skip_special_tokens=True)
    assert "\ufffd" not in "".join(found[:-1]) or "\ufffd" in text


def test_half_a_character_waits() -> None:
    """Else a client would see a replacement sign where an accent comes."""
    ids = BYTES("é", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    growing = GrowingText(BYTES, ())
    assert growing.more(ids[:1]) == ""
    assert growing.more(ids) == "é"
    assert GrowingText(BYTES, ()).more(ids[:1], last=True) == "\ufffd"


@settings(max_examples=80, deadline=None)
@given(
    st.text("ab.", max_size=30), st.lists(st.integers(0, 40), max_size=10), st.sampled_from(["b", "ab", "aab", "a.b"])
)
def test_a_stop_string_is_never_seen(text: str, cuts: list[int], stop: str) -> None:
    """Else half of a stop string would be sent before it is known to be one; what is none must come all the same."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = text.partition(stop)[0]
    whole = len(expected) + len(stop) if stop in text else len(text)
    for length in (whole, len(ids)):  # nothing comes behind it, even if more is written
        assert "".join(pieces(ids[:length], cuts, (stop, "never"), tokenizer)) == expected


@pytest.mark.parametrize(
    ("text", "sent"), [("xa", "x"), ("xaa", "x"), ("xaac", "xaac"), ("xab", "xab"), ("xa.a", "xa.")]
)
def test_what_may_begin_a_stop_string_waits(text: str, sent: str) -> None:
    """Else too much would be held back, or too little."""
    tokenizer = tiny_tokenizer()
    assert GrowingText(tokenizer, ("aab",)).more(tokenizer(text, add_special_tokens=False)["input_ids"]) == sent
