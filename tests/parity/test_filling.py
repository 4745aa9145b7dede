"""Gaps inside a text: filled as the slow sampler fills them, and nothing else is touched."""

import pytest
import torch

from opdlm.config import GenerationSettings
from opdlm.core.types import Rollout
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Step
from opdlm.sampling.reference import generate_row
from rollouts import TOKENS, random_prompts, student
from sampling_support import CHOICES, assert_same_row, filled, settings_of
from support import MASK

every_prediction = pytest.mark.parametrize("prediction", ["same", "shifted"])
every_context = pytest.mark.parametrize("context", ["block", "causal"])


def with_gaps(text: str, seed: int = 0) -> list[int]:
    """Random known tokens, a mask for each underscore."""
    known = random_prompts((len(text),), seed)[0]
    return [MASK if letter == "_" else token for letter, token in zip(text, known, strict=True)]


GAPS = [
    "abcde_ghi__lmnopqrstuvwxy__zabcdefghi",  # in several blocks, known blocks between them and behind
    "abc_____ijkl____",  # whole blocks, at the end
    "abcdefghijk_",
    "a_c",  # known text behind, in the same block
    "abcd_fgh",  # the last gap's block is the end
    "abcdefg_ijklmnop",  # the gap ends its block, and text follows
]


@every_prediction
@every_context
@pytest.mark.parametrize("size", [1, 4, 8])
def test_filling_is_the_references(size: int, context: str, prediction: str) -> None:
    """Else gaps would be filled with another view of the text than the documented one, or the wrong ones."""
    model = student(size, prediction, context)
    texts = [with_gaps(text, seed) for seed, text in enumerate(GAPS)]
    if prediction == "same":
        texts += [with_gaps("_bcdef"), with_gaps("___def__ij")]
    for choice in (CHOICES[0], CHOICES[3], CHOICES[9]):
        settings = settings_of(choice)
        for batch_size in (2, 32):
            rollout = filled(model, TOKENS, settings, texts, batch_size=batch_size)
            for row, text in enumerate(texts):
                assert_same_row(rollout, row, generate_row(model, text, settings, TOKENS, row, fill=True))


def test_filling_changes_nothing_but_the_gaps() -> None:
    """Else text that the user wrote would be replaced, or a gap would stay because a stop token was drawn before it."""
    tokens = SpecialTokens(MASK, 0, tuple(range(MASK)))  # whatever is drawn could end a text
    texts = [with_gaps(text, seed) for seed, text in enumerate(GAPS)]
    rollout = filled(student(), tokens, GenerationSettings(temperature=1.0), texts, batch_size=2)
    assert not rollout.stopped.any()
    for row, text in enumerate(texts):
        length = int(rollout.length[row])
        assert length == max(i for i, token in enumerate(text) if token == MASK) + 1
        assert int(rollout.prompt_length[row]) == text.index(MASK)
        whole = [*rollout.input_ids[row].tolist(), *text][: int(rollout.end[row])]
        for column, (found, known) in enumerate(zip(whole, text, strict=False)):
            assert (found != MASK) if known == MASK else (found == known)
            assert (rollout.commit_step[row, column] == -1) == (known != MASK)


@every_prediction
def test_a_gap_sees_its_block_and_no_further(prediction: str) -> None:
    """Else known text behind a gap would be ignored, or seen from where no training state could see it."""
    model, text = student(4, prediction), with_gaps("abcdef_hijkl_nop")

    def first_logits(ids: list[int]) -> tuple[list[torch.Tensor], Rollout]:
        """What the model says of the two gaps when it sees them for the first time."""
        seen: list[torch.Tensor] = []

        def keep(now: Step) -> None:
            if now.step[0] == 0:
                seen.append(now.logits[0, 2 if now.start[0] == 4 else 0].clone())

        return seen, filled(model, TOKENS, GenerationSettings(), [ids], observer=keep)

    (first, second), rollout = first_logits(text)
    near, far = list(text), list(text)
    near[7], far[9] = 11, 11  # behind the first gap: in its block, and in the next one
    (near_first, _), _ = first_logits(near)
    assert (near_first - first).abs().max() > 1e-3
    (far_first, far_second), far_rollout = first_logits(far)
    assert torch.equal(far_first, first)
    assert (far_second - second).abs().max() > 1e-3, "known text between gaps is seen by the later one"
    assert far_rollout.input_ids[0, 6] == rollout.input_ids[0, 6]
