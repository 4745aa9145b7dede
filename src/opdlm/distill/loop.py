"""The training loop: rollouts one after the other, metrics, checkpoints, resuming."""

import random
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

from opdlm.config import DistillSettings, GenerationSettings
from opdlm.core.schedules import response_length
from opdlm.core.types import Rollout
from opdlm.distill import losses, rollout
from opdlm.distill.adapter import adapter_state
from opdlm.distill.run_folder import RunFolder
from opdlm.distill.step import Recipe, StepCounts, training_step
from opdlm.distill.teacher import Teacher
from opdlm.distill.update import Updater
from opdlm.models.adapt import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens

OnStep = Callable[[dict[str, Any]], None]
Evaluate = Callable[[BlockDiffusionModel], dict[str, Any]]


@dataclass
class Trainer:
    """Everything that one conversion needs. `train` runs it.

    Attributes:
        student, teacher: the model that learns, and the frozen original.
        tokens: mask, padding and stop ids.
        prompts: token ids. responses: given texts, for `sft` on ground truth only.
        settings: what to do.
        run: where to keep it; None keeps nothing.
        save_model: writes the student as a checkpoint folder.
        on_step: called with each line of metrics. evaluate: called after every checkpoint; its result is logged.
    """

    student: BlockDiffusionModel
    teacher: Teacher
    tokens: SpecialTokens
    prompts: Sequence[Sequence[int]]
    settings: DistillSettings
    responses: Sequence[Sequence[int]] | None = None
    run: RunFolder | None = None
    save_model: Callable[[Path], None] = lambda path: None
    on_step: OnStep = lambda line: None
    evaluate: Evaluate | None = None

    def train(self) -> dict[str, Any]:
        """Run all rollouts, from the last checkpoint of `run` on if it has one. Returns the last line of metrics."""
        settings = self.settings
        rollouts = self.rollouts
        originals = list(self.teacher.model.model.parameters())
        updater = Updater(list(self.student.model.parameters()), settings.optimiser, self.planned_updates, originals)
        if (run := self.run) is not None:
            updater.where_is_safe = lambda: str(run.latest() or "none yet")
        first, line = self._restore(updater)
        for index in range(first, rollouts):
            began = perf_counter()
            chosen = self.prompts_of(index)
            seeds = [settings.seed * 2**32 + index * settings.prompts_per_rollout + i for i in range(len(chosen))]
            with self.precision():
                counts = training_step(
                    [self.prompts[i] for i in chosen],
                    seeds,
                    self.student,
                    self.recipe(index, chosen),
                    updater,
                    settings,
                )
            line = self._metrics(index, counts, updater, line)
            done = index + 1 == rollouts
            if self.run is not None and (done or (index + 1) % settings.save_every_rollouts == 0):
                with timed(line["seconds"], "saving"):
                    self._save(self.run, counts, updater, line)
                if self.evaluate is not None:
                    with timed(line["seconds"], "evaluation"):
                        line["evaluation"] = self.evaluate(self.student)
            _close(line, perf_counter() - began - sum(counts.seconds.values()))
            if self.run is not None:
                self.run.log(line)
            self.on_step(line)
        return line

    def _save(self, run: RunFolder, counts: StepCounts, updater: Updater, line: dict[str, Any]) -> None:
        """A checkpoint with this line of metrics, and some of the rollout's rows."""
        state = {"updater": updater.state(), "rollouts": line["rollout"], "line": line}
        if self.settings.lora_rank is not None:
            state["adapter"] = adapter_state(self.student.model)
        run.save_state(line["rollout"], state, self.save_model, self.settings.keep_checkpoints)
        if counts.sample is not None:
            run.keep_sample(line["rollout"], counts.sample)

    def precision(self) -> torch.autocast:
        """bfloat16 matrix products over float32 weights, for rollouts, teacher and student alike; or plain float32."""
        kind = self.student.device.type
        low = self.settings.precision == "bfloat16" or (self.settings.precision == "auto" and kind == "cuda")
        return torch.autocast(kind, torch.bfloat16, enabled=low)

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole run: as set, or one epoch over the prompts."""
        per_epoch = -(-len(self.prompts) // self.settings.prompts_per_rollout)
        return self.settings.rollouts or per_epoch

    @property
    def planned_updates(self) -> int:
        """Updates of the whole run, for the learning-rate schedule."""
        sizes = (len(self.prompts_of(index)) for index in range(self.rollouts))
        return sum(-(-size // self.settings.rows_per_update) for size in sizes)

    def prompts_of(self, index: int) -> list[int]:
        """Which prompts rollout `index` answers: epoch after epoch, each in its own order."""
        per_rollout = self.settings.prompts_per_rollout
        per_epoch = -(-len(self.prompts) // per_rollout)
        epoch, place = divmod(index, per_epoch)
        order = _order(len(self.prompts), self.settings.seed, epoch)
        return list(order[place * per_rollout : (place + 1) * per_rollout])

    def recipe(self, index: int, chosen: Sequence[int]) -> Recipe:
        """Who writes, which states, which loss: `settings.method`, or the warm start before it."""
        settings, method = self.settings, self.settings.method
        warm = index < settings.warm_start_rollouts
        ramp = settings.response_length
        cap = response_length(index, ramp.start, ramp.end, ramp.rollouts, ramp.shape, settings.block_size)
        generation = GenerationSettings(
            decoding=settings.rollout_decoding, max_new_tokens=cap, temperature=settings.rollout_temperature
        )
        common: dict[str, Any] = {"tokens": self.tokens, "settings": generation, "batch_size": settings.rollout_batch}
        if method == "sft" and self.responses is not None:
            responses = [self.responses[i] for i in chosen]
            write = partial(self._given, responses=responses, cap=cap)
        elif warm or method in ("offpolicy_kd", "sft"):
            write = partial(self._by_teacher, **common)
        else:
            write = partial(self._by_student, **common)
        selection = "random_mask" if warm or method != "opd" else settings.states
        if method == "sft":
            loss = partial(losses.cross_entropy_loss, self.student)
            return Recipe(write, selection, bound_weight=True, targets=lambda text: None, loss=loss)
        function = losses.log_divergence(self.settings)
        loss = partial(losses.divergence_loss, self.student, self.teacher, function)
        return Recipe(write, selection, bound_weight=False, targets=self.teacher.targets, loss=loss)

    def _by_student(self, prompts, seeds, **common):
        return rollout.written_by_student(self.student, prompts=prompts, seeds=seeds, **common)

    def _by_teacher(self, prompts, seeds, **common):
        with self.teacher.frozen():
            size = self.settings.block_size
            return rollout.written_by_teacher(
                self.teacher.model, prompts=prompts, seeds=seeds, block_size=size, **common
            )

    def _given(self, prompts, seeds, responses, cap) -> tuple[Rollout, int]:
        text = rollout.given(prompts, responses, self.tokens, self.settings.block_size, cap)
        return text.to(self.student.device), 0

    def _metrics(self, index: int, counts: StepCounts, updater: Updater, before: dict[str, Any]) -> dict[str, Any]:
        """One line of metrics.jsonl; totals run on from the line before."""
        parameters = trained_parameters(self.student.model)
        flops = {
            "rollout": 2 * parameters * counts.rollout_query_tokens,
            "teacher": 2 * parameters * counts.teacher_query_tokens,
            "student": 6 * parameters * counts.student_query_tokens,
        }
        total = before.get("total", {})
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_process_bytes()
        return {
            "rollout": index + 1,
            "rollouts": self.rollouts,
            "loss": sum(counts.losses) / len(counts.losses),
            "gradient_norm": sum(counts.gradient_norms) / len(counts.gradient_norms),
            "learning_rate": updater.rate,
            "updates": updater.done,
            "tokens_trained": counts.tokens_trained,
            "positions_supervised": counts.positions_supervised,
            "stopped_rows": counts.stopped_rows,
            "tokens_per_forward": counts.tokens_rolled_out / max(1, counts.rollout_forwards),
            "flops": flops,
            "seconds": {part: round(value, 4) for part, value in counts.seconds.items()},
            "peak_memory_bytes": peak,
            "total": {
                "tokens_trained": total.get("tokens_trained", 0) + counts.tokens_trained,
                "tokens_rolled_out": total.get("tokens_rolled_out", 0) + counts.tokens_rolled_out,
                "flops": total.get("flops", 0) + sum(flops.values()),
                "seconds": round(total.get("seconds", 0.0) + sum(counts.seconds.values()), 3),
            },
        }

    def _restore(self, updater: Updater) -> tuple[int, dict[str, Any]]:
        """Continue after the newest checkpoint, whose weights the student already has: next rollout, last metrics."""
        if self.run is None:
            return 0, {}
        checkpoint = self.run.latest()
        if checkpoint is None:
            self.run.forget_after(0)
            return 0, {}
        state = self.run.load_state(checkpoint)
        updater.restore(state["updater"])
        self.run.forget_after(state["rollouts"], state["line"])
        return state["rollouts"], state["line"]


@lru_cache(maxsize=1)
def _order(prompts: int, seed: int, epoch: int) -> tuple[int, ...]:
    """All prompts in the order of one epoch; kept, for shuffling many thousands takes as long as a small update."""
    order = list(range(prompts))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return tuple(order)


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Writes the wall time of the context to `seconds[part]`."""
    began = perf_counter()
    yield
    seconds[part] = round(perf_counter() - began, 4)


def _close(line: dict[str, Any], outside: float) -> None:
    """Adds the wall seconds `outside` of the training step; `rest` are those in no part, as for the metrics."""
    seconds, total = line["seconds"], line["total"]
    seconds["rest"] = round(outside - seconds.get("saving", 0.0) - seconds.get("evaluation", 0.0), 4)
    total["seconds"] = round(total["seconds"] + outside, 3)


def trained_parameters(model: PreTrainedModel) -> int:
    """Parameters that multiply each token: all but an input embedding with no second use as the LM head."""
    total = sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().get_parameter("weight")
    head = model.get_output_embeddings()
    tied = head is not None and head.get_parameter("weight") is embedding
    return total if tied else total - embedding.numel()


def peak_process_bytes() -> int:
    """Largest resident size of this process so far (ru_maxrss is in KiB on Linux, in bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
