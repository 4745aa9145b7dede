"""Mask, pad and stop ids, and prompts as ids."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from opdlm.errors import MaskTokenError, PromptsError
from opdlm.models.parts import input_embedding, lm_head
from opdlm.models.tokens import MASK_TOKEN, SpecialTokens, encode_prompt, find_or_add_mask_token, special_tokens
from support import MASK, VOCABULARY, tiny_model, tiny_tokenizer

UNTIED, TIED = "llama", "qwen2"


# --- the mask token -----------------------------------------------------------------------------------------------


def test_a_tokenizers_own_mask_token_is_used() -> None:
    """Else a model that was trained with a mask token would have to learn another one."""
    model, tokenizer = tiny_model(), tiny_tokenizer(mask=True)
    before = input_embedding(model).weight.clone()
    assert find_or_add_mask_token(model, tokenizer) == MASK
    assert torch.equal(input_embedding(model).weight, before)
    assert len(tokenizer) == VOCABULARY


@pytest.mark.parametrize("name", [UNTIED, TIED])
def test_an_unused_row_becomes_the_mask_token(name: str) -> None:
    """Else every padded vocabulary would grow, and weights of unused rows (often zero) would stand for the mask."""
    model, tokenizer = tiny_model(name), tiny_tokenizer()
    before = model.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    assert find_or_add_mask_token(model, tokenizer) == MASK == len(tokenizer) - 1
    assert tokenizer.mask_token == MASK_TOKEN
    assert tokenizer.mask_token_id == MASK
    for key, value in model.state_dict().items():
        assert value.shape == before[key].shape
        assert torch.equal(value[:MASK], before[key][:MASK]), "a row that is in use was changed"
    assert_mean(model, MASK)


@pytest.mark.parametrize("name", [UNTIED, TIED])
def test_a_full_embedding_grows_by_one(name: str) -> None:
    """Else models whose every row is in use could not be converted."""
    model, tokenizer = tiny_model(name, vocab_size=MASK), tiny_tokenizer()
    before = input_embedding(model).weight.clone()
    assert find_or_add_mask_token(model, tokenizer) == MASK
    assert input_embedding(model).weight.shape[0] == lm_head(model).get_parameter("weight").shape[0] == MASK + 1
    assert model.config.vocab_size == MASK + 1
    assert torch.equal(input_embedding(model).weight[:MASK], before)
    assert (lm_head(model).weight is input_embedding(model).weight) is (name == TIED)
    assert_mean(model, MASK)
    assert model(input_ids=torch.tensor([[MASK]])).logits.shape[-1] == MASK + 1


def assert_mean(model: torch.nn.Module, row: int) -> None:
    for module in (input_embedding(model), lm_head(model)):  # type: ignore[arg-type]
        weight = module.get_parameter("weight")
        torch.testing.assert_close(weight[row], weight[:row].mean(0))


def test_finding_twice_changes_nothing() -> None:
    """Else a resumed conversion would reset the trained embedding of its mask token."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    mask = find_or_add_mask_token(model, tokenizer)
    with torch.no_grad():
        input_embedding(model).weight[mask] = 7.0
    assert find_or_add_mask_token(model, tokenizer) == mask
    assert (input_embedding(model).weight[mask] == 7.0).all()


def test_a_mask_token_without_a_row_gets_one() -> None:
    """Else a tokenizer that was extended, but not its model, would index behind the embedding."""
    model, tokenizer = tiny_model(vocab_size=MASK - 2), tiny_tokenizer(mask=True)
    assert find_or_add_mask_token(model, tokenizer) == MASK
    assert input_embedding(model).weight.shape[0] == MASK + 1


