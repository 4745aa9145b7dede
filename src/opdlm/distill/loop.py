"""The training loop: rollouts one after the other, metrics, checkpoints, resuming."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

from opdlm.config import DistillSettings, as_text
from opdlm.core.schedules import planned_updates
from opdlm.distill.methods import Method, method_of
from opdlm.distill.opinions import Looker
from opdlm.distill.pair import Pair
from opdlm.distill.saving import Writer, checkpoint_bytes, copied
from opdlm.distill.sharing import shared
from opdlm.distill.step import Batch, Begun, StepCounts, training_step
from opdlm.distill.update import Updater
from opdlm.errors import RolloutServerError
from opdlm.models.adapter import adapter_state
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import peak_process_bytes, room_for
from opdlm.models.drafting import DraftingModel
from opdlm.models.snapshot import snapshot
from opdlm.parallel.ranks import OneProcess, Ranks
from opdlm.records.metrics import Flops, StepMetrics, Totals
from opdlm.records.run_folder import RunFolder
from opdlm.records.trajectory import Trajectory
from opdlm.records.worth import Validation

OnStep = Callable[[StepMetrics], None]
Evaluate = Callable[[BlockDiffusionModel], dict[str, Any]]
SaveModel = Callable[[BlockDiffusionModel], Callable[[Path], None]]


@dataclass(frozen=True)
class _Place:
    """Where a run is. Replaced as a whole, so that it is true whenever an interruption comes.

    Attributes:
        metrics: of the last finished rollout; None before the first. begun: of the rollout under way.
        saved: what `Trainer._reached` was at the newest checkpoint. best: agreement of the best one, if that is kept.
        best_due: that one is what the student is now, and has no checkpoint yet.
    """

    metrics: StepMetrics | None = None
    begun: Begun = field(default_factory=Begun)
    saved: tuple[int, bool] = (0, False)
    best: float | None = None
    best_due: bool = False

    @property
    def rollouts(self) -> int:
        """Those that are finished."""
        return 0 if self.metrics is None else self.metrics.rollout


@dataclass
class Trainer:
    """Everything that one conversion needs. `train` runs it.

    Attributes:
        pair: student and teacher.
        prompts: token ids. responses: given texts, for `sft` on ground truth only.
        settings: what to do. method: how; default: the one that the settings name.
        run: where to keep it; None keeps nothing. checkpoint: of the run, to go on from; the student has its weights.
        save_model: of the student, or a copy of it: what writes it as a checkpoint folder.
        on_step: called with the metrics of each rollout. evaluate: called after every checkpoint; its result is logged.
        in_words: a trajectory with its ids -> with the texts of them.
        validate: called every `eval_every` rollouts and after the last one.
        ranks: the processes that share the work. The one that saves makes the calls above, alone.
    """

    pair: Pair
    prompts: Sequence[Sequence[int]]
    settings: DistillSettings
    method: Method | None = None
    responses: Sequence[Sequence[int]] | None = None
    run: RunFolder | None = None
    checkpoint: Path | None = None
    save_model: SaveModel = lambda student: lambda path: None
    on_step: OnStep = lambda metrics: None
    evaluate: Evaluate | None = None
    validate: Callable[[Pair], Validation] | None = None
    in_words: Callable[[Trajectory], Trajectory] = lambda trajectory: trajectory
    ranks: Ranks = field(default_factory=OneProcess)
    _at: _Place = field(init=False, default_factory=_Place)
    _writer: Writer = field(init=False, default_factory=Writer)

    def train(self) -> StepMetrics:
        """Run all rollouts, from the checkpoint on if there is one. Returns the last metrics; all is written then.

        A KeyboardInterrupt, or a rollout server that fails, first leaves a checkpoint of what is done: the finished
        rollouts, and of the one under way its text and its updates.
        """
        updater = self._updater()
        self._restore(updater)
        try:
            for index in range(self._at.rollouts, self.rollouts):
                self._rollout(index, updater)
                self.ranks.by_one(self._writer.check)
            self.ranks.by_one(self._writer.wait)
        except (KeyboardInterrupt, RolloutServerError):
            if self._reached(updater) != self._at.saved:
                self._save(updater)
            raise
        finally:
            self._writer.wait()
        assert self._at.metrics is not None, "a run has at least one rollout"
        return self._at.metrics

    def _rollout(self, index: int, updater: Updater) -> None:
        """One rollout with its updates, its metrics, and a checkpoint where one is due."""
        begun, settings = self._at.begun, self.settings
        began = perf_counter() - sum(begun.counts.seconds.values())
        with self.precision():
            plan, looker = (self.method or method_of(settings))(self.pair, index), Looker(self.pair, self.ranks)
            plan = shared(plan, self.ranks, self.pair.tokens.pad_token_id, self.pair.student.device)
            plan = looker.at(plan) if self._keeps_sample(index) else plan
            counts = training_step(self.batch(index), plan, self.pair, updater, settings, self.ranks, begun)
        metrics = self._validated(self._metrics(index, counts, updater, self._at.metrics))
        best = self._is_best(metrics)
        agreement = metrics.validation.agreement if best and metrics.validation else self._at.best
        self._at = _Place(metrics, saved=self._at.saved, best=agreement, best_due=best)
        if self._keeps_sample(index):
            self.ranks.by_one(lambda: self._keep_sample(index, counts, looker))
        if self._saves(index) or best:
            metrics = self._at_checkpoint(updater, metrics)
        known = sum(metrics.seconds.values())
        metrics = metrics.spent(rest=perf_counter() - began - known)
        self._at = replace(self._at, metrics=metrics)
        self.ranks.by_one(lambda: self._tell(metrics))

    def _tell(self, metrics: StepMetrics) -> None:
        if self.run is not None:
            self.run.log(metrics)
        self.on_step(metrics)

    def batch(self, index: int) -> Batch:
        """The prompts of rollout `index`, with their seeds and given responses."""
        settings, chosen = self.settings, self.prompts_of(index)
        first_seed = settings.seed * 2**32 + index * settings.prompts_per_rollout
        responses = None if self.responses is None else [self.responses[i] for i in chosen]
        return Batch([self.prompts[i] for i in chosen], [first_seed + i for i in range(len(chosen))], responses)

    def precision(self) -> torch.autocast:
        """bfloat16 matrix products, for rollouts, teacher and student alike; or plain float32."""
        kind = self.pair.student.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.settings.low_precision(kind))

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run: as set, or one epoch over the prompts."""
        per_epoch = -(-len(self.prompts) // self.settings.prompts_per_rollout)
        return self.settings.rollouts or per_epoch

    @property
    def planned_updates(self) -> int:
        """Updates of the whole run, for the learning-rate schedule."""
        settings = self.settings
        return planned_updates(self.rollouts, len(self.prompts), settings.prompts_per_rollout, settings.rows_per_update)

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on the disk, and with `async_save` its copy in memory."""
        return checkpoint_bytes(self.pair.student)

    def prompts_of(self, index: int) -> list[int]:
        """Which prompts rollout `index` answers: epoch after epoch, each in its own order."""
        per_rollout = self.settings.prompts_per_rollout
        per_epoch = -(-len(self.prompts) // per_rollout)
        epoch, place = divmod(index, per_epoch)
        order = _order(len(self.prompts), self.settings.seed, epoch)
        return list(order[place * per_rollout : (place + 1) * per_rollout])

    def _updater(self) -> Updater:
        originals = list(self.pair.teacher.model.parameters())
        student = list(self.pair.student.parameters())
        updater = Updater(student, self.settings.optimiser, self.planned_updates, originals)
        if (run := self.run) is not None:
            updater.way_out = lambda: self._writer.wait() or run.way_out()
        return updater

    def _validated(self, metrics: StepMetrics) -> StepMetrics:
        """The metrics with a validation, where one is due; before the checkpoint, so that a resumed run has it too."""
        every, last = self.settings.eval_every, metrics.rollout == self.rollouts
        if self.validate is None or not (last or (every is not None and metrics.rollout % every == 0)):
            return metrics
        began = perf_counter()
        found = self.validated(self.validate)
        return metrics.model_copy(update={"validation": found}).spent(validation=perf_counter() - began)

    def validated(self, validate: Callable[[Pair], Validation]) -> Validation:
        """What `validate` finds now."""
        with self.precision(), self.ranks.whole(self.pair.student, self.pair.teacher.model):
            return self.ranks.by_one(partial(validate, self.pair))

    def _saves(self, index: int) -> bool:
        """Whether a checkpoint is due after rollout `index`."""
        return index + 1 == self.rollouts or (index + 1) % self.settings.save_every_rollouts == 0

    def _is_best(self, metrics: StepMetrics) -> bool:
        """Whether a checkpoint is due because the student agrees with its teacher better than at all before."""
        if not self.settings.keep_best or metrics.validation is None:
            return False
        return self._at.best is None or metrics.validation.agreement > self._at.best

    def _keeps_sample(self, index: int) -> bool:
        """Whether some of its rows are kept to be looked at: of the first rollout, and of each that has to be saved."""
        return self.run is not None and (index == 0 or self._saves(index))

    def _keep_sample(self, index: int, counts: StepCounts, looker: Looker) -> None:
        assert self.run is not None
        assert counts.sample is not None
        decoding = as_text(self.settings.rollout_decoding)
        rows = looker.trajectories(counts.sample, self.settings.block_size, decoding)
        self.run.keep_rollout(index + 1, [self.in_words(row) for row in rows])

    def _at_checkpoint(self, updater: Updater, metrics: StepMetrics) -> StepMetrics:
        """Saves, then evaluates; the metrics with what that took."""
        began = perf_counter()
        if self.run is not None:
            self._save(updater)
            metrics = metrics.spent(saving=perf_counter() - began)
        if self.run is not None and (evaluate := self.evaluate) is not None:
            began = perf_counter()
            with self.precision(), self.ranks.whole(self.pair.student):
                found = self.ranks.by_one(lambda: evaluate(self.pair.student))
            # Through JSON at once: numbers of numpy and torch become plain ones here, not when the line is written.
            result = json.loads(json.dumps(found, default=float))
            metrics = metrics.model_copy(update={"evaluation": result}).spent(evaluation=perf_counter() - began)
        return metrics

    def _reached(self, updater: Updater) -> tuple[int, bool]:
        """What changes with each update, and when a text is written: a checkpoint is due where it is another."""
        return updater.done, self._at.begun.rollout is not None

    def _save(self, updater: Updater) -> None:
        """A checkpoint of where the run is; it is written beside what comes next, if that is set and there is room."""
        if self.run is None:
            return
        reached, optimiser = self._reached(updater), self.ranks.gathered_state(updater.state())
        with self.ranks.complete(self.pair.student) as student:
            self.ranks.by_one(partial(self._write_checkpoint, self.run, student, optimiser))
        self._at = replace(self._at, saved=reached, best_due=False)

    def _write_checkpoint(self, run: RunFolder, student: BlockDiffusionModel, optimiser: dict[str, Any]) -> None:
        self._writer.wait()  # its copy goes before the next is made
        at, state = self._at, self._state(student, optimiser)
        beside = self.settings.async_save and room_for(self.checkpoint_bytes)
        if beside:
            state, student = copied(state), snapshot(student)
        write = partial(
            run.save_state,
            at.rollouts,
            state,
            self.save_model(student),
            self.settings.keep_checkpoints,
            updates_begun=None if at.begun.rollout is None else at.begun.updates,
            best=at.best_due,
        )
        if beside:
            self._writer.begin(write)
        else:
            write()

    def _state(self, student: BlockDiffusionModel, optimiser: dict[str, Any]) -> dict[str, Any]:
        """What a resumed run needs beside the student's weights, or in place of them."""
        at = self._at
        line = None if at.metrics is None else at.metrics.to_json()
        state = {"updater": optimiser, "rollouts": at.rollouts, "line": line, "begun": at.begun.state()}
        state |= {"best_agreement": at.best, "is_best": at.best_due}
        if isinstance(student, DraftingModel):
            state["gate"] = dict(student.gate.state_dict())
        elif self.settings.lora_rank is not None:
            state["adapter"] = adapter_state(student.model)
        return state

    def _metrics(self, index: int, counts: StepCounts, updater: Updater, before: StepMetrics | None) -> StepMetrics:
        """The metrics of one rollout; totals run on from `before`."""
        parameters = trained_parameters(self.pair.student.model)
        flops = Flops(
            rollout=2 * parameters * counts.rollout_query_tokens,
            teacher=2 * parameters * counts.teacher_query_tokens,
            # Frozen weights have no gradients of their own: a backward pass through them costs as much as a forward.
            student=(4 if isinstance(self.pair.student, DraftingModel) else 6)
            * parameters
            * counts.student_query_tokens,
        )
        total = before.total if before is not None else Totals()
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_process_bytes()
        return StepMetrics(
            rollout=index + 1,
            rollouts=self.rollouts,
            loss=sum(counts.losses) / len(counts.losses),
            gradient_norm=sum(counts.gradient_norms) / len(counts.gradient_norms),
            learning_rate=updater.rate_used,
            updates=updater.done,
            tokens_trained=counts.tokens_trained,
            positions_supervised=counts.positions_supervised,
            stopped_rows=counts.stopped_rows,
            tokens_per_forward=counts.tokens_rolled_out / max(1, counts.rollout_forwards),
            flops=flops,
            seconds={},
            peak_memory_bytes=peak,
            total=Totals(
                tokens_trained=total.tokens_trained + counts.tokens_trained,
                tokens_rolled_out=total.tokens_rolled_out + counts.tokens_rolled_out,
                flops=total.flops + flops.sum(),
                seconds=total.seconds,
            ),
        ).spent(**counts.seconds)

    def _restore(self, updater: Updater) -> None:
        """Continue after the checkpoint, whose weights the student already has."""
        if self.run is None:
            return
        if self.checkpoint is not None:
            state = self.run.load_state(self.checkpoint)
            line, begun = state["line"], Begun.of(state.get("begun"), self.pair.student.device)
            metrics = None if line is None else StepMetrics.from_json(line, str(self.checkpoint))
            updater.restore(self.ranks.own_state(state["updater"], updater.parameters))
            self._at = _Place(metrics, begun, best=state.get("best_agreement"))
            self._at = replace(self._at, saved=self._reached(updater))
            if state.get("is_best"):  # the run may have ended before it was marked
                self.ranks.by_one(partial(self.run.mark_best, self.checkpoint))
        self.ranks.by_one(partial(self.run.forget_after, self._at.rollouts, self._at.metrics))


@lru_cache(maxsize=1)
def _order(prompts: int, seed: int, epoch: int) -> tuple[int, ...]:
    """All prompts in the order of one epoch; kept, for shuffling many thousands takes as long as a small update."""
    order = list(range(prompts))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return tuple(order)


def trained_parameters(model: PreTrainedModel) -> int:
    """Parameters that multiply each token: all but an input embedding with no second use as the LM head."""
    total = sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().get_parameter("weight")
    head = model.get_output_embeddings()
    tied = head is not None and head.get_parameter("weight") is embedding
    return total if tied else total - embedding.numel()
