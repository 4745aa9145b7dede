"""Texts with gaps: what is given comes back as it was written, whatever the tokenizer does to it."""

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from transformers import PreTrainedTokenizerFast

from opdlm.errors import ContextLengthError, PromptsError
from opdlm.models.gaps import GapText
from support import tiny_tokenizer

BYTES = {f"<0x{byte:02X}>": index for index, byte in enumerate(range(256), 3)}
SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}
LETTERS = "abcdefghijklmnopqrstuvwxyz.,ABC▁\né"
WORDS = ("▁a", "▁an", "an", "bo")


def sentencepiece(metaspace: str | None) -> Tokenizer:
    """Byte fallback and a space before every text: the older Llama form, or with Metaspace."""
    vocabulary = dict.fromkeys([*SPECIALS, *BYTES, *LETTERS, *WORDS])
    merges = [("▁", "a"), ("▁a", "n"), ("a", "n"), ("b", "o")]
    ids = {token: index for index, token in enumerate(vocabulary)}
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace is None:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(spaces)
    else:
        made.pre_tokenizer = Metaspace(prepend_scheme=metaspace, split=False)
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=metaspace)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def byte_level(add_prefix_space: bool) -> Tokenizer:
    ids = {token: index for index, token in enumerate([*SPECIALS, *sorted(ByteLevel.alphabet()), "Ġa", "an"])}
    made = Tokenizer(models.BPE(ids, [("Ġ", "a"), ("a", "n")]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return made


def wordpiece() -> Tokenizer:
    vocabulary = [*SPECIALS, "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "an"]
    ids = {token: index for index, token in enumerate(vocabulary)}
    made = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "llama": lambda: sentencepiece(None),
    "metaspace-first": lambda: sentencepiece("first"),
    "metaspace-always": lambda: sentencepiece("always"),
    "byte-level": lambda: byte_level(False),
    "byte-level-prefix": lambda: byte_level(True),
    "wordpiece": wordpiece,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    # As RoBERTa's, which eats the spaces before it.
    made.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    return made


def mask_of(tokenizer: PreTrainedTokenizerFast) -> int:
    mask = tokenizer.mask_token_id
    assert isinstance(mask, int)
    return mask


def gaps_of(kind: str, text: str, context: int | None = None) -> GapText:
    tokenizer = tokenizer_of(kind)
    return GapText(tokenizer, text, tokenizer.mask_token_id, context)


pieces = st.lists(st.text(alphabet=st.characters(codec="utf-8")) | st.text("ab \n.<s>é"), min_size=2, max_size=4)


@every_kind
@given(texts=pieces, data=st.data())
@settings(max_examples=60, deadline=None)
def test_given_text_comes_back_as_it_was_written(kind: str, texts: list[str], data: st.DataObject) -> None:
    """Else a user's own words would get other spaces, letters or forms, or special tokens would go."""
    texts = [text.replace("[[MASK:", "").replace("<mask>", "") for text in texts]
    gaps = gaps_of(kind, "[[MASK:2]]".join(texts))
    tokenizer = tokenizer_of(kind)
    mask = mask_of(tokenizer)
    tokens = st.integers(0, len(tokenizer) - 1).filter(lambda token: token != mask)
    filled = gaps.filled([data.draw(tokens) if token == mask else token for token in gaps.ids])
    assert gaps.ids.count(mask) == 2 * (len(texts) - 1)
    nothing = gaps.filled([2 if token == mask else token for token in gaps.ids])  # a special token in each gap
    assert nothing == "".join(texts)
    assert filled.startswith(texts[0])
    assert filled.endswith(texts[-1])
    place = 0
    for text in texts:
        place = filled.index(text, place) + len(text)


@pytest.mark.parametrize(
    ("kind", "text", "tokens", "expected"),
    [
        ("llama", "a[[MASK:1]]b[[MASK:1]]c", ("an", "bo"), "aanbboc"),
        ("llama", "a[[MASK:1]]b[[MASK:1]]c", ("▁an", "bo"), "a anbboc"),
        ("llama", "[[MASK:1]] b", ("▁an",), "an b"),
        ("llama", "a[[MASK:2]]b", ("<0xC3>", "<0xA9>"), "aéb"),
        ("llama", "a[[MASK:1]][[MASK:1]]b", ("<0xC3>", "<0xA9>"), "aéb"),
        ("metaspace-first", "a[[MASK:1]]b", ("▁an",), "a anb"),
        ("metaspace-always", "a[[MASK:1]]b", ("▁an",), "a anb"),
        ("byte-level", "a[[MASK:1]] b", ("Ġa",), "a a b"),
        ("byte-level-prefix", "a[[MASK:1]]b", ("an",), "aanb"),
        ("wordpiece", "a [[MASK:1]] b", ("an",), "a an b"),
        ("wordpiece", "a[[MASK:1]] b", ("an",), "a an b"),
        ("wordpiece", "a[[MASK:1]] b", ("##b",), "ab b"),
        ("llama", "a<mask>b[[MASK:0]]c", ("an",), "aanbc"),
    ],
)
def test_a_fill_is_read_where_it_stands(kind: str, text: str, tokens: tuple[str, ...], expected: str) -> None:
    """Else words would stick together, or a letter of several bytes would fall apart."""
    gaps, tokenizer = gaps_of(kind, text), tokenizer_of(kind)
    fill = iter(tokenizer.convert_tokens_to_ids(list(tokens)))
    mask = mask_of(tokenizer)
    assert gaps.filled([next(fill) if token == mask else token for token in gaps.ids]) == expected


@pytest.mark.parametrize("kind", ["llama", "metaspace-first", "metaspace-always", "byte-level", "byte-level-prefix"])
def test_the_model_reads_what_is_written(kind: str) -> None:
    """Else the model would fill `a_b` as if a space stood before b."""
    tokenizer = tokenizer_of(kind)
    for text in ("a[[MASK:1]]b", "a[[MASK:1]] an b\n[[MASK:1]].", "a[[MASK:1]]\nb"):
        ids = gaps_of(kind, text).ids
        shown = tokenizer.decode(ids).removeprefix("<s>").strip(" ")
        assert shown == text.replace("[[MASK:1]]", "<mask>")


def test_nothing_stands_behind_the_first_piece() -> None:
    """Else the model would see the end of the text, or lose its beginning, before the first gap."""
    assert gaps_of("byte-level", "a[[MASK:1]]b").ids[0] == 1
    assert 2 not in gaps_of("byte-level", "a[[MASK:1]]b").ids
    assert gaps_of("byte-level", "[[MASK:1]]b").ids[0] == 1
    wordpieces = tokenizer_of("wordpiece").convert_ids_to_tokens(gaps_of("wordpiece", "a[[MASK:1]]b").ids)
    assert wordpieces == ["[CLS]", "a", "<mask>", "b"]


@pytest.mark.parametrize("size", ["1000000000", "9" * 5000, "33"])
def test_a_gap_beyond_the_context_is_refused(size: str) -> None:
    """Else a typing mistake would take all memory."""
    tokenizer = tiny_tokenizer(mask=True)
    with pytest.raises(ContextLengthError, match="more than 32 tokens"):
        GapText(tokenizer, f"a[[MASK:{size}]]b", mask_of(tokenizer), 32)
    with pytest.raises(ContextLengthError):
        GapText(tokenizer, f"a[[MASK:{size}00000000]]b", mask_of(tokenizer), None)
    assert len(GapText(tokenizer, "a[[MASK:000030]]b", mask_of(tokenizer), 33).ids) == 32


def test_half_of_a_surrogate_pair_is_refused() -> None:
    """Else damaged text would end in a traceback of the tokenizer."""
    with pytest.raises(PromptsError, match="half of a surrogate"):
        gaps_of("llama", "a\ud800[[MASK:1]]")
