"""The fast sampler against the slow one, against itself in other batches, and against transformers."""

from collections.abc import Sequence

import pytest
import torch

from opdlm.config import GenerationSettings
from opdlm.core.layout import CLEAN, Attention
from opdlm.core.types import NEVER, Geometry, Rollout
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.cache import KVCache
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.api import DiffusionLM
from opdlm.sampling.engine import Engine
from opdlm.sampling.reference import generate_row
from rollouts import TOKENS, arlm, fresh_student, random_prompts, student, written
from support import MASK, assert_close, tiny_model, tiny_tokenizer

every_prediction = pytest.mark.parametrize("prediction", ["same", "shifted"])
every_context = pytest.mark.parametrize("context", ["block", "causal"])


def assert_same_row(rollout: Rollout, row: int, expected: Rollout) -> None:
    """Token for token: ids, rounds, lengths and forwards of `row` and of the one row of `expected`."""
    end = int(expected.end)
    assert int(rollout.end[row]) == end
    assert rollout.input_ids[row, :end].tolist() == expected.input_ids[0, :end].tolist()
    assert rollout.commit_round[row, :end].tolist() == expected.commit_round[0, :end].tolist()
    for name in ("prompt_length", "length", "stopped", "forwards"):
        assert getattr(rollout, name)[row] == getattr(expected, name)[0], name
    assert (rollout.commit_round[row, end:] == NEVER).all()


@every_prediction
@every_context
@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_engine_is_the_reference(size: int, context: str, prediction: str) -> None:
    """Else the cache, the fused commit, the batch or a replaced row would change what is written, or its record.

    Four prompts through two slots: rows finish at different times and their slots are filled again.
    """
    model, prompts = student(size, prediction, context), random_prompts((1, 3, 4, 6))
    for decoding, temperature in (
        ("static", 0),
        ("static:2", 1),
        ("sequential:3", 1),
        ("dynamic:0.5", 0),
        ("dynamic", 1),
    ):
        settings = GenerationSettings(decoding=decoding, temperature=temperature, max_new_tokens=11, top_p=0.95)  # type: ignore[arg-type]
        rollout = Engine(model, TOKENS, settings, batch_size=2).generate(prompts, seeds=[7, 5, 3, 1])
        for row, prompt in enumerate(prompts):
            assert_same_row(rollout, row, generate_row(model, prompt, settings, TOKENS, [7, 5, 3, 1][row]))


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_the_engine_is_the_reference_with_sliding_windows(name: str) -> None:
    """Else cached keys outside a layer's window would be read, or those inside would not."""
    model = BlockDiffusionModel(tiny_model(name, initializer_range=0.35), Geometry(4), MASK)
    settings = GenerationSettings(temperature=1.0, max_new_tokens=17, decoding="dynamic:0.5")  # type: ignore[arg-type]
    never = SpecialTokens(MASK, 0, ())
    prompts = random_prompts((9, 2))
    rollout = Engine(model, never, settings).generate(prompts)
    for row, prompt in enumerate(prompts):
        assert_same_row(rollout, row, generate_row(model, prompt, settings, never, row))


def test_the_models_are_not_degenerate() -> None:
    """Else the tests of this file would compare rows of one repeated token, and all would pass."""
    rollout, _ = written(student(), max_new_tokens=40)
    response = (rollout.commit_round >= 0) & (rollout.commit_round < NEVER)
    assert len(rollout.input_ids[response].unique()) > 20
    assert rollout.commit_round[response].unique().tolist() == [0, 1, 2, 3]
    assert 0 < rollout.stopped.sum() < len(rollout.stopped)


def test_batch_of_one_is_a_batch_of_many() -> None:
    """Else a response would depend on who else is asking."""
    model = student()
    together, _ = written(model, batch_size=5)
    for batch_size in (1, 2):
        other, _ = written(model, batch_size=batch_size)
        for row in range(5):
            assert_same_row(other, row, together.rows(torch.tensor([row])))


def test_a_row_depends_on_its_own_seed_alone() -> None:
    """Else the order of the prompts would change the responses, or equal prompts would get equal samples."""
    settings = GenerationSettings(temperature=1.0, max_new_tokens=12)
    prompts = random_prompts()
    engine = Engine(student(), TOKENS, settings, batch_size=2)
    forwards = engine.generate(prompts, seeds=[0, 1, 2, 3, 4])
    backwards = engine.generate(prompts[::-1], seeds=[4, 3, 2, 1, 0])
    for row in range(5):
        assert_same_row(forwards, row, backwards.rows(torch.tensor([4 - row])))
    twice = engine.generate([prompts[0]] * 2, seeds=[8, 9])
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


def test_blocks_of_one_token_are_the_arlms_own_decoding() -> None:
    """Else the teacher's text (off-policy controls) would not be the ARLM's, nor would S = 1 be autoregression."""
    settings = GenerationSettings(max_new_tokens=20)
    prompts = random_prompts()
    rollout = Engine(student(1, "shifted", "causal"), TOKENS, settings, 3).generate(prompts)
    assert rollout.stopped.any()
    for row, prompt in enumerate(prompts):
        expected = arlm().generate(
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
    """Else committing a finished block together with the first round of the next would change both.

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
    """Else each finished block would cost a forward more, as in the published sampler."""
    model, calls = fresh_student(), []
    model.model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    settings = GenerationSettings(decoding="static", max_new_tokens=16)  # type: ignore[arg-type]
    rollout = Engine(model, SpecialTokens(MASK, 0, ()), settings).generate(random_prompts((4,)))
    assert len(calls) == 1 + int(rollout.forwards) == 17, "one for the prompt, then one a token"


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
    engine = Engine(student(), TOKENS, settings, batch_size=2)
    order, lengths = [], {}
    for index, row in engine.finished_rows(prompts):
        order.append(index)
        lengths[index] = int(row.forwards)
    assert sorted(order) == [0, 1, 2]
    first_two = [index for index in order if index < 2]
    assert lengths[first_two[0]] <= lengths[first_two[1]]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 5, 8])
def test_the_length_cap_is_exact(max_new_tokens: int) -> None:
    """Else a response would be longer than asked for, or its record would count what lies behind the cap."""
    never = SpecialTokens(MASK, 0, ())
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=1.0)
    prompts: Sequence[Sequence[int]] = random_prompts()
    rollout = Engine(student(), never, settings, 2).generate(prompts)
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
