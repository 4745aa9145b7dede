"""The fast sampler against the slow one, against itself in other batches, and against transformers."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch

from opdlm.config import GenerationSettings
from opdlm.core.layout import CLEAN, Attention
from opdlm.core.types import NEVER, Geometry
from opdlm.errors import UsageError
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.cache import KVCache
from opdlm.sampling.api import DiffusionLM
from opdlm.sampling.engine import Engine
from opdlm.sampling.reference import generate_row
from opdlm.sampling.requests import continuations, fillings
from opdlm.sampling.slots import Slots
from rollouts import TOKENS, ar_model, fresh_student, random_prompts, student, written
from sampling_support import CHOICES, NEVER_STOPS, assert_same_row, forwards_of, generated, settings_of
from support import MASK, assert_close, tiny_model, tiny_tokenizer

every_prediction = pytest.mark.parametrize("prediction", ["same", "shifted"])
every_context = pytest.mark.parametrize("context", ["block", "causal"])


@every_prediction
@every_context
@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_engine_is_the_reference(size: int, context: str, prediction: str) -> None:
    """Else the cache, the fused commit, the batch or a replaced row would change what is written, or its record.

    Four prompts through two slots: rows finish at different times and their slots are filled again.
    """
    model, prompts = student(size, prediction, context), random_prompts((1, 3, 4, 6))
    for choice in CHOICES:
        settings = settings_of(choice, max_new_tokens=11)
        rollout = generated(model, TOKENS, settings, prompts, batch_size=2, seeds=[7, 5, 3, 1])
        for row, prompt in enumerate(prompts):
            assert_same_row(rollout, row, generate_row(model, prompt, settings, TOKENS, [7, 5, 3, 1][row]))


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_the_engine_is_the_reference_with_sliding_windows(name: str) -> None:
    """Else cached keys outside a layer's window would be read, or those inside would not."""
    model = BlockDiffusionModel(tiny_model(name, initializer_range=0.35), Geometry(4), MASK)
    settings = GenerationSettings(temperature=1.0, max_new_tokens=17, decoding="dynamic:0.5")  # type: ignore[arg-type]
    prompts = random_prompts((9, 2))
    prompts += [[*prompts[0][:8], 17]]  # and two texts with a prefix in common
    for chosen in (prompts, prompts[::2]):
        rollout = generated(model, NEVER_STOPS, settings, chosen)
        for row, prompt in enumerate(chosen):
            assert_same_row(rollout, row, generate_row(model, prompt, settings, NEVER_STOPS, row))


def test_the_models_are_not_degenerate() -> None:
    """Else the tests of this file would compare rows of one repeated token, and all would pass."""
    rollout, _ = written(student(), max_new_tokens=40)
    response = (rollout.commit_step >= 0) & (rollout.commit_step < NEVER)
    assert len(rollout.input_ids[response].unique()) > 20
    assert rollout.commit_step[response].unique().tolist() == [0, 1, 2, 3]
    assert 0 < rollout.stopped.sum() < len(rollout.stopped)
    for choice in CHOICES[3:]:  # the rules that choose how many tokens they fix
        settings = settings_of(choice, max_new_tokens=40)
        steps = generated(student(), NEVER_STOPS, settings, random_prompts()).commit_step[:, 12:40]
        at_once = torch.stack([(steps.unflatten(1, (7, 4)) == r).sum(-1) for r in range(4)])
        assert {1, 2} <= set(at_once.flatten().tolist()), (choice, "they fix one token, and they fix several")


def prompts_with(beginning: str) -> list[list[int]]:
    shared = random_prompts((10,), seed=4)[0]
    if beginning == "a shared prefix":  # two whole blocks and two tokens, then 0 to 9 of their own
        return [shared, *([*shared, *tail] for tail in random_prompts((1, 3, 4, 6, 9)))]
    if beginning == "one prompt":
        return [shared] * 5
    if beginning == "no whole block":
        return [[*shared[:3], *tail] for tail in random_prompts((1, 3, 6, 9))]
    return random_prompts()


BEGINNINGS = ("a shared prefix", "one prompt", "no whole block", "nothing")


