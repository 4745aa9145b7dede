"""The training loop: rollouts one after the other, metrics, checkpoints, resuming."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
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
from opdlm.distill.step import Batch, Begun, StepCounts, training_step
from opdlm.distill.update import Updater
from opdlm.models.adapter import adapter_state
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.devices import peak_process_bytes
from opdlm.models.drafting import DraftingModel
from opdlm.parallel.ranks import OneProcess, Ranks
from opdlm.records.metrics import Flops, StepMetrics, Totals
from opdlm.records.run_folder import RunFolder
from opdlm.records.trajectory import Trajectory
from opdlm.records.worth import Validation

OnStep = Callable[[StepMetrics], None]
Evaluate = Callable[[BlockDiffusionModel], dict[str, Any]]


@dataclass(frozen=True)
class _Place:
    """Where a run is. Replaced as a whole, so that it is true whenever an interruption comes.

    Attributes:
        metrics: of the last finished rollout; None before the first. begun: of the rollout under way.
        saved: what `Trainer._reached` was at the newest checkpoint.
    """

    metrics: StepMetrics | None = None
    begun: Begun = field(default_factory=Begun)
    saved: tuple[int, bool] = (0, False)

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
        save_model: writes the student as a checkpoint folder.
        on_step: called with the metrics of each rollout. evaluate: called after every checkpoint; its result is logged.
        in_words: a trajectory with its ids -> with the texts of them.
        validate: called every `eval_every` rollouts and after the last one.
        ranks: the processes that share the work.
    """

    pair: Pair
    prompts: Sequence[Sequence[int]]
    settings: DistillSettings
    method: Method | None = None
    responses: Sequence[Sequence[int]] | None = None
    run: RunFolder | None = None
    checkpoint: Path | None = None
    save_model: Callable[[Path], None] = lambda path: None
    on_step: OnStep = lambda metrics: None
    evaluate: Evaluate | None = None
    validate: Callable[[Pair], Validation] | None = None
    in_words: Callable[[Trajectory], Trajectory] = lambda trajectory: trajectory
    ranks: Ranks = field(default_factory=OneProcess)
    _at: _Place = field(init=False, default_factory=_Place)

    def train(self) -> StepMetrics:
        """Run all rollouts, from the checkpoint on if there is one. Returns the last metrics.

        A KeyboardInterrupt first leaves a checkpoint of what is done: the finished rollouts, and of the one under way
        its text and its updates.
        """
        updater = self._updater()
        self._restore(updater)
        try:
            for index in range(self._at.rollouts, self.rollouts):
                self._rollout(index, updater)
        except KeyboardInterrupt:
            if self._reached(updater) != self._at.saved:
                self._save(updater)
            raise
        assert self._at.metrics is not None, "a run has at least one rollout"
        return self._at.metrics

    def _rollout(self, index: int, updater: Updater) -> None:
        """One rollout with its updates, its metrics, and a checkpoint where one is due."""
        begun, settings = self._at.begun, self.settings
        began = perf_counter() - sum(begun.counts.seconds.values())
        with self.precision():
            plan, looker = (self.method or method_of(settings))(self.pair, index), Looker(self.pair)
            plan = looker.at(plan) if self._keeps_sample(index) else plan
            counts = training_step(self.batch(index), plan, self.pair, updater, settings, self.ranks, begun)
        metrics = self._validated(self._metrics(index, counts, updater, self._at.metrics))
        self._at = _Place(metrics, saved=self._at.saved)
        if self._keeps_sample(index):
            self._keep_sample(index, counts, looker)
        if self._saves(index):
            metrics = self._at_checkpoint(updater, metrics)
        known = sum(metrics.seconds.values())
        metrics = metrics.spent(rest=perf_counter() - began - known)
        self._at = replace(self._at, metrics=metrics)
        if self.run is not None and self.ranks.saves:
            self.run.log(metrics)
        self.on_step(metrics)

    def batch(self, index: int) -> Batch:
        """The prompts of rollout `index`, with their seeds and given responses."""
        settings, chosen = self.settings, self.prompts_of(index)
        first_seed = settings.seed * 2**32 + index * settings.prompts_per_rollout
        responses = None if self.responses is None else [self.responses[i] for i in chosen]
        return Batch([self.prompts[i] for i in chosen], [first_seed + i for i in range(len(chosen))], responses)

    def precision(self) -> torch.autocast:
        """bfloat16 matrix products over float32 weights, for rollouts, teacher and student alike; or plain float32."""
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
            updater.way_out = run.way_out
        return updater

    def _validated(self, metrics: StepMetrics) -> StepMetrics:
        """The metrics with a validation, where one is due; before the checkpoint, so that a resumed run has it too."""
        every, last = self.settings.eval_every, metrics.rollout == self.rollouts
        if self.validate is None or not (last or (every is not None and metrics.rollout % every == 0)):
            return metrics
        began = perf_counter()
        with self.precision():
            found = self.validate(self.pair)
        return metrics.model_copy(update={"validation": found}).spent(validation=perf_counter() - began)

    def _saves(self, index: int) -> bool:
        """Whether a checkpoint is due after rollout `index`."""
        return index + 1 == self.rollouts or (index + 1) % self.settings.save_every_rollouts == 0

    def _keeps_sample(self, index: int) -> bool:
        """Whether some of its rows are kept to be looked at: of the first rollout, and of each with a checkpoint."""
        return self.run is not None and self.ranks.saves and (index == 0 or self._saves(index))

    def _keep_sample(self, index: int, counts: StepCounts, looker: Looker) -> None:
        assert self.run is not None
        assert counts.sample is not None
        decoding = as_text(self.settings.rollout_decoding)
        rows = looker.trajectories(counts.sample, self.settings.block_size, decoding)
        self.run.keep_rollout(index + 1, [self.in_words(row) for row in rows])

    def _at_checkpoint(self, updater: Updater, metrics: StepMetrics) -> StepMetrics:
        """Saves, then evaluates; the metrics with what that took."""
        began = perf_counter()
        if self.run is not None and self.ranks.saves:
            self._save(updater)
            metrics = metrics.spent(saving=perf_counter() - began)
        if self.run is not None and self.evaluate is not None:
            began = perf_counter()
            # Through JSON at once: numbers of numpy and torch become plain ones here, not when the line is written.
            result = json.loads(json.dumps(self.evaluate(self.pair.student), default=float))
            metrics = metrics.model_copy(update={"evaluation": result}).spent(evaluation=perf_counter() - began)
        return metrics

    def _reached(self, updater: Updater) -> tuple[int, bool]:
        """What changes with each update, and when a text is written: a checkpoint is due where it is another."""
        return updater.done, self._at.begun.rollout is not None

    def _save(self, updater: Updater) -> None:
        """A checkpoint of where the run is."""
        if self.run is None or not self.ranks.saves:
            return
        at, reached = self._at, self._reached(updater)
        line = None if at.metrics is None else at.metrics.to_json()
        state = {"updater": updater.state(), "rollouts": at.rollouts, "line": line, "begun": at.begun.state()}
        student = self.pair.student
        if isinstance(student, DraftingModel):
            state["gate"] = {name: value.clone() for name, value in student.gate.state_dict().items()}
        elif self.settings.lora_rank is not None:
            state["adapter"] = adapter_state(self.pair.student.model)
        keep, updates = self.settings.keep_checkpoints, None if at.begun.rollout is None else at.begun.updates
        self.run.save_state(at.rollouts, state, self.save_model, keep, updates_begun=updates)
        self._at = replace(at, saved=reached)

    def _metrics(self, index: int, counts: StepCounts, updater: Updater, before: StepMetrics | None) -> StepMetrics:
        """The metrics of one rollout, over all ranks; totals run on from `before`."""
        parameters = trained_parameters(self.pair.student.model)
        trained, rolled_out, positions, forwards, stopped, by_rollout, by_teacher, by_student = self.ranks.sum(
            counts.tokens_trained,
            counts.tokens_rolled_out,
            counts.positions_supervised,
            counts.rollout_forwards,
            counts.stopped_rows,
            counts.rollout_query_tokens,
            counts.teacher_query_tokens,
            counts.student_query_tokens,
        )
        flops = Flops(
            rollout=2 * parameters * by_rollout,
            teacher=2 * parameters * by_teacher,
            # Frozen weights have no gradients of their own: a backward pass through them costs as much as a forward.
            student=(4 if isinstance(self.pair.student, DraftingModel) else 6) * parameters * by_student,
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
            tokens_trained=int(trained),
            positions_supervised=int(positions),
            stopped_rows=int(stopped),
            tokens_per_forward=rolled_out / max(1, forwards),
            flops=flops,
            seconds={},
            peak_memory_bytes=peak,
            total=Totals(
                tokens_trained=total.tokens_trained + int(trained),
                tokens_rolled_out=total.tokens_rolled_out + int(rolled_out),
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
            updater.restore(state["updater"])
            self._at = _Place(metrics, begun)
            self._at = replace(self._at, saved=self._reached(updater))
        if self.ranks.saves:
            self.run.forget_after(self._at.rollouts, self._at.metrics)


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
