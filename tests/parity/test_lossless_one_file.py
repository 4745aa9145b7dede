"""Lossless conversion in one file of plain torch (examples/lossless_one_file.py) and the library compute the same."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lossless import ENDLESS, drafting, responses
from opdlm.config import GenerationSettings
from opdlm.core.divergence import forward_kl
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill.losses import window_loss
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.models.drafting import DraftingModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations
from rollouts import random_prompts
from support import tiny_model

_PATH = Path(__file__).parents[2] / "examples" / "lossless_one_file.py"
_SPEC = importlib.util.spec_from_file_location("lossless_one_file", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
one_file = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(one_file)

PROMPTS = random_prompts((1, 3, 4, 6, 9))
STOPS = (2, 3, 5)
GREEDY = GenerationSettings.model_validate({"decoding": "verified", "max_new_tokens": 18})


def both(architecture: str = "llama", window: int = 3, change: float = 0.05):
    """The library's model with a gate, and the one file's: two decoders of the same weights, two equal gates."""
    library = drafting(architecture, window=window, change=change)
    plain = tiny_model(architecture)
    gate = one_file.Gate(plain, window, library.gate.rank)
    with torch.no_grad():
        gate.places.copy_(library.gate.places)
        for mine, its in zip(pairs(gate), gate_parameters(library), strict=True):
            mine.copy_(its)
    return library, plain, gate


def pairs(gate) -> list[torch.nn.Parameter]:
    """The one file's adapters, layer by layer."""
    return [parameter for pair in zip(gate.down, gate.up, strict=True) for parameter in pair]


def gate_parameters(model: DraftingModel) -> list[torch.nn.Parameter]:
    """The library's, in the same order."""
    return [layer.get_parameter(name) for layer in model.gate.layers for name in ("down", "up")]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("window", [1, 3])
def test_it_writes_what_the_library_writes(architecture: str, window: int) -> None:
    """Else the readable version of decoding would be another one than the fast version: other text, or other drafts."""
    library, plain, gate = both(architecture, window)
    tokens = SpecialTokens(0, 0, STOPS)
    rollout = Engine(library, tokens).write(continuations(PROMPTS, GREEDY))
    texts = [one_file.write(plain, gate, prompt, list(STOPS), 18) for prompt in PROMPTS]
    assert [text.ids[text.prompt :].tolist() for text in texts] == responses(rollout)
    assert [text.forwards for text in texts] == rollout.forwards.tolist()
    tokens_written = sum(map(len, responses(rollout)))
    assert sum(text.forwards for text in texts) < tokens_written  # some drafts were accepted
    for text in texts:
        if len(text.ids) == text.prompt + 18:  # `original` knows no stop tokens but those of the model
            assert text.ids.tolist() == one_file.original(plain, text, 18)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_its_loss_and_gradient_are_the_librarys(architecture: str) -> None:
    """Else the readable version would teach another method than the one that is run, or the fast one has a fault."""
    library, plain, gate = both(architecture, change=0.2)
    pair = Pair.of(library, Teacher(library), ENDLESS)
    rollout = Engine(library, ENDLESS).write(continuations(PROMPTS, GREEDY))
    theirs = [library.gate.places, *gate_parameters(library)]
    mine = [gate.places, *pairs(gate)]
    for row in range(len(PROMPTS)):
        alone = rollout.rows(torch.tensor([row]))
        windows = select_windows(alone, WindowChoice(3, "all"), torch.tensor([row]))
        found = window_loss(pair, forward_kl, windows, alone, pair.teacher.clean_pass(alone))
        text = one_file.Text(alone.input_ids[0, : int(alone.length)], int(alone.prompt_length), 0)
        total, count = one_file.divergence(plain, gate, text)
        assert found.count == count > 0
        assert_close(found.total, total, atol=1e-4, rtol=1e-4)
        gradients = torch.autograd.grad(found.total, theirs), torch.autograd.grad(total, mine)
        for one, other in zip(*gradients, strict=True):
            assert_close(one, other, atol=2e-4, rtol=2e-3)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in plain.parameters())


def test_a_text_of_one_token_teaches_nothing() -> None:
    """Else a batch that holds one would end in an error."""
    _, plain, gate = both()
    assert one_file.divergence(plain, gate, one_file.Text(torch.tensor([7, 8, 9]), 2, 1))[1] == 0


def test_only_windows_go_through_the_gate() -> None:
    """Else the text would not be the original's: clean outputs are those of the model without a gate."""
    _, plain, gate = both(change=1.0)
    ids = torch.tensor(PROMPTS[-1])
    alone = one_file.forward(plain, gate, ids, ids[:0], one_file.DynamicCache())[0]
    torch.testing.assert_close(alone, tiny_model().base_model(ids[None]).last_hidden_state[0], atol=1e-5, rtol=1e-5)