@every_prediction
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_batch_of_one_is_a_batch_of_many(beginning: str, prediction: str) -> None:
    """Else a response would depend on who else is asking, on its turn, or on how the other prompts begin."""
    model, prompts = student(4, prediction), prompts_with(beginning)
    for choice in (CHOICES[4], CHOICES[10]):
        settings = settings_of(choice, max_new_tokens=14)
        together = generated(model, TOKENS, settings, prompts, batch_size=32)
        for batch_size in (1, 2, 3):
            other = generated(model, TOKENS, settings, prompts, batch_size=batch_size)
            for row in range(len(prompts)):
                assert_same_row(other, row, together.rows(torch.tensor([row])))
        for row, prompt in enumerate(prompts):
            alone = generated(model, TOKENS, settings, [prompt], seeds=[row])
            assert_same_row(together, row, alone)


def test_a_shared_prefix_is_computed_once() -> None:
    """Else many answers to one prompt, as in an evaluation, would pay for it again and again.

    Two whole blocks are shared; the rest of each prompt rides with its first step.
    """
    settings = GenerationSettings(decoding="static", max_new_tokens=1)  # type: ignore[arg-type]
    model, prompts = fresh_student(), prompts_with("a shared prefix")
    for batch_size, wide in ((6, [(1, 8), (6, 8 + 4)]), (1, [(1, 8), *[(1, 4 + 4)] * 2, *[(1, 8 + 4)] * 2])):
        engine = Engine(model, NEVER_STOPS, batch_size)
        with forwards_of(model) as shapes:
            engine.write(continuations(prompts, settings))
        assert [shape for shape in shapes if shape[1] > 4] == wide
        assert engine.query_tokens == sum(rows * tokens for rows, tokens in shapes)
    with forwards_of(model) as shapes:
        generated(model, NEVER_STOPS, settings, prompts_with("one prompt"))
    assert shapes[:2] == [(1, 8), (5, 4)]


@pytest.mark.parametrize("choice", [CHOICES[4], CHOICES[9]], ids=["dynamic", "klass"])
def test_dropping_idle_slots_changes_nothing(choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the last rows of a batch would continue another row's text, or be computed along with empty ones."""
    model, prompts = student(), random_prompts((1, 2, 3, 4, 5, 6, 7, 9))
    requests = continuations(prompts, settings_of(choice, max_new_tokens=24))
    compact, full = Engine(model, TOKENS, 6), Engine(model, TOKENS, 6)
    rollout = compact.write(requests)
    monkeypatch.setattr(Slots, "_keep", lambda *_: None)
    expected = full.write(requests)
    for row in range(len(prompts)):
        assert_same_row(rollout, row, expected.rows(torch.tensor([row])))
    assert compact.query_tokens < full.query_tokens


def test_what_is_generated_can_be_trained_on() -> None:
    """Else the first update on a rollout would fail: autograd saves no inference tensor."""
    model, prompts = student(), random_prompts()
    engine, settings = Engine(model, TOKENS, 2), GenerationSettings(max_new_tokens=9, temperature=1.0)
    requests = continuations(prompts, settings)
    rollouts = [engine.write(requests), *(row for _, row in engine.finished(requests))]
    rollouts += [engine.write(fillings([[7, MASK, 8, 9, MASK], [MASK, 7]], settings, MASK, 4))]
    weight = torch.ones(MASK + 1, 1, requires_grad=True)
    for rollout in rollouts:
        tensors = (getattr(rollout, field.name) for field in fields(rollout))
        assert not any(torch.is_inference(tensor) for tensor in tensors if tensor is not None)
        assert rollout.confidence is not None
        looked_up = torch.nn.functional.embedding(rollout.input_ids, weight)[..., 0]
        (looked_up * rollout.confidence).sum().backward()


def test_a_row_depends_on_its_own_seed_alone() -> None:
    """Else the order of the prompts would change the responses, or equal prompts would get equal samples."""
    settings = GenerationSettings(temperature=1.0, max_new_tokens=12)
    prompts = random_prompts()
    engine = Engine(student(), TOKENS, batch_size=2)
    forwards = engine.write(continuations(prompts, settings, [0, 1, 2, 3, 4]))
    backwards = engine.write(continuations(prompts[::-1], settings, [4, 3, 2, 1, 0]))
    for row in range(5):
        assert_same_row(forwards, row, backwards.rows(torch.tensor([4 - row])))
    twice = engine.write(continuations([prompts[0]] * 2, settings, [8, 9]))
    assert not torch.equal(twice.input_ids[0], twice.input_ids[1])


@pytest.mark.parametrize("side", ["left", "right"])
@every_prediction
def test_a_padded_batch_is_its_single_rows(side: str, prediction: str) -> None:
    """Else users who pad as they do with transformers would get other texts: padding must not move the blocks."""
    model = DiffusionLM(student(4, prediction), tiny_tokenizer(mask=True), GenerationSettings(max_new_tokens=13))
    prompts = random_prompts((3, 9, 6, 1))
    ids, mask = torch.full((4, 9), 17), torch.zeros(4, 9, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        columns = slice(9 - len(prompt), 9) if side == "left" else slice(0, len(prompt))
        ids[row, columns], mask[row, columns] = torch.tensor(prompt), 1
    together = model.generate(ids, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]))
        assert_same_row(together.rollout, row, alone.rollout)
        length = alone.sequences.shape[1]
        assert torch.equal(together.sequences[row, :length], alone.sequences[0])
        assert (together.sequences[row, length:] == model.tokens.pad_token_id).all()