def test_a_new_token_never_takes_the_id_of_another() -> None:
    """Else decoding would mistake an ordinary token for "not yet known": a vocabulary with gaps gives such ids."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    with pytest.raises(MaskTokenError, match="gaps"):
        find_or_add_mask_token(tiny_model(), tokenizer)


# --- the others ---------------------------------------------------------------------------------------------------


def test_stop_tokens_come_from_tokenizer_and_generation_config() -> None:
    """Else a chat model whose turn ends with another token than its texts would never stop."""
    model, tokenizer = tiny_model(), tiny_tokenizer(mask=True)
    model.generation_config.eos_token_id = [5, 2, 9]
    assert special_tokens(model, tokenizer) == SpecialTokens(MASK, 0, (2, 5, 9))
    model.generation_config.eos_token_id = 5
    tokenizer.eos_token = None
    tokenizer.pad_token = None
    assert special_tokens(model, tokenizer) == SpecialTokens(MASK, 5, (5,))
    model.generation_config.eos_token_id = None
    assert special_tokens(model, tokenizer) == SpecialTokens(MASK, MASK, ())


def test_special_tokens_need_a_mask_token() -> None:
    """Else `None` would travel as an id into the sampler."""
    with pytest.raises(MaskTokenError, match="opdlm convert"):
        special_tokens(tiny_model(), tiny_tokenizer())


# --- prompts ------------------------------------------------------------------------------------------------------


def test_text_and_messages_go_through_the_chat_template() -> None:
    """Else a chat model would be trained on prompts in a form that it never sees in use."""
    tokenizer = tiny_tokenizer(chat=True)
    expected = tokenizer("<s>u:ab;a:".removeprefix("<s>")).input_ids
    assert encode_prompt(tokenizer, "ab") == [1, *expected]
    assert encode_prompt(tokenizer, [{"role": "user", "content": "ab"}]) == [1, *expected]
    system = encode_prompt(tokenizer, [{"role": "system", "content": "c"}, {"role": "user", "content": "ab"}])
    assert tokenizer.decode(system) == "<s>s:c;u:ab;a:"


def test_a_base_model_gets_the_text_with_its_beginning_and_no_end() -> None:
    """Else the model would continue behind an end-of-sequence token, or without the BOS that it always saw."""
    tokenizer = tiny_tokenizer()
    closing = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = closing
    bare = tokenizer("ab", add_special_tokens=False).input_ids
    assert encode_prompt(tokenizer, "ab") == [1, *bare]


@pytest.mark.parametrize(
    ("chat", "prompt", "reason"),
    [
        (True, "", "empty"),
        (False, "  \n", "empty"),
        (True, [], "empty"),
        (False, [{"role": "user", "content": "a"}], "no chat template"),
        (True, [{"text": "a"}], "'role' and 'content'"),
        (True, [7], "'role' and 'content'"),
        (True, [{7: 8}], "'role' and 'content'"),
        (True, 7, "a prompt is int"),
        (True, None, "a prompt is NoneType"),
        (True, [{"role": "user", "content": 7}], "7 where text is due"),
        (True, [{"role": "user", "content": None}], "None where text is due"),
        (True, [{"role": 7, "content": "a"}], "7 where text is due"),
        (True, [{"role": "user", "content": {"a": "b"}}], "type None"),
        (True, [{"role": "user", "content": ["a", 7]}], "7 where text is due"),
        (True, [{"role": "user", "content": [{"type": "image", "url": "a.png"}]}], "type 'image'"),
        (True, [{"role": "user", "content": [{"type": "text", "text": 7}]}], "7 where text is due"),
        (True, "a\ud800", "character 1 of the text is half"),
        (False, "\udcff", "character 0 of the text is half"),
        (True, [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "half of a surrogate"),
    ],
)
def test_bad_prompts_are_refused(chat: bool, prompt: Any, reason: str) -> None:
    """Else they would fail deep in the sampler, or as a traceback of the template engine."""
    with pytest.raises(PromptsError, match=reason):
        encode_prompt(tiny_tokenizer(chat=chat), prompt)


def test_the_parts_of_a_message_are_one_text() -> None:
    """Else the parts that some data sets and programs make of a message would be read as Python, or refused."""
    tokenizer = tiny_tokenizer(chat=True)
    parts = [{"type": "text", "text": "a "}, {"text": "b"}, "c"]
    assert encode_prompt(tokenizer, [{"role": "user", "content": parts}]) == encode_prompt(tokenizer, "a bc")


def test_a_template_that_refuses_is_a_prompts_error() -> None:
    """Else a conversation with the wrong order of roles would end in a traceback."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptsError, match="roles must alternate"):
        encode_prompt(tokenizer, "a")


