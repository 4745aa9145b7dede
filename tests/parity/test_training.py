"""Training sees what decoding visits; its loss and gradient do not depend on how the work is cut."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from opdlm.config import DistillSettings, OptimiserSettings
from opdlm.core.divergence import forward_kl
from opdlm.core.layout import Attention
from opdlm.core.types import Geometry, Rollout, StateBatch
from opdlm.distill import losses, pair
from opdlm.distill.methods import METHODS
from opdlm.distill.rollout import Written
from opdlm.distill.step import Batch, StepCounts, training_step
from opdlm.distill.teacher import Teacher
from opdlm.distill.update import Updater
from opdlm.models.adapter import adapter_off, add_adapter, merged
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.parts import input_embedding
from opdlm.parallel.ranks import OneProcess
from rollouts import TOKENS, fresh_student, pair_of, random_prompts, states_of, student, written
from support import MASK, assert_close, tiny_model

every_geometry = pytest.mark.parametrize(
    "geometry",
    [Geometry(size, p, c) for size in (3, 4) for p in ("same", "shifted") for c in ("block", "causal")],  # type: ignore[arg-type]
    ids=lambda g: f"{g.block_size}-{g.prediction}-{g.context}",
)


def student_logits(model: BlockDiffusionModel, states: StateBatch) -> torch.Tensor:
    """[M, V] of the packed training rows."""
    attention = Attention.within(model.geometry, states.position_ids, states.stream, states.document)
    return model.logits(model.hidden(states.input_ids, attention)[states.sequence, states.predictor])


def steps_of(rollout: Rollout, states: StateBatch, size: int) -> list[int]:
    """[M] the step of the state that each supervised position belongs to: the first step of what is masked there."""
    steps: dict[tuple[int, int, int], int] = {}
    masked = (states.input_ids == MASK) & (states.stream > 0)
    for sequence, column in masked.nonzero().tolist():
        row, position = int(states.document[sequence, column]), int(states.position_ids[sequence, column])
        state = row, int(states.stream[sequence, column]), position // size
        steps[state] = min(steps.get(state, 99), int(rollout.commit_step[row, position]))
    found = []
    for row, sequence, predictor, position in zip(
        *(t.tolist() for t in (states.row, states.sequence, states.predictor, states.position)), strict=True
    ):
        streams = [int(states.stream[sequence, predictor])]
        if streams == [0]:  # a shifted block's first token is predicted by the clean text: in every state of the block
            streams = [c for c in range(1, 9) if (row, c, position // size) in steps]
        found.append(steps[row, streams[0], position // size])
    return found


@every_geometry
@torch.no_grad()
def test_a_packed_row_is_what_the_sampler_saw(geometry: Geometry) -> None:
    """Else training would see states, or a view of them, that decoding never meets (the published code's geometry).

    Prompts of 1, 3, 4, 6 and 9 tokens, every visited state of every block, logits against logits; then the same for the
    states that `one_per_block` and `one_per_rollout` choose. A document alone in its sequence, and two or more in each.
    """
    model = student(geometry.block_size, geometry.prediction, geometry.context)
    rollout, visits = written(model)
    assert (rollout.prompt_length % geometry.block_size != 0).any()
    for selection, capacity in (("all", 0), ("all", 200), ("one_per_block", 100), ("one_per_rollout", 100)):
        states = states_of(rollout, geometry, selection, capacity=capacity)
        logits = student_logits(model, states)
        steps = steps_of(rollout, states, geometry.block_size)
        for index, step_ in enumerate(steps):
            row, position = int(states.row[index]), int(states.position[index])
            start = position // geometry.block_size * geometry.block_size
            if geometry.prediction == "shifted" and position == start:
                # Its logits come from the clean text: the same in every step in which it is still masked.
                step_ = int(rollout.commit_step[row, position])
            assert_close(logits[index], visits[row, start, step_][position - start])
        if selection == "all":
            response = (rollout.commit_step >= 0) & (
                torch.arange(rollout.commit_step.shape[1]) < rollout.length[:, None]
            )
            assert len(steps) == int((rollout.commit_step[response] + 1).sum()), "a visited state is missing"


@every_geometry
def test_no_gradient_to_later_blocks_or_other_streams(geometry: Geometry) -> None:
    """Else a state would read its own answer. By gradient: a leak of any size is a nonzero one.

    The other way round too: every masked position uses its whole own block, the tokens to its right included.
    Documents share sequences here, and see nothing of each other either.
    """
    model, size = student(geometry.block_size, geometry.prediction, geometry.context), geometry.block_size
    rollout, _ = written(model)
    states = states_of(rollout, geometry, "all", capacity=200)
    assert 1 < len(states.input_ids) < len(rollout.length)
    embedded: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        embedded.append(output)

    handle = input_embedding(model.model).register_forward_hook(keep)
    logits = student_logits(model, states)
    handle.remove()
    direction = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(0))
    for index in range(0, len(logits), max(1, len(logits) // 12)):
        sequence, column = int(states.sequence[index]), int(states.predictor[index])
        (gradient,) = torch.autograd.grad(logits[index, :MASK] @ direction[:MASK], embedded[0], retain_graph=True)
        touched = (gradient != 0).any(-1)
        position, stream = states.position_ids[sequence], states.stream[sequence]
        own = position // size == position[column] // size
        if stream[column] == 0:  # the clean predictor of a shifted block's first token
            last = int(states.position[index])
            allowed = (stream == 0) & (position < last)
        else:
            before = (stream == 0) & (position < position[column] // size * size)
            allowed = ((stream == stream[column]) & own) | before
        assert torch.equal(touched[sequence], allowed & (states.document[sequence] == states.row[index]))
        touched[sequence] = False
        assert not touched.any(), "sequences of the batch see each other"


def test_the_teacher_says_what_the_ar_model_says() -> None:
    """Else the target of token i would be another position's, or would depend on padding behind the text."""
    model = student()
    rollout, _ = written(model)
    teacher = Teacher(model)
    targets = teacher.targets(rollout)
    for row in range(5):
        length, begin = int(rollout.length[row]), int(rollout.prompt_length[row])
        expected = model.model(input_ids=rollout.input_ids[row : row + 1, :length]).logits[0, begin - 1 : length - 1]
        positions = torch.arange(begin, length)
        found = teacher.logits(targets, torch.full_like(positions, row), positions)
        assert_close(found[:, :MASK], expected[:, :MASK].detach())


def test_the_converted_ar_model_has_no_loss() -> None:
    """Else teacher and student would be compared one token apart: with S = 1 and the shift, they are the same model."""
    model = student(1, "shifted", "causal")
    rollout, _ = written(model)
    states = states_of(rollout, model.geometry, "one_per_block")
    teacher = Teacher(model)
    pair = pair_of(model, teacher)
    loss = losses.divergence_loss(pair, forward_kl, states, rollout, teacher.targets(rollout))
    assert loss.count == (rollout.length - rollout.prompt_length).sum()
    assert abs(float(loss.total.detach())) < 1e-4


# --- packing ------------------------------------------------------------------------------------------------------


def predicting(model: BlockDiffusionModel, states: StateBatch) -> torch.Tensor:
    """[M, D] hidden states at the predicting positions."""
    attention = Attention.within(model.geometry, states.position_ids, states.stream, states.document)
    return model.hidden(states.input_ids, attention)[states.sequence, states.predictor]


@pytest.mark.parametrize("selection", ["all", "one_per_block"])
@pytest.mark.parametrize("capacity", [0, 150, math.inf])
def test_a_packed_sequence_is_each_document_alone(selection: str, capacity: float) -> None:
    """Else a text would be trained, and taught, differently with others beside it: values, loss and gradient."""
    model, teacher = fresh_student(), Teacher(student(seed=3))
    rollout, _ = written(model)
    pair = pair_of(model, teacher)
    together = states_of(rollout, model.geometry, selection, capacity=capacity)
    assert capacity == 0 or len(together.input_ids) < 5
    loss = losses.divergence_loss(pair, forward_kl, together, rollout, teacher.targets(rollout))
    loss.total.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    total, hidden = 0.0, predicting(model, together).detach()
    for row in range(5):
        alone = rollout.rows(torch.tensor([row]))
        states = states_of(alone, model.geometry, selection, torch.tensor([row]))  # type: ignore[arg-type]
        assert len(states.input_ids) == 1
        assert_close(hidden[together.row == row], predicting(model, states).detach())
        one = losses.divergence_loss(pair, forward_kl, states, alone, teacher.targets(alone))
        one.total.backward()
        total += float(one.total.detach())
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)
    assert_same_gradients(gradients, [p.grad for p in model.parameters() if p.grad is not None])


