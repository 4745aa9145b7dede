"""Prompts that an AR model writes itself."""

from dataclasses import replace
from typing import Any

import pytest

from opdlm.config import GenerationSettings, SequentialDecoding
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.errors import PromptsError, UsageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import DiffusionLM
from opdlm.sampling.own_prompts import OwnPrompt, own_prompts
from support import tiny_model, tiny_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FULL_STOP = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}.{% endfor %}"
ENDS = {None: ";a:", CHATML: "<|im_end|>", FULL_STOP: "."}


def writer(template: str | None = None, chat: bool = True) -> DiffusionLM:
    tokenizer = tiny_tokenizer(chat=chat)
    if template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
    # Small weights: a random model that is sure of nothing ends its texts now and then.
    model = tiny_model(vocab_size=128, initializer_range=0.02, max_position_embeddings=512)
    plain = BlockDiffusionModel(model, AUTOREGRESSIVE, NO_MASK)
    return DiffusionLM(plain, tokenizer, GenerationSettings(decoding=SequentialDecoding()))


def test_they_depend_on_the_seed_alone() -> None:
    """Else a run could not be made again, or --resume would write other prompts than an uninterrupted call."""
    model = writer()
    one = list(own_prompts(model, 12, seed=5, batch_size=1))
    assert len({found.prompt for found in one}) == 12
    assert list(own_prompts(model, 12, seed=5, batch_size=7)) == one
    assert list(own_prompts(model, 12, seed=5, known=one[:5])) == one[5:]
    assert list(own_prompts(model, 1, seed=one[3].seed)) == [one[3]]
    assert list(own_prompts(model, 12, seed=5, known=one)) == []


@pytest.mark.parametrize("template", ENDS, ids=["a string", "a token", "one character"])
def test_they_stand_where_the_user_speaks(template: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the model would go on as somebody else, or the end of its message would be part of the prompt."""
    model, asked, made = writer(template), [], DiffusionLM.requests

    def requests(self: DiffusionLM, prompts: Any, settings: GenerationSettings, *more: Any) -> Any:
        asked.append((prompts, settings))
        return made(self, prompts, settings, *more)

    monkeypatch.setattr(DiffusionLM, "requests", requests)
    found = list(own_prompts(model, 4))
    (front, *_), settings = asked[0]
    for one in found:
        ids = encode_prompt(model.tokenizer, one.prompt)
        assert ids[: len(front)] == front
        assert one.prompt == one.prompt.strip() != ""
        assert ENDS[template] not in one.prompt
    assert settings.stop_strings == (() if template is CHATML else (ENDS[template],))
    behind = str(model.tokenizer.decode(encode_prompt(model.tokenizer, "X")[len(front) :]))
    assert behind.startswith(f"X{ENDS[template]}")


def test_a_message_ends_where_the_template_ends_it() -> None:
    """Else a model whose user turns end with another token than its own would write both sides of a chat."""
    model = writer(CHATML)
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert isinstance(end, int)
    assert end not in model.tokens.stop_token_ids
    never = replace(model.tokens, stop_token_ids=())
    model = DiffusionLM(model.model, model.tokenizer, model.defaults, never)
    assert len(list(own_prompts(model, 3))) == 3


def test_what_is_cut_off_is_left_out() -> None:
    """Else half sentences would be asked."""
    model = writer()
    short = list(own_prompts(model, 6, max_new_tokens=40))
    assert all(len(one.prompt) < 40 for one in short), "a token is a character"
    assert short[-1].seed > 5, "nothing was left out"
    assert [next(own_prompts(model, 1, seed=one.seed)) for one in short] == short


def test_without_a_template_they_are_fronts_of_texts() -> None:
    """Else base models would have no prompts."""
    found = list(own_prompts(writer(chat=False), 8))
    assert all(len(one.prompt) <= 48 for one in found)
    lengths = [len(one.prompt) for one in found]
    assert max(lengths) - min(lengths) > 12, "all are of one length"


def test_a_model_that_repeats_itself_is_told_so() -> None:
    """Else the command would never end."""
    with pytest.raises(PromptsError, match=r"of 60 tries only \d gave a new prompt"):
        list(own_prompts(writer(), 3, temperature=0.0))


def test_nothing_to_begin_with() -> None:
    """Else the first forward would have no token."""
    model = writer(chat=False)
    model.tokenizer.add_bos_token = False
    bare = DiffusionLM(model.model, model.tokenizer, model.defaults, replace(model.tokens, stop_token_ids=()))
    with pytest.raises(PromptsError, match="neither a chat template nor a token"):
        next(own_prompts(bare, 1))


@pytest.mark.parametrize(
    ("template", "fault"),
    [("{{ raise_exception('no') }}", "refuses the messages"), ("u:{{ messages[0]['content'] }}", "marks no end")],
)
def test_templates_that_show_no_turn(template: str, fault: str) -> None:
    """Else the command would end in a traceback, or the model would never know when the user is done."""
    with pytest.raises(PromptsError, match=fault):
        next(own_prompts(writer(template), 1))


def test_numbers_that_mean_nothing() -> None:
    """Else the call would end in a traceback."""
    with pytest.raises(UsageError, match="at least 1"):
        next(own_prompts(writer(), 0))


def test_known_ones_are_not_written_again() -> None:
    """Else --resume could double a prompt."""
    model = writer()
    first = next(own_prompts(model, 1))
    known = [OwnPrompt(first.prompt, -1)]
    assert first.prompt not in [one.prompt for one in own_prompts(model, 3, known=known)]