@pytest.mark.parametrize(
    "prompt", ["abcdefgh", [{"role": "system", "content": "x"}, {"role": "user", "content": "abcdefgh"}]]
)
def test_a_cut_prompt_keeps_the_chat_template(prompt: str | list) -> None:
    """Else the template's end is cut off, and the model goes on with the user's text in place of an answer."""
    tokenizer = tiny_tokenizer(chat=True)
    front = "<s>" if isinstance(prompt, str) else "<s>s:x;"
    for limit in range(len(tokenizer(front).input_ids) + 6, 40):
        ids = encode_prompt(tokenizer, prompt, limit)
        kept = "abcdefgh"[: limit - len(tokenizer(front).input_ids) - 5]
        assert tokenizer.decode(ids) == f"{front}u:{kept};a:"
        assert len(ids) <= limit


def test_a_later_answer_stays_when_the_question_is_cut() -> None:
    """Else a message behind the user's would lose its end, which is nobody's question."""
    chat = [{"role": "user", "content": "abcd"}, {"role": "tool", "content": "xyz"}]
    assert tiny_tokenizer(chat=True).decode(encode_prompt(tiny_tokenizer(chat=True), chat, 15)) == "<s>u:abc;t:xyz;a:"


def test_a_plain_text_keeps_its_first_tokens() -> None:
    """Else base models would get other beginnings than were asked for."""
    tokenizer = tiny_tokenizer()
    assert encode_prompt(tokenizer, "abcdef", 3) == encode_prompt(tokenizer, "abcdef")[:3]


def test_a_limit_that_leaves_nothing_of_the_message_is_an_error() -> None:
    """Else the model would be asked an empty question."""
    for limit in (1, 6):
        with pytest.raises(PromptsError, match="raise --prompt-tokens"):
            encode_prompt(tiny_tokenizer(chat=True), "abc", limit)


# --- what is wrong with a tokenizer or a template -----------------------------------------------------------------


def test_a_tokenizer_of_another_model_is_refused() -> None:
    """Else the identity check would find equal rows, and blame the attention mask."""
    with pytest.raises(MaskTokenError, match=r"another model's; put the model's own"):
        find_or_add_mask_token(tiny_model(vocab_size=50, pad_token_id=None), tiny_tokenizer())


@pytest.mark.parametrize("value", [1.5, "</s>", [None], -1, True])
def test_a_stop_token_that_is_no_id(value: object) -> None:
    """Else a wrong generation config would be a traceback."""
    model = tiny_model()
    model.generation_config.eos_token_id = value
    with pytest.raises(MaskTokenError, match="no token id"):
        special_tokens(model, tiny_tokenizer(mask=True))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "broken"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{{ messages[0].content + 1 }}", "refuses"),
        ("{{ nothing.at.all }}", "refuses"),
    ],
)
def test_a_broken_chat_template(template: str, words: str) -> None:
    """Else the template's own traceback would be the message."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(PromptsError, match=words):
        encode_prompt(tokenizer, "hello")


@pytest.mark.parametrize("chat", [False, True])
def test_half_a_character_is_no_text(chat: bool) -> None:
    """Else the tokenizer's TypeError would be the message."""
    with pytest.raises(PromptsError, match="half a character"):
        encode_prompt(tiny_tokenizer(chat=chat), "a\ud800")