def test_the_teacher_reads_packed_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its targets would depend on who shares a sequence, or hold padding; its cost is what it computed."""
    model = student()
    rollout, _ = written(model)
    teacher = Teacher(model)
    apart = [teacher.targets(rollout.rows(torch.tensor([row]))) for row in range(5)]
    for capacity in (0, 60, math.inf):
        monkeypatch.setattr(BlockDiffusionModel, "packing_capacity", capacity)
        targets = teacher.targets(rollout)
        assert len(targets.hidden) == (rollout.length - rollout.prompt_length).sum()
        assert_close(targets.hidden, torch.cat([one.hidden for one in apart]))
        tokens = int(rollout.length.sum())
        assert tokens <= targets.query_tokens <= 5 * int(rollout.length.max())
        assert capacity != math.inf or targets.query_tokens == tokens


def test_packed_sequences_hold_less_padding_than_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would be won: tokens computed, against rows that are padded to the longest; no padding at all where
    one sequence may hold everything.
    """
    model = student()
    rollout, _ = written(model, random_prompts((40, 3, 4, 6, 9)))
    _, counts = step(model, rollout, states="one_per_block")
    rows = [states_of(rollout.rows(torch.tensor([row])), model.geometry, "one_per_block") for row in range(5)]
    needed = sum(states.input_ids.numel() for states in rows)
    padded = 5 * max(states.input_ids.numel() for states in rows)
    assert needed < counts.student_query_tokens < 0.8 * padded
    assert counts.teacher_query_tokens < 0.8 * 5 * int(rollout.length.max())
    assert (
        BlockDiffusionModel(tiny_model(attention="flex_attention"), model.geometry, MASK).packing_capacity == math.inf
    )
    monkeypatch.setattr(BlockDiffusionModel, "packing_capacity", math.inf)
    _, counts = step(model, rollout, states="one_per_block")
    assert counts.student_query_tokens == needed
    assert counts.teacher_query_tokens == int(rollout.length.sum())


