"""What a conversion is worth: how the student writes a few prompts, before its training, meanwhile and after."""

from pydantic import computed_field

from opdlm.records.record import Part, Record

ENOUGH_UPDATES = 50
"""With 48 the embedded model still wrote about one token a forward (`opd-12` in docs/studies/budget.md)."""
_SHORT = 4  # tokens
_MOST = 0.5


class Validation(Part):
    """How the student wrote a few prompts, greedily, as it decodes by default.

    Attributes:
        responses: their number. empty: those that stopped at once. short: fewer than 4 tokens; empty ones are among
            them. A stop token is not counted in either.
        tokens: of all responses, stop tokens included. agreed: those for which the student, its whole block still
            masked, has the same first choice as the teacher, which has read the text up to there.
        forwards: of all responses, the passes over prompts aside.
    """

    responses: int
    empty: int
    short: int
    tokens: int
    agreed: int
    forwards: int

    @classmethod
    def of(cls, lengths: list[int], **sums: int) -> "Validation":
        """From each response's tokens, stop token aside, and the sums."""
        short = sum(length < _SHORT for length in lengths)
        return cls(responses=len(lengths), empty=lengths.count(0), short=short, **sums)

    @computed_field
    @property
    def agreement(self) -> float:
        """Share of the tokens in which the student foresees its teacher, from 0 to 1; 0 without any token."""
        return self.agreed / max(1, self.tokens)

    @computed_field
    @property
    def tokens_per_forward(self) -> float:
        """Tokens of all responses over forwards of all responses."""
        return self.tokens / max(1, self.forwards)


class Worth(Record):
    """What a run is worth, worth.json. Agreement says how near the teacher is, not whether the answers are right.

    Attributes:
        held_out: whether the prompts of the validations were kept from training.
        updates: optimiser updates of the run. before, after: the training; None where it was not measured.
    """

    held_out: bool
    updates: int = 0
    before: Validation | None = None
    after: Validation | None = None

    def facts(self) -> dict[str, str]:
        """What was measured, name -> value, in words."""
        found = {"updates": f"{self.updates:,}"}
        if (after := self.after) is None:
            return found
        source = "held-out prompts" if self.held_out else "prompts of the training"
        before = f"{self.before.agreement:.0%} before training, " if self.before is not None else ""
        found["agreement with the teacher"] = f"{before}{after.agreement:.0%} after, on {after.responses} {source}"
        found["empty responses"] = f"{after.empty} of {after.responses} (shorter than {_SHORT} tokens: {after.short})"
        return found

    def hints(self) -> list[str]:
        """What is wrong with the run, with what to do about it; nothing where it looks sound."""
        found = []
        if self.updates < ENOUGH_UPDATES:
            plural = "" if self.updates == 1 else "s"
            found.append(
                f"{self.updates} update{plural}: too little for a useful student; take at least "
                f"{ENOUGH_UPDATES}, better hundreds: with more prompts, more --rollouts, or fewer --rows-per-update"
            )
        before, after = self.before, self.after
        if after is not None and before is not None and after.agreement <= before.agreement:
            found.append(
                "the student agrees with its teacher no more than before; train longer, or with another "
                "--optimiser.learning-rate"
            )
        if after is not None and after.empty > _MOST * after.responses:
            found.append(
                "most responses stop at once; train longer, hold stop tokens back with --rollout-hold-end, and look "
                "whether the prompts are questions of the kind that the teacher answers"
            )
        return found