def test_blocks_of_one_token_are_the_ar_models_own_decoding() -> None:
    """Else the teacher's text (off-policy controls) would not be the AR model's, nor would S = 1 be autoregression."""
    settings = GenerationSettings(max_new_tokens=20)
    prompts = random_prompts()
    rollout = generated(student(1, "shifted", "causal"), TOKENS, settings, prompts, batch_size=3)
    assert rollout.stopped.any()
    for row, prompt in enumerate(prompts):
        expected = ar_model().generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            suppress_tokens=[MASK],
            eos_token_id=list(TOKENS.stop_token_ids),
            pad_token_id=0,
        )
        assert rollout.input_ids[row, : rollout.length[row]].tolist() == expected[0].tolist()


@every_context
@torch.no_grad()
def test_a_fused_commit_is_a_separate_one(context: str) -> None:
    """Else committing a finished block together with the first step of the next would change both.

    One forward over [block 1 clean | block 2 noised] against two, each on the cached block 0; then block 3 on top.
    """
    model = student(4, "same", context)
    ids = torch.tensor(random_prompts((16,)))
    ids[:, 8:] = MASK

    def forward(cache: KVCache, begin: int, end: int, noised_from: int) -> torch.Tensor:
        position = torch.arange(end)[None]
        copy = torch.where(position < noised_from, CLEAN, 1)
        part = slice(begin, end)
        attention = Attention(model.geometry, position[:, part], copy[:, part], position, copy)
        return model.hidden(ids[:, part], attention, cache)

    fused, separate = KVCache(1, 16), KVCache(1, 16)
    for cache in (fused, separate):
        forward(cache, 0, 4, 4)
    together = forward(fused, 4, 12, 8)[:, 4:]
    forward(separate, 4, 8, 8)
    assert_close(together, forward(separate, 8, 12, 8))
    ids[:, 8:12] = torch.tensor(random_prompts((4,), seed=9))
    assert_close(forward(fused, 8, 16, 12), forward(separate, 8, 16, 12))


def test_a_fused_commit_costs_no_forward() -> None:
    """Else each finished block, and each prompt, would cost a forward more, as in the published sampler."""
    model = fresh_student()
    settings = GenerationSettings(decoding="static", max_new_tokens=16)  # type: ignore[arg-type]
    with forwards_of(model) as shapes:
        rollout = generated(model, NEVER_STOPS, settings, random_prompts((4,)))
    assert len(shapes) == int(rollout.forwards) == 16, "one a token: the prompt and the commits ride along"
    assert shapes == [(1, 8), *[(1, 4)] * 3] * 4, "a block that rides along is not computed in later steps"


def test_a_prompt_that_comes_later_disturbs_nobody() -> None:
    """Else rows in the middle of a block would wait for it, be computed again, or see another past."""
    model, prompts = fresh_student(), random_prompts((4, 7, 10))
    settings = GenerationSettings(decoding="sequential:2", max_new_tokens=6)  # type: ignore[arg-type]
    with forwards_of(model) as shapes:
        rollout = generated(model, NEVER_STOPS, settings, prompts, batch_size=2)
    assert rollout.forwards.tolist() == [3, 4, 3]
    assert shapes[3] == (1, 8), "the latecomer's two blocks, alone"
    assert [rows for rows, _ in shapes] == [2, 2, 2, 1, 2, 1, 1]
    for row, prompt in enumerate(prompts):
        assert_same_row(rollout, row, generate_row(model, prompt, settings, NEVER_STOPS, row))