# --- the step -----------------------------------------------------------------------------------------------------


class Recorded(Updater):
    """An updater that keeps the gradients instead of using them."""

    def __init__(self, model: BlockDiffusionModel) -> None:
        super().__init__(list(model.parameters()), OptimiserSettings(), 1)
        self.gradients: list[list[torch.Tensor]] = []

    def update(self, loss: float, rows: Sequence[int]) -> float:
        self.gradients.append([p.grad.clone() for p in self.parameters if p.grad is not None])
        self.optimiser.zero_grad()
        return 0.0


def step(
    model: BlockDiffusionModel,
    rollout: Rollout,
    teacher: Teacher | None = None,
    method: str = "opd",
    **settings: object,
) -> tuple[list[torch.Tensor], StepCounts]:
    """Gradients of one update on all rows of `rollout`."""
    rows = len(rollout.length)
    chosen = DistillSettings(prompts_per_rollout=rows, rows_per_update=rows, **settings)  # type: ignore[arg-type]
    pair = pair_of(model, teacher)
    plan = METHODS[method](chosen, pair, 0)
    plan = replace(plan, write=lambda batch: Written(rollout, 0), targets=pair.teacher.targets)
    updater = Recorded(model)
    counts = training_step(Batch([[1]] * rows, range(rows)), plan, pair, updater, chosen, OneProcess())
    assert len(updater.gradients) == 1
    return updater.gradients[0], counts


def assert_same_gradients(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], scale: float = 1.0) -> None:
    assert any(g.abs().max() > 1e-3 for g in expected), "there is nothing to compare"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other * scale, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("normalisation", ["global", "per_row_mean"])
@pytest.mark.parametrize("method", ["opd", "sft"])
def test_micro_batches_change_nothing(method: str, normalisation: str) -> None:
    """Else the result would depend on the memory of the machine, through a mean of means over unequal rows."""
    model = fresh_student()
    rollout, _ = written(model)
    whole, counts = step(model, rollout, method=method, normalisation=normalisation)
    for rows in (1, 2):
        parts, others = step(model, rollout, method=method, normalisation=normalisation, rows_per_micro_batch=rows)
        assert_same_gradients(parts, whole)
        assert others.losses == pytest.approx(counts.losses, rel=1e-4)
        assert others.positions_supervised == counts.positions_supervised


