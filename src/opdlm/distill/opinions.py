"""What student and teacher thought of each token of a few rows, in the state in which it was committed.

For people to look at: nothing is learnt from it. One row and one denoising step at a time, so that it never takes more
memory than the training itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from opdlm.core.divergence import forward_kl
from opdlm.core.states import StateChoice, select_states
from opdlm.core.types import NEVER, Rollout, StateBatch, TeacherTargets
from opdlm.core.windows import WindowChoice, select_windows
from opdlm.distill.pair import Pair, pass_of
from opdlm.distill.rollout import Written
from opdlm.distill.step import SAMPLES, Batch, Plan
from opdlm.models.drafting import DraftingModel
from opdlm.parallel.ranks import OneProcess, Ranks
from opdlm.records.trajectory import Candidate, Trajectory, trajectories

MOST_ALTERNATIVES = 5


@dataclass(frozen=True)
class Opinion:
    """Of one token. Attributes: kl: KL(teacher || student) in nats. alternatives: the likeliest, of whoever decides."""

    kl: float
    alternatives: tuple[Candidate, ...]


@dataclass
class Looker:
    """Looks at the first rows of a rollout right after they are written, before the weights change.

    Attributes:
        pair: student and teacher.
        ranks: the processes that share the work. The one that saves looks, the others wait.
        found: of the newest rollout; empty where the student did not write it, or where an interruption came between
            its writing and its end.
    """

    pair: Pair
    ranks: Ranks = field(default_factory=OneProcess)
    found: list[dict[int, Opinion]] = field(default_factory=list)

    def at(self, plan: Plan) -> Plan:
        """The same plan; what it writes is looked at."""
        self.found = []
        return replace(plan, write=lambda batch: self._seen(plan.write, batch))

    def _seen(self, write: Callable[[Batch], Written], batch: Batch) -> Written:
        written = write(batch)
        if written.on_policy:
            first = written.rollout.rows(torch.arange(min(len(batch.prompts), SAMPLES)))
            with self.ranks.whole(self.pair.student, self.pair.teacher.model):
                self.found = self.ranks.by_one(partial(opinions, self.pair, first))
        return written

    def trajectories(self, sample: Rollout, block_size: int, decoding: str) -> list[Trajectory]:
        """Of the first rows of a rollout, with what was found of them."""
        verified = isinstance(self.pair.student, DraftingModel)
        if not self.found:
            return trajectories(sample, block_size, verified=verified)
        made = trajectories(sample, block_size, decoding=decoding, verified=verified)
        return [_with_opinions(one, found) for one, found in zip(made, self.found, strict=True)]


def _with_opinions(made: Trajectory, found: dict[int, Opinion]) -> Trajectory:
    known = [found.get(position) for position in made.positions]
    kl = tuple(None if one is None else one.kl for one in known)
    alternatives = tuple(() if one is None else one.alternatives for one in known)
    return made.model_copy(update={"kl": kl, "alternatives": alternatives})


@torch.no_grad()
def opinions(pair: Pair, text: Rollout) -> list[dict[int, Opinion]]:
    """For each row of `text`, which the student wrote: position -> opinion. Absent where no state had it masked."""
    student = pair.student
    of_row = partial(_of_drafts, pair, student) if isinstance(student, DraftingModel) else partial(_of_steps, pair)
    return [of_row(text.rows(torch.tensor([row]))) for row in range(len(text.length))]


def _of_steps(pair: Pair, row: Rollout) -> dict[int, Opinion]:
    """Step r of every block at once: its masks are what was committed in step r or later."""
    student, steps, no_draw = pair.student, row.commit_step, torch.zeros_like(row.length)
    targets, choice = pair.teacher.targets(row), StateChoice("all")
    found: dict[int, Opinion] = {}
    for step in range(int(steps.masked_fill(steps == NEVER, -1).max()) + 1):
        later = steps.masked_fill(steps != NEVER, 0)
        visited = replace(row, commit_step=later.masked_fill(steps < step, -1))
        states = select_states(visited, student.geometry, choice, no_draw, mask_token_id=student.mask_token_id)
        committed = (steps[0, states.position] == step).tolist()
        seen = _seen(pair, states, targets, decides="student")
        found |= {place: opinion for (place, opinion), now in zip(seen, committed, strict=True) if now}
    return found


def _of_drafts(pair: Pair, student: DraftingModel, row: Rollout) -> dict[int, Opinion]:
    """Of the window from which each token was drafted: the last one before it, where windows overlap."""
    vocabulary = student.head_parameters()[0].shape[0] if student.gate.form == "noise" else 0
    states = select_windows(row, WindowChoice(student.window, "visited", vocabulary), torch.zeros_like(row.length))
    targets = pair.teacher.clean_pass(row)
    return dict(_seen(pair, states, targets, decides="teacher", more=(targets,)))


def _seen(
    pair: Pair, states: StateBatch, targets: TeacherTargets, decides: str, more: tuple = ()
) -> Iterator[tuple[int, Opinion]]:
    """(position, opinion) of each supervised position, in order."""
    kept: list[tuple[torch.Tensor, ...]] = []

    def look(outputs: torch.Tensor, part: slice) -> torch.Tensor:
        predicted = pair.student.logits_of(outputs).log_softmax(-1)
        expected = pair.teacher.logits(targets, states.row[part], states.position[part]).log_softmax(-1)
        likely = (predicted if decides == "student" else expected).topk(min(MOST_ALTERNATIVES, predicted.shape[-1]), -1)
        kept.append((forward_kl(expected, predicted), likely.indices, likely.values.exp()))
        return torch.zeros_like(predicted[:, 0])

    pass_of(pair.student)(states, look, *more)  # not the wrapped one: this process alone looks
    places = iter(states.position.tolist())
    for parts in kept:
        for kl, ids, shares in zip(*(part.tolist() for part in parts), strict=True):
            likely = zip(ids, shares, strict=True)
            alternatives = tuple(Candidate(token_id=one, probability=round(share, 4)) for one, share in likely)
            yield next(places), Opinion(round(max(0.0, kl), 4), alternatives)
