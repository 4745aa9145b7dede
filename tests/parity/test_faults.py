"""One regression test for each fault of the published code (docs/method.md)."""

import io
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import opdlm
import rollouts
from opdlm.config import DistillSettings, GenerationSettings
from opdlm.core.divergence import forward_kl
from opdlm.core.layout import Attention
from opdlm.core.types import Geometry, LossSum, Rollout, StateBatch
from opdlm.distill.loop import Trainer
from opdlm.distill.losses import divergence_loss
from opdlm.distill.methods import method_of
from opdlm.distill.pair import Pair
from opdlm.distill.step import Batch, Plan
from opdlm.distill.teacher import Teacher
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations
from rollouts import fresh_student, pair_of, random_prompts, student, written
from support import MASK, assert_close, tiny_tokenizer


def states_of(rollout: Rollout, selection: str = "all", size: int = 4, **options: object) -> StateBatch:
    return rollouts.states_of(rollout, Geometry(size), selection, **options)  # type: ignore[arg-type]


def loss_of(model: BlockDiffusionModel, rollout: Rollout, states: StateBatch) -> tuple[LossSum, list[torch.Tensor]]:
    """The loss against another random model, and its gradients."""
    pair = pair_of(model)
    loss = divergence_loss(pair, forward_kl, states, rollout, pair.teacher.targets(rollout))
    return loss, list(torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True))


def trainer(model: BlockDiffusionModel, prompts: Sequence[Sequence[int]], **settings: object) -> Trainer:
    ramp = {"start": 12, "end": 12, "rollouts": 0}
    common = {
        "prompts_per_rollout": 4,
        "rows_per_update": 2,
        "response_length": ramp,
        "optimiser": {"learning_rate": 1e-3},
    }
    chosen = DistillSettings(**(common | settings))  # type: ignore[arg-type]
    return Trainer(pair_of(model), prompts, chosen)


def test_nothing_is_edited_in_place() -> None:
    """Fault: the teacher's causal mask was written into the student's before backward, so that a checkpointed layer was
    recomputed under it. Here: the teacher runs between forward and backward, masks and ids stay as they were, and
    gradients with recomputation are those without.
    """
    model = fresh_student()
    rollout, _ = written(model)
    states = states_of(rollout)
    values = [getattr(record, f.name) for record in (rollout, states) for f in fields(record)]
    tensors = [value for value in values if value is not None]
    kept = [tensor.clone() for tensor in tensors]
    attention = Attention.within(model.geometry, states.position_ids, states.stream, states.document)
    mask = attention.dense().clone()
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.checkpoint_activations()
            model.train()
        teacher = Teacher(student(seed=3))
        targets = teacher.targets(rollout)
        loss = divergence_loss(pair_of(model, teacher), forward_kl, states, rollout, targets)
        teacher.targets(rollout)
        Teacher(model).targets(rollout)  # with an adapter, student and teacher are the same module
        gradients.append(torch.autograd.grad(loss.total, [p for p in model.parameters() if p.requires_grad]))
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, kept, strict=True))
    assert torch.equal(attention.dense(), mask)