def test_normalisations_are_what_they_say() -> None:
    """Else `per_row_mean` (the published weighting) and the mean over tokens would be mixed up."""
    model, teacher = fresh_student(), Teacher(student(seed=3))
    rollout, _ = written(model)
    states = states_of(rollout, model.geometry, "one_per_block")
    totals, counts = [], []
    per_position = ("row", "sequence", "predictor", "position", "weight")
    for row in range(5):
        mine = states.row == row
        part = replace(states, **{name: getattr(states, name)[mine] for name in per_position})
        loss = losses.divergence_loss(pair_of(model, teacher), forward_kl, part, rollout, teacher.targets(rollout))
        totals.append(float(loss.total.detach()))
        counts.append(int(loss.count))
    assert len(set(counts)) > 1
    _, by_token = step(model, rollout, teacher)
    _, by_row = step(model, rollout, teacher, normalisation="per_row_mean")
    assert by_token.losses[0] == pytest.approx(sum(totals) / sum(counts), rel=1e-4)
    assert by_row.losses[0] == pytest.approx(sum(t / c for t, c in zip(totals, counts, strict=True)) / 5, rel=1e-4)
    assert by_token.positions_supervised == sum(counts)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd:0.3", "mixed_kl:0.4"])
def test_top_k_of_everything_is_full(divergence: str) -> None:
    """Else the settings `top_k` and `divergence` would not compose."""
    model = fresh_student()
    rollout, _ = written(model)
    full, _ = step(model, rollout, divergence=divergence)
    restricted, _ = step(model, rollout, divergence=divergence, top_k=MASK + 1)
    assert_same_gradients(restricted, full)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the size of the vocabulary would change the gradient; with tied embeddings too."""
    for tied in (False, True):
        model = fresh_student(tie_word_embeddings=tied)
        rollout, _ = written(model)
        whole, _ = step(model, rollout)
        monkeypatch.setattr(pair, "CHUNK_FLOATS", 5 * (MASK + 1))
        parts, _ = step(model, rollout)
        monkeypatch.undo()
        assert_same_gradients(parts, whole)


def test_gradient_checkpointing_changes_nothing_and_happens() -> None:
    """Else memory would be saved at the price of another gradient, or not at all."""
    model, calls = fresh_student(), []
    rollout, _ = written(model)
    mlp = model.model.get_submodule("model.layers.0.mlp")
    mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    plain, _ = step(model, rollout)
    assert calls == [True]
    model.checkpoint_activations()
    assert_same_gradients(step(model, rollout)[0], plain)
    assert calls == [True] * 3, "the layer was not computed a second time in the backward pass"
    written(model)  # the sampler's cache still works afterwards


def test_an_adapter_has_the_ar_model_inside() -> None:
    """Else a LoRA run would be taught by itself, would train nothing, or would save another model than it trained."""
    model = fresh_student()
    rollout, _ = written(model)
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    plain = Teacher(model).targets(rollout).hidden
    add_adapter(model.model, 2)
    for name, p in model.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    assert (Teacher(model).targets(rollout).hidden - plain).abs().max() > 0.01
    teacher = Teacher(model, partial(adapter_off, model.model))
    assert torch.equal(teacher.targets(rollout).hidden, plain)
    gradients, _ = step(model, rollout, teacher)
    trained = [name for name, p in model.model.named_parameters() if p.requires_grad]
    assert all("lora" in name for name in trained)
    assert len(gradients) == len(trained)
    assert all(g.abs().max() > 0 for g in gradients)
    folded = merged(model.model)
    assert folded.state_dict().keys() == before.keys()
    assert_close(folded.base_model(rollout.input_ids).last_hidden_state, model.causal_hidden(rollout.input_ids))


def test_the_tokens_named_stop_are_the_ones_that_stop() -> None:
    """Else the rollouts of this file would all end at the cap, and ends would never be tested."""
    rollout, _ = written(student())
    ends = rollout.input_ids.gather(1, rollout.length[:, None] - 1)[:, 0]
    assert torch.equal(torch.isin(ends, torch.tensor(TOKENS.stop_token_ids)), rollout.stopped)
    assert 0 < rollout.stopped.sum() < 5