def test_a_mask_token_in_a_prompt_is_given_text() -> None:
    """Else a prompt that names the mask token would be rewritten, in part, by the batched sampler alone."""
    prompts = [[7, MASK, 8, 9, 10, MASK, 11], [MASK, 7]]
    settings = GenerationSettings(max_new_tokens=7)
    rollout = generated(student(), NEVER_STOPS, settings, prompts)
    for row, prompt in enumerate(prompts):
        assert rollout.input_ids[row, : len(prompt)].tolist() == prompt
        assert (rollout.commit_step[row, : len(prompt)] == -1).all()
        assert_same_row(rollout, row, generate_row(student(), prompt, settings, NEVER_STOPS, row))


def test_a_bias_on_no_token_is_refused() -> None:
    """Else a mistyped id would change nothing, in silence."""
    for token in (-1, MASK + 1):
        with pytest.raises(UsageError, match=f"from 0 to {MASK}"):
            generated(student(), TOKENS, settings_of({"logit_bias": {token: 1.0}}), random_prompts())


def test_the_mask_token_is_never_written() -> None:
    """Else a response could hold a mask that nothing fills any more, though the raw model prefers it everywhere."""
    model = fresh_student()
    mask = torch.tensor(MASK)
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, logits: logits.index_fill(-1, mask, 99.0))
    for temperature in (0.0, 1.0, 5.0):
        rollout, visits = written(model, temperature=temperature)
        columns = torch.arange(rollout.input_ids.shape[1])
        for row in range(5):
            response = rollout.input_ids[row, (columns < rollout.length[row])]
            assert (response != MASK).all()
        assert all((logits[:, MASK] < -1e29).all() for logits in visits.values())


def test_rows_come_out_as_they_finish() -> None:
    """Else the server would hold back short answers until the longest is done; one slot must serve many prompts."""
    prompts = random_prompts((4, 4, 4))
    settings = GenerationSettings(max_new_tokens=24, temperature=1.0)
    engine = Engine(student(), TOKENS, batch_size=2)
    order, lengths = [], {}
    for index, row in engine.finished(continuations(prompts, settings)):
        order.append(index)
        lengths[index] = int(row.forwards)
    assert sorted(order) == [0, 1, 2]
    first_two = [index for index in order if index < 2]
    assert lengths[first_two[0]] <= lengths[first_two[1]]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5, 8])
def test_the_length_cap_is_exact(max_new_tokens: int) -> None:
    """Else a response would be longer than asked for, or its record would count what lies behind the cap."""
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=1.0)
    prompts: Sequence[Sequence[int]] = random_prompts()
    rollout = generated(student(), NEVER_STOPS, settings, prompts, batch_size=2)
    assert (rollout.length - rollout.prompt_length == max_new_tokens).all()
    assert torch.equal(rollout.end, -(-rollout.length // 4) * 4)
    assert not rollout.stopped.any()


def test_a_streamer_sees_drafts_that_only_grow() -> None:
    """Else the live view would show text that is not what is returned, or change tokens that are fixed."""

    class Streamer:
        def __init__(self) -> None:
            self.drafts: list[torch.Tensor] = []
            self.final: torch.Tensor | None = None
            self.ended = False

        def put_draft(self, ids: torch.Tensor) -> None:
            self.drafts.append(ids)

        def put(self, ids: torch.Tensor) -> None:
            self.final = ids

        def end(self) -> None:
            self.ended = True

    model = DiffusionLM(student(), tiny_tokenizer(mask=True), GenerationSettings(max_new_tokens=13))
    streamer = Streamer()
    prompt = random_prompts((6,))[0]
    output = model.generate([prompt], streamer=streamer)
    assert streamer.ended
    assert streamer.final is not None
    assert streamer.final.tolist() == output.sequences[0, 6:].tolist()
    assert len(streamer.drafts) == int(output.rollout.forwards)
    for draft in streamer.drafts:
        known = draft != MASK
        assert torch.equal(draft[known], output.rollout.input_ids[0, 6 : 6 + len(draft)][known])
