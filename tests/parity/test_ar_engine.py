"""An AR model in the engine writes what transformers writes; penalties and alternatives are what they are called."""

from typing import Any

import pytest
import torch

from lossless import ENDLESS, drafting, responses
from opdlm.config import GenerationSettings
from opdlm.core.layout import AUTOREGRESSIVE
from opdlm.core.types import NEVER, Rollout
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import NO_MASK, BlockDiffusionModel
from opdlm.sampling.engine import Draft, Engine, Step
from opdlm.sampling.requests import continuations
from rollouts import random_prompts, student
from sampling_support import NEVER_STOPS, assert_same_row, settings_of
from support import ARCHITECTURES, assert_close, tiny_model

PROMPTS = random_prompts((1, 2, 5, 8, 3, 11), seed=3)


def autoregressive(architecture: str = "llama", **changes: Any) -> BlockDiffusionModel:
    return BlockDiffusionModel(tiny_model(architecture, **changes), AUTOREGRESSIVE, NO_MASK)


def settings_for(decoding: Any = "sequential", **changes: Any) -> GenerationSettings:
    return settings_of({"decoding": decoding, "max_new_tokens": 24}, **changes)


def greedy(model: BlockDiffusionModel, prompt: list[int], presence: float = 0.0, frequency: float = 0.0) -> list[int]:
    """24 tokens, each from a pass over the whole text, the penalties by their definition."""
    written: list[int] = []
    for _ in range(24):
        scores = model.model(input_ids=torch.tensor([[*prompt, *written]])).logits[0, -1]
        for token in set(written):
            scores[token] -= presence + frequency * written.count(token)
        written.append(int(scores.argmax()))
    return written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_an_ar_model_writes_its_own_text(architecture: str) -> None:
    """Else a comparison of the two would be with another model than the original."""
    model = autoregressive(architecture)
    expected = [greedy(model, prompt) for prompt in PROMPTS]
    for batch_size in (1, 4, 32):
        rollout = Engine(model, ENDLESS, batch_size).write(continuations(PROMPTS, settings_for()))
        assert responses(rollout) == expected
        assert (rollout.forwards == 24).all()


def test_an_ar_model_samples_as_a_lossless_one_does() -> None:
    """Else the same seed would give another text with drafts than without."""
    lossless = drafting()
    settings: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9}
    drafted = Engine(lossless, ENDLESS).write(continuations(PROMPTS, settings_for("verified", **settings)))
    plain = autoregressive()
    alone = Engine(plain, ENDLESS).write(continuations(PROMPTS, settings_for(**settings)))
    assert responses(alone) == responses(drafted)


def test_an_ar_model_has_one_decoding() -> None:
    """Else a diffusion decoding of it would be accepted, and something else written."""
    for decoding in ("dynamic:0.9", "verified", "checked", "static"):
        with pytest.raises(UsageError, match="sequential alone"):
            Engine(autoregressive(), ENDLESS).add(continuations([[7]], settings_for(decoding))[0])


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.7), (2.0, 0.5), (-0.5, -0.3)])
@torch.no_grad()
def test_penalties_are_those_of_their_definition(presence: float, frequency: float) -> None:
    """Else `presence_penalty` and `frequency_penalty` would mean something else than in the API they come from.

    The prompt's own tokens do not count; drafts before a token do, where they hold.
    """
    penalties = {"presence_penalty": presence, "frequency_penalty": frequency}
    model = autoregressive()
    expected = [greedy(model, prompt, presence, frequency) for prompt in PROMPTS]
    assert expected != [greedy(model, prompt) for prompt in PROMPTS]
    rollout = Engine(model, ENDLESS, 4).write(continuations(PROMPTS, settings_for(**penalties)))
    assert responses(rollout) == expected
    rollout = Engine(drafting(), ENDLESS, 4).write(continuations(PROMPTS, settings_for("verified", **penalties)))
    assert responses(rollout) == expected


