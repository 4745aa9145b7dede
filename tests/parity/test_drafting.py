"""Training a drafting model: its windows are those of decoding, and only the gate learns."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lossless import ENDLESS, drafting
from opdlm.config import DistillSettings, GenerationSettings
from opdlm.core.divergence import forward_kl, total_variation
from opdlm.core.layout import WindowAttention
from opdlm.core.types import Rollout
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill.loop import Trainer
from opdlm.distill.losses import window_loss
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.errors import UnsupportedModelError
from opdlm.models.drafting import DraftingModel
from opdlm.models.gate import Gate
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations
from rollouts import random_prompts
from support import VOCABULARY, assert_close, tiny_model

PROMPTS = random_prompts((1, 3, 4, 6, 9))
GREEDY = GenerationSettings.model_validate({"decoding": "verified", "max_new_tokens": 20})


def pair_of(model: DraftingModel) -> Pair:
    return Pair.of(model, Teacher(model), ENDLESS)


def choice_of(model: DraftingModel, anchors: Any = "all") -> WindowChoice:
    return WindowChoice(model.window, anchors, VOCABULARY if model.gate.form == "noise" else 0)


@pytest.mark.parametrize("form", ["mask", "noise"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox"])
def test_training_sees_the_windows_that_decoding_visited(architecture: str, form: Any) -> None:
    """At each visited anchor the training pass makes the drafts that decoding made there, after any refusal."""
    model, pair = (made := drafting(architecture, form, change=0.2)), None
    pair = pair_of(made)
    for row, request in enumerate(continuations(PROMPTS, GREEDY)):
        engine, drafts, rollout = Engine(model, ENDLESS, 1), {}, None
        engine.add(request)
        while rollout is None:
            (*_, rollout) = [None, *(event.rollout for event in engine.step())]  # type: ignore[union-attr]
            state = engine._slots.state
            if rollout is None:
                start, count = int(state.start[0]), int(state.drafted[0])
                drafts[start - 1] = state.ids[0, start : start + count].tolist()
        clean = pair.teacher.clean_pass(rollout)
        windows = select_windows(rollout, choice_of(model, "visited"), torch.tensor([request.seed]))
        seen: dict[int, list[int]] = {}

        def keep(outputs: torch.Tensor, part: slice, windows=windows, seen=seen) -> torch.Tensor:
            for token, column in zip(outputs.argmax(-1).tolist(), windows.predictor[part].tolist(), strict=True):
                seen.setdefault(int(windows.anchor[0, column]), []).append(token)
            return outputs.sum(-1)

        pair.training_pass(windows, keep, clean)
        assert len(seen) > 3, row
        for anchor, tokens in seen.items():
            assert drafts[anchor][: len(tokens)] == tokens[: len(drafts[anchor])], (row, anchor)


@pytest.mark.parametrize("form", ["mask", "noise"])
def test_windows_behind_a_frozen_prefix_are_those_of_one_pass(form: Any) -> None:
    """The cheap two passes give what one pass over text and window gives, in value and in gradient."""
    model = drafting(form=form, change=0.2)
    pair = pair_of(model)
    rollout = Engine(model, ENDLESS).write(continuations(PROMPTS, GREEDY))
    windows = select_windows(rollout, choice_of(model), torch.arange(5))
    clean = pair.teacher.clean_pass(rollout)
    window_loss(pair, forward_kl, windows, rollout, clean).total.backward()
    cheap = [parameter.grad.clone() for parameter in model.gate.parameters() if parameter.grad is not None]
    model.gate.zero_grad()
    total = torch.zeros(())
    for row in range(5):
        for anchor in windows.anchor[row].unique().tolist():
            total = total + one_window(model, rollout, windows, row, anchor)
    total.backward()
    slow = [parameter.grad for parameter in model.gate.parameters() if parameter.grad is not None]
    assert len(cheap) == len(slow) == len(list(model.gate.parameters()))
    for one, other in zip(cheap, slow, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
    assert all(parameter.grad is None for parameter in model.model.parameters())


def one_window(model: DraftingModel, rollout, windows, row: int, anchor: int) -> torch.Tensor:
    """KL of one window, by a single pass over its clean prefix and itself."""
    mine = (windows.anchor[row] == anchor) & (windows.stream[row] >= 0)
    if not mine.any():
        return torch.zeros(())
    text = rollout.input_ids[row, :anchor]
    size = int(mine.sum())
    position = torch.cat([torch.arange(anchor), windows.position_ids[row][mine]])[None]
    stream = torch.cat([torch.zeros(anchor, dtype=torch.int64), torch.ones(size, dtype=torch.int64)])[None]
    attention = WindowAttention(
        model.geometry, position, stream, position, stream, query_anchor=torch.full_like(position, anchor),
        causal_inside=model.gate.form == "noise", windows=size, size=size,
    )  # fmt: skip
    ids = torch.cat([text, windows.input_ids[row][mine]])[None]
    drafted = model.logits(model.hidden(ids, attention)[0, anchor:]).log_softmax(-1)
    whole = rollout.input_ids[row : row + 1, : int(rollout.length[row])]
    expected = model.logits(model.causal_hidden(whole)[0]).log_softmax(-1)
    count = min(size, whole.shape[1] - 1 - anchor)
    return forward_kl(expected[anchor : anchor + count].detach(), drafted[:count]).sum()


def test_windows_see_no_text_behind_their_anchor() -> None:
    """Else a draft would be made with knowledge that decoding does not have."""
    model = drafting(change=0.2)
    rollout = Engine(model, ENDLESS).write(continuations(PROMPTS[-1:], GREEDY))
    windows, pair, place = select_windows(rollout, choice_of(model), torch.arange(1)), pair_of(model), 15

    def outputs(text: Rollout) -> torch.Tensor:
        seen = []

        def keep(made: torch.Tensor, part: slice) -> torch.Tensor:
            seen.append(made.detach())
            return made.sum(-1)

        pair.training_pass(windows, keep, pair.teacher.clean_pass(text))
        return torch.cat(seen)

    changed = rollout.input_ids.clone()
    changed[0, place] = (changed[0, place] + 1) % VOCABULARY
    before, after = outputs(rollout), outputs(replace(rollout, input_ids=changed))
    anchors = windows.anchor[0][windows.predictor]
    assert_close(after[anchors <= place], before[anchors <= place])
    assert (after[anchors > place] != before[anchors > place]).any(-1).all()


@pytest.mark.parametrize(("form", "divergence"), [("mask", "forward_kl"), ("noise", "forward_kl"), ("mask", "tv")])
def test_training_teaches_the_gate_alone(form: Any, divergence: str) -> None:
    """The loss falls, drafts are accepted more often, and not a byte of the base changes."""
    model = drafting(form=form, change=0.0)
    before = {name: parameter.clone() for name, parameter in model.model.state_dict().items()}
    settings = DistillSettings.model_validate({
        "method": "lossless", "lora_rank": 4, "rollout_decoding": "verified", "anchors": "all",
        "divergence": divergence,
        "rollouts": 25, "prompts_per_rollout": 5, "rows_per_update": 5, "rows_per_micro_batch": 3,
        "rollout_temperature": 0.0, "response_length": {"start": 20, "end": 20, "rollouts": 0},
        "optimiser": {"learning_rate": 2e-2, "warmup_updates": 1},
    })  # fmt: skip
    metrics = []
    Trainer(pair_of(model), PROMPTS, settings, on_step=metrics.append).train()
    assert metrics[-1].loss < 0.75 * metrics[0].loss
    assert metrics[-1].tokens_per_forward > metrics[0].tokens_per_forward
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_total_variation_is_the_chance_of_refusal() -> None:
    """Half the absolute differences; 0 for equal, 1 for disjoint distributions."""
    first, second = torch.tensor([[0.5, 0.5, 1e-30]]), torch.tensor([[0.25, 0.5, 0.25]])
    torch.testing.assert_close(total_variation(first.log(), second.log()), torch.tensor([0.25]))
    assert total_variation(first.log(), first.log()) == 0


def test_a_decoder_without_linear_layers_has_no_gate() -> None:
    """Else a gate that adapts nothing would be trained, and no draft would ever hold."""
    model = tiny_model()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="no linear layers"):
        Gate(model, 4, "mask", 3)