@pytest.mark.parametrize("prompt_length", [4, 5, 6, 7])
def test_training_blocks_are_decoding_blocks(prompt_length: int) -> None:
    """Fault: decoding counted blocks from position 0 and training from the first response token, so that training saw
    states that decoding never visits unless the prompt's length was a multiple of the block size.
    """
    model = student()
    rollout, visits = written(model, random_prompts((prompt_length,)))
    starts = {start for _, start, _ in visits}
    states = states_of(rollout)
    noised = states.stream[0] > 0
    assert set((states.position_ids[0, noised] // 4 * 4).tolist()) == starts
    assert min(starts) == prompt_length // 4 * 4
    first = noised & (states.position_ids[0] < prompt_length)
    kept = states.input_ids[0, first]
    assert torch.equal(kept, rollout.input_ids[0, states.position_ids[0, first]]), "the prompt's tail is visible"


def test_padding_is_in_no_loss_and_no_count() -> None:
    """Fault: rows cut at the length cap trained on their padding and counted it, up to five times too much.

    A short and a long row together are the short and the long row alone, whatever stands in the padding.
    """
    model = fresh_student()
    rollout, _ = written(model)
    assert (rollout.end < rollout.input_ids.shape[1]).any()
    states = states_of(rollout, "one_per_block")
    loss, gradients = loss_of(model, rollout, states)
    total, count = torch.tensor(0.0), 0.0
    for row in range(len(rollout.length)):
        alone = rollout.rows(torch.tensor([row]))
        part = states_of(alone, "one_per_block", seeds=torch.tensor([row]))
        one, _ = loss_of(model, alone, part)
        total, count = total + one.total.detach(), count + float(one.count)
    assert_close(loss.total.detach(), total, atol=1e-4, rtol=1e-4)
    assert float(loss.count) == count
    columns = torch.arange(rollout.input_ids.shape[1])
    assert (states.position < rollout.length[states.row]).all()
    garbage = torch.where(columns < rollout.end[:, None], rollout.input_ids, 55)
    spoilt = replace(rollout, input_ids=garbage)
    again, others = loss_of(model, spoilt, states_of(spoilt, "one_per_block"))
    assert torch.equal(again.total, loss.total)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True) if a is not None)


def test_metrics_count_response_tokens_alone() -> None:
    """The same fault in the numbers: padding, prompts and what lies behind the end are no response tokens."""
    work = trainer(fresh_student(), random_prompts((1, 3, 4, 6)), rollouts=1)
    rollout = method_of(work.settings)(work.pair, 0).write(work.batch(0)).rollout
    metrics = work.train()
    tokens = int((rollout.length - rollout.prompt_length).sum())
    assert tokens < 4 * 12
    assert metrics.tokens_trained == metrics.total.tokens_rolled_out == tokens
    assert metrics.tokens_per_forward == pytest.approx(tokens / int(rollout.forwards.sum()))


def test_text_is_never_made_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: responses were stored as text and tokenised again, so that commit steps slipped against tokens.

    A conversion runs with a tokenizer that decodes all as nonsense (people are shown texts) and encodes prompts only.
    """
    fresh_student().model.save_pretrained(tmp_path / "ar_model")
    tiny_tokenizer().save_pretrained(tmp_path / "ar_model")
    encoded = []
    encode = PreTrainedTokenizerFast._encode_plus

    def nonsense(*_: object, **__: object) -> str:
        return "?"

    def watch(self: PreTrainedTokenizerFast, text: str, *args: object, **kwargs: object) -> object:
        encoded.append(text)
        return encode(self, text, *args, **kwargs)  # type: ignore[arg-type]

    for name in ("decode", "batch_decode", "_decode", "convert_ids_to_tokens"):
        monkeypatch.setattr(PreTrainedTokenizerFast, name, nonsense)
    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", watch)
    ramp = {"start": 8, "end": 8, "rollouts": 0}
    prompts = ["abc", "2+2="]
    opdlm.convert(
        str(tmp_path / "ar_model"),
        prompts,
        tmp_path / "run",
        device="cpu",
        prompts_per_rollout=2,
        rows_per_update=2,
        response_length=ramp,
    )
    assert set(encoded) == set(prompts)


@pytest.mark.parametrize("selection", ["all", "one_per_block", "random_mask"])
def test_the_end_of_sequence_is_supervised(selection: str) -> None:
    """Fault: the end-of-sequence token was never in the loss. It is, in each row that stops, unless switched off."""
    rollout, _ = written(student())
    stopped = rollout.stopped.nonzero()[:, 0]
    assert 0 < len(stopped) < len(rollout.stopped)
    ends = {(row, int(rollout.length[row]) - 1) for row in stopped.tolist()}

    def supervised(**options: object) -> set[tuple[int, int]]:
        found = set()
        for seed in range(20 if selection != "all" else 1):  # some states have the end fixed already
            seeds = torch.arange(len(rollout.length)) + 100 * seed
            states = states_of(rollout, selection, seeds=seeds, **options)
            found |= set(zip(states.row.tolist(), states.position.tolist(), strict=True))
        return found

    with_ends, without = supervised(), supervised(supervise_end=False)
    assert with_ends - without == ends
    assert all(position < int(rollout.length[row]) for row, position in with_ends), "nothing behind the end"


def test_the_teacher_reads_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the teacher ran the doubled sequence, once a state. Here: one causal pass over prompt and response,
    however many states the row has; its cost is counted as that.
    """
    seen: list[tuple[int, ...]] = []
    for selection in ("one_per_block", "all"):
        work = trainer(fresh_student(), random_prompts((1, 3, 4, 6)), states=selection, rollouts=1)
        inner, calls = work.pair.teacher.model, []
        alone, sharing = inner.causal_hidden, inner.hidden

        def count(ids: torch.Tensor, attention: Attention | None = None) -> torch.Tensor:
            calls.append(ids)  # noqa: B023
            if attention is None:
                return alone(ids)  # noqa: B023
            assert attention.geometry == Geometry(1, context="causal")
            return sharing(ids, attention)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(inner, "causal_hidden", count)
            patched.setattr(inner, "hidden", count)
            metrics = work.train()
        assert len(calls) == 2, "each row in one pass: two updates of two rows"
        assert all(len(ids) <= 2 for ids in calls)
        assert all(ids.shape[1] <= 18 for ids in calls), "prompt and response, not doubled: at most 6 + 12"
        seen.append(tuple(ids.numel() for ids in calls))
        parameters = sum(p.numel() for p in inner.parameters()) - inner.model.get_input_embeddings().weight.numel()
        assert metrics.flops.teacher == 2 * parameters * sum(seen[-1])
    assert seen[0] == seen[1]


