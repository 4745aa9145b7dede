"""How a text was denoised: which token stands where, in which step it was committed, and what else was thought of."""

from collections.abc import Callable, Sequence
from typing import Any

from opdlm.core.types import NEVER, Rollout
from opdlm.records.record import Part, Record

TokenText = Callable[[int], str]
"""The text of one token id as it stands in the middle of a text."""


class Candidate(Part):
    """A token that might have stood somewhere.

    Attributes:
        token_id: its id. text: of it, "" where it is not known.
        probability: by the model that decides, at temperature 1; None where it is not known.
    """

    token_id: int
    text: str = ""
    probability: float | None = None


class Trajectory(Record):
    """One response, or one text whose gaps were filled. All lists but `prompt_ids` have an entry a written token.

    Attributes:
        prompt_ids: the ids before the first written token.
        positions: where each written token stands, counted from the prompt's first token.
        token_ids: the written tokens.
        commit_steps: the denoising step of its block in which each was committed, from 0; of a text whose drafts were
            verified: the forward of the text, from 0.
        confidences: the model's own probability of each when it was committed; None where no decoder wrote the text.
        block_size: tokens of a block; blocks begin at multiples of it.
        forwards: forward passes that it took, the prompt's own aside.
        decoding: how it was decoded, such as "prefix:0.95". prompt, answer: in words, where they are known.
        texts: each written token as text, where it was decoded.
        verified: whether drafts were verified: within a forward all tokens but the last were drafts that held.
        alternatives: the most probable tokens at each place when it was committed, by the model that decides.
        kl: KL(teacher || student) in nats at each place when it was committed; None where it was not measured.
        refused: of verified decoding: the drafts, from each place on, that the forward refused which wrote it.
    """

    prompt_ids: tuple[int, ...]
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    commit_steps: tuple[int, ...]
    confidences: tuple[float, ...] | None = None
    block_size: int
    forwards: int
    decoding: str = ""
    prompt: str = ""
    answer: str = ""
    texts: tuple[str, ...] = ()
    verified: bool = False
    alternatives: tuple[tuple[Candidate, ...], ...] | None = None
    kl: tuple[float | None, ...] | None = None
    refused: tuple[tuple[Candidate, ...], ...] | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Written tokens over forward passes."""
        return len(self.token_ids) / max(1, self.forwards)

    def worded(self, token_text: TokenText, prompt: str = "") -> "Trajectory":
        """The same in words: each token, alternative and refused draft as text."""

        def named(places: Sequence[Sequence[Candidate]] | None) -> tuple[tuple[Candidate, ...], ...] | None:
            if places is None:
                return None
            return tuple(
                tuple(one.model_copy(update={"text": token_text(one.token_id)}) for one in place) for place in places
            )

        words = {
            "texts": tuple(map(token_text, self.token_ids)),
            "alternatives": named(self.alternatives),
            "refused": named(self.refused),
        }
        return self.model_copy(update=words | ({"prompt": prompt} if prompt else {}))


def trajectories(rollout: Rollout, block_size: int, **known: Any) -> list[Trajectory]:
    """One for each row. `known`: more fields of Trajectory, the same for all rows."""
    return [_trajectory(rollout, row, block_size, known) for row in range(len(rollout.length))]


def _trajectory(rollout: Rollout, row: int, block_size: int, known: dict[str, Any]) -> Trajectory:
    ids, steps = rollout.input_ids[row].tolist(), rollout.commit_step[row].tolist()
    written = [i for i in range(int(rollout.length[row])) if 0 <= steps[i] < NEVER]
    confidence = None if rollout.confidence is None else rollout.confidence[row].tolist()
    return Trajectory(
        prompt_ids=tuple(ids[: int(rollout.prompt_length[row])]),
        positions=tuple(written),
        token_ids=tuple(ids[i] for i in written),
        commit_steps=tuple(steps[i] for i in written),
        confidences=None if confidence is None else tuple(round(confidence[i], 4) for i in written),
        block_size=block_size,
        forwards=int(rollout.forwards[row]),
        **known,
    )