def with_alternatives(
    model: BlockDiffusionModel, settings: GenerationSettings, counts: list[int], **engine: Any
) -> dict[int, Rollout]:
    """Rollouts of one row, of requests with as many alternatives."""
    requests = [
        continuations([prompt], settings, [row], alternatives=count)[0]
        for row, (prompt, count) in enumerate(zip(PROMPTS, counts, strict=True))
    ]
    return dict(Engine(model, NEVER_STOPS, **engine).finished(requests))


def test_alternatives_are_the_most_probable_tokens_of_the_step() -> None:
    """Else the log-probabilities that a server reports would be those of another step or another row."""
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def note(step: Step) -> None:
        logs = step.logits.log_softmax(-1)
        for slot, row in enumerate(step.request.tolist()):
            for offset in step.committed[slot].nonzero()[:, 0].tolist() if row >= 0 else ():
                seen[row, int(step.start[slot]) + offset] = logs[slot, offset].clone()

    counts = [3, 0, 5, 1, 0, 97]
    settings = settings_for("dynamic:0.3", temperature=1.0)
    rows = with_alternatives(student(), settings, counts, batch_size=2, observer=note)
    for number, count in enumerate(counts):
        row = rows[number]
        if not count:
            assert row.top_ids is None
            continue
        assert row.top_ids is not None
        assert row.top_log_probability is not None
        assert row.confidence is not None
        assert row.top_ids.shape == (1, int(row.end), count)
        for position in range(int(row.prompt_length), int(row.length)):
            logs = seen[number, position]
            expected = logs.topk(count).values
            assert_close(row.top_log_probability[0, position], expected)
            assert_close(logs[row.top_ids[0, position]], expected)
            assert_close(row.confidence[0, position].log(), logs[row.input_ids[0, position]])


def test_alternatives_change_nothing_else() -> None:
    """Else asking for log-probabilities would change the text; and what they say of its tokens is their confidence."""
    for model, decoding in ((student(), "dynamic:0.2"), (drafting(), "verified"), (drafting(), "typical:0.01")):
        settings = settings_for(decoding, temperature=1.0)
        asked = with_alternatives(model, settings, [4] * 6)
        for number, row in with_alternatives(model, settings, [0] * 6).items():
            assert_same_row(asked[number], 0, row)
            top, logs = asked[number].top_ids, asked[number].top_log_probability
            assert top is not None
            assert logs is not None
            assert row.confidence is not None
            written = (row.commit_step >= 0) & (row.commit_step < NEVER)
            mine = (top == row.input_ids[..., None]) & written[..., None]
            assert mine.any()
            assert_close(logs[mine].exp(), row.confidence[mine.any(-1)])


@pytest.mark.parametrize("decoding", ["dynamic:0.3", "verified", "checked"])
def test_a_draft_says_what_the_response_will(decoding: str) -> None:
    """Else a stream would report other probabilities or forwards than the finished response has."""
    model = drafting() if decoding == "verified" else student(4, "shifted", "causal")
    request = continuations([PROMPTS[2]], settings_for(decoding), watched=True, alternatives=2)[0]
    engine, drafts, rollout = Engine(model, NEVER_STOPS), [], None
    engine.add(request)
    assert (engine.waiting, engine.writing) == (1, 0)
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Draft):
                assert (engine.waiting, engine.writing) == (0, 1)
                drafts.append(event)
            else:
                rollout = event.rollout
    assert rollout is not None
    assert rollout.confidence is not None
    assert rollout.top_ids is not None
    assert [draft.forwards for draft in drafts] == list(range(int(rollout.forwards)))
    begin = int(rollout.prompt_length)
    for draft in drafts:
        assert draft.top_ids is not None
        assert torch.equal(draft.input_ids[begin : draft.known], rollout.input_ids[0, begin : draft.known])
        assert_close(draft.confidence[begin : draft.known], rollout.confidence[0, begin : draft.known])
        assert torch.equal(draft.top_ids[begin : draft.known], rollout.top_ids[0, begin : draft.known])