def test_the_head_sees_masked_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: logits over the vocabulary at every position of the doubled row, in float32, twice."""
    model = fresh_student()
    rollout, _ = written(model)
    states = states_of(rollout)
    rows: list[int] = []
    logits_of = BlockDiffusionModel.logits_of

    def count(self: BlockDiffusionModel, outputs: torch.Tensor) -> torch.Tensor:
        rows.append(outputs.shape[:-1].numel())
        return logits_of(self, outputs)

    monkeypatch.setattr(BlockDiffusionModel, "logits_of", count)
    loss_of(model, rollout, states)
    masked = len(states.row)
    assert sum(rows) == 2 * masked, "student and teacher, at supervised positions"
    assert masked < states.input_ids.numel() / 2


def test_weights_move_through_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a full checkpoint was written and read again at each rollout. The sampler uses the weights that train."""
    model = fresh_student()
    work = trainer(model, random_prompts((1, 3, 4, 6)), rollouts=2, optimiser={"learning_rate": 0.05})
    written_files: list[str] = []

    def refuse(path: object, mode: str = "r", *args: object, **kwargs: object) -> object:
        if any(letter in mode for letter in "wax+"):
            written_files.append(str(path))
        return opened(path, mode, *args, **kwargs)  # type: ignore[call-overload]

    opened = io.open
    texts: list[Rollout] = []
    method = method_of(work.settings)

    def sampled(pair: Pair, index: int) -> Plan:
        plan = method(pair, index)
        texts.append(plan.write(Batch(random_prompts((5,)), [1])).rollout)
        return plan

    work.method = sampled
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        for module in ("builtins", "io"):
            patched.setattr(f"{module}.open", refuse)
        patched.setattr(torch, "save", None)
        patched.setattr("safetensors.torch.save_file", None)
        work.train()
    assert written_files == []
    assert not list(tmp_path.iterdir())
    first, second = texts
    assert not torch.equal(first.input_ids, second.input_ids), "the same prompt and seed, but the weights have moved"


@pytest.mark.parametrize("size", [4, 8])
def test_static_decoding_writes_a_token_a_forward(size: int) -> None:
    """Fault: a separate forward committed each finished block: S / (S + 1) tokens a forward, 0.8 at S = 4."""
    settings = GenerationSettings(decoding="static", max_new_tokens=96)  # type: ignore[arg-type]
    model = student(size)
    forwards = []
    engine = Engine(model, SpecialTokens(MASK, 0, ()), observer=lambda seen: forwards.append(seen))
    rollout = engine.write(continuations(random_prompts((8, 16)), settings))
    tokens = rollout.length - rollout.prompt_length
    assert (tokens / rollout.forwards >= 1.0).all()
    assert len(forwards) == int(rollout.forwards.max()), "what the record says is what the model computed"
