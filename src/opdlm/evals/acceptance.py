"""How many drafts hold, by their place in the window: read off a text's commit steps."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from opdlm.config import GenerationSettings, VerifiedDecoding
from opdlm.core.types import Rollout
from opdlm.models.drafting import DraftingModel
from opdlm.sampling.api import DiffusionLM


class Acceptance:
    """Counts of drafts made behind every token by `verified`, without `auto`.

    A forward that commits n tokens found n - 1 drafts right, and one wrong unless the window ended there.

    Attributes:
        offered, held: of each place, drafts whose predecessors all held, and those of them that held too.
    """

    def __init__(self, window: int) -> None:
        """`window`: drafts of a forward."""
        self.offered, self.held = [0] * window, [0] * window

    def watching(self, rows: Iterable[tuple[int, Rollout]]) -> Iterator[tuple[int, Rollout]]:
        """The same rollouts of one row each, counted."""
        for index, rollout in rows:
            self.saw(rollout)
            yield index, rollout

    def saw(self, rollout: Rollout) -> None:
        """Count all rows."""
        for row in range(len(rollout.length)):
            steps = rollout.commit_step[row, int(rollout.prompt_length[row]) : int(rollout.length[row])].tolist()
            committed = [len(list(group)) for _, group in groupby(steps)]
            for tokens in committed[1:-1]:  # the first forward has no drafts, the last may be cut
                for place in range(min(tokens, len(self.held))):
                    self.offered[place] += 1
                    self.held[place] += tokens > place + 1

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each place; 0 where none was offered."""
        return tuple(held / max(1, offered) for offered, held in zip(self.offered, self.held, strict=True))


def acceptance_of(model: DiffusionLM, settings: GenerationSettings) -> Acceptance:
    """Counts for texts that `model` writes with these settings; without places where commit steps do not tell them."""
    decoding = settings.decoding
    if not isinstance(decoding, VerifiedDecoding) or decoding.auto or not decoding.every:
        return Acceptance(0)
    assert isinstance(model.model, DraftingModel)
    return Acceptance(min(model.model.window, decoding.drafts))
