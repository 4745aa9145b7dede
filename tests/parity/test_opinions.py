"""What a run keeps of its rollouts to be looked at: alternatives, the teacher's KL, refused drafts."""

from dataclasses import replace

import pytest
import torch

from lossless import ENDLESS, drafting
from opdlm.config import GenerationSettings
from opdlm.core.divergence import forward_kl
from opdlm.distill.opinions import opinions
from opdlm.distill.pair import Pair
from opdlm.distill.teacher import Teacher
from opdlm.records.trajectory import trajectories
from opdlm.sampling.engine import Engine
from opdlm.sampling.recording import Recorder
from opdlm.sampling.requests import continuations
from rollouts import TOKENS, ar_model, random_prompts, student, written


@torch.no_grad()
@pytest.mark.parametrize(("prediction", "context"), [("same", "block"), ("shifted", "causal")])
def test_opinions_are_of_the_step_that_committed_each_token(prediction: str, context: str) -> None:
    """Else the viewer would colour a token by what was thought in a state that nobody was in."""
    model = student(4, prediction, context)
    rollout, visits = written(model)
    teacher = Teacher(student(4, prediction, context, seed=1))
    found = opinions(Pair.of(model, teacher, TOKENS), rollout)
    for row, of_row in enumerate(found):
        length = int(rollout.length[row])
        expected = ar_model(1)(rollout.input_ids[row : row + 1, :length]).logits[0].float()
        expected[:, TOKENS.mask_token_id] = -1e30
        response = range(int(rollout.prompt_length[row]), length)
        assert set(of_row) == set(response)
        for position in response:
            begin, step = position // 4 * 4, int(rollout.commit_step[row, position])
            seen = visits[row, begin, step][position - begin].log_softmax(-1)
            kl = forward_kl(expected[position - 1].log_softmax(-1)[None], seen[None])
            assert of_row[position].kl == pytest.approx(float(kl), abs=2e-4)
            best = of_row[position].alternatives[0]
            assert best.token_id == int(seen.argmax())
            assert best.probability == pytest.approx(float(seen.max().exp()), abs=1e-4)


def test_opinions_of_drafts_know_the_teacher() -> None:
    """The AR model decides what a lossless model writes: greedily its first alternative is the text."""
    model = drafting()
    settings = GenerationSettings.model_validate({"decoding": "verified", "max_new_tokens": 12})
    rollout = Engine(model, ENDLESS, 4).write(continuations(random_prompts(), settings))
    found = opinions(Pair.of(model, Teacher(model), ENDLESS), rollout)
    for row, of_row in enumerate(found):
        assert len(of_row) >= 10
        for position, opinion in of_row.items():
            assert opinion.alternatives[0].token_id == int(rollout.input_ids[row, position])
            assert opinion.kl >= 0


@pytest.mark.parametrize("decoding", ["static", "dynamic:0.3", "prefix:0.1"])
def test_a_recorder_sees_each_token_chosen(decoding: str) -> None:
    """Else the alternatives of a token would be another's."""
    recorder = Recorder(most=3)
    settings = GenerationSettings.model_validate({"decoding": decoding, "max_new_tokens": 14})
    rollout = Engine(student(), TOKENS, 1, observer=recorder.observe).write(continuations([[7, 9, 11]], settings))
    told = recorder.told(trajectories(rollout, 4)[0])
    assert told.alternatives is not None
    assert told.confidences is not None
    for token, confidence, likely in zip(told.token_ids, told.confidences, told.alternatives, strict=True):
        assert likely[0].token_id == token  # greedy
        assert likely[0].probability == pytest.approx(confidence, abs=1e-4)
        assert len(likely) == 3


def test_a_recorder_sees_what_was_refused() -> None:
    """Every draft was accepted or refused, and the two together are what was drafted."""
    model = drafting(change=0.2)
    settings = GenerationSettings.model_validate({"decoding": "verified:3", "max_new_tokens": 20})
    request = replace(continuations([[7, 9, 11, 4]], settings)[0], watched=True)
    engine, recorder, drafts = Engine(model, ENDLESS, 1), Recorder(), []
    engine.add(request)
    while not engine.idle:
        for event in engine.step():
            if hasattr(event, "rollout"):
                rollout = event.rollout
            else:
                recorder.put_verified(event.input_ids[4 : event.known], event.input_ids[event.known :])
                drafts.append(len(event.input_ids) - event.known)
    told = recorder.told(trajectories(rollout, 4)[0])
    assert told.verified
    assert told.refused is not None
    steps = torch.tensor(told.commit_steps)
    for step in range(told.forwards):
        places = (steps == step).nonzero()[:, 0].tolist()
        refused = [len(told.refused[place]) for place in places]
        assert sum(refused[:-1]) == 0  # only the last token of a forward stands where a draft was refused
        assert len(places) - 1 + refused[-1] in (drafts[step], drafts[step] - 1)
        if refused[-1]:
            assert told.refused[places[-1]][0].token_id != told.token_ids[places[-1]]
    assert any(told.refused)
