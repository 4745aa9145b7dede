"""Everything that there is to see of one text while it is written: alternatives, refused drafts."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from opdlm.records.trajectory import Candidate, Trajectory
from opdlm.sampling.denoising import Step


@dataclass
class Recorder:
    """Streamer and observer of one text; `told` afterwards makes a full record of its trajectory.

    What it keeps are tensors: nothing is read from the device before the text is done.

    Attributes:
        most: alternatives of a token.
    """

    most: int = 5
    _likely: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    _checked: list[tuple[int, torch.Tensor]] = field(default_factory=list)

    # --- while it is written -----------------------------------------------------------------------------------

    def observe(self, step: Step) -> None:
        """The most probable tokens of the block: see `Engine`."""
        likely = step.logits[0].softmax(-1).topk(min(self.most, step.logits.shape[-1]), -1)
        self._likely.append((step.start[0].clone(), step.committed[0].clone(), likely.indices, likely.values))

    def put_draft(self, ids: torch.Tensor) -> None:
        """Nothing that `observe` has not seen."""

    def put_verified(self, ids: torch.Tensor, drafts: torch.Tensor) -> None:
        """[L] verified response ids, [d] drafts behind them that the next forward checks."""
        self._checked.append((len(ids), drafts))

    def put(self, ids: torch.Tensor) -> None:
        """The text itself is in the rollout."""

    def end(self) -> None:
        """Nothing is open."""

    # --- afterwards --------------------------------------------------------------------------------------------

    def told(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory of the text with what was seen of it."""
        if self._checked:
            return trajectory.model_copy(update={"verified": True, "refused": tuple(self._refused(trajectory))})
        known = dict(self._alternatives())
        return trajectory.model_copy(update={"alternatives": tuple(known.get(at, ()) for at in trajectory.positions)})

    def _alternatives(self) -> Iterator[tuple[int, tuple[Candidate, ...]]]:
        for start, committed, ids, shares in self._likely:
            for place in committed.nonzero()[:, 0].tolist():
                pairs = zip(ids[place].tolist(), shares[place].tolist(), strict=True)
                found = tuple(Candidate(token_id=one, probability=round(share, 4)) for one, share in pairs)
                yield int(start) + place, found

    def _refused(self, trajectory: Trajectory) -> Iterator[tuple[Candidate, ...]]:
        """Of each token: the drafts from its place on, where the first of them is not the token."""
        checked = {begin: drafts.tolist() for begin, drafts in self._checked}
        begins = {step: trajectory.commit_steps.index(step) for step in set(trajectory.commit_steps)}
        for place, (token, step) in enumerate(zip(trajectory.token_ids, trajectory.commit_steps, strict=True)):
            drafts = checked.get(begins[step], [])[place - begins[step] :]
            refused = drafts if drafts and drafts[0] != token else []
            yield tuple(Candidate(token_id=draft) for draft in refused)
