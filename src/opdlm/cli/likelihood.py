"""`opdlm eval --prompts`: how likely the original finds what the converted model writes."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from opdlm.config import GenerationSettings, settings_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from opdlm.models.adapt import BlockDiffusionModel
    from opdlm.sampling.api import DiffusionLM

_AUTOREGRESSIVE = "sequential"


@dataclass(frozen=True)
class Likelihood:
    """One row: who wrote and how, bits per byte under the original, tokens per forward, response tokens."""

    writer: str
    decoding: str
    bits_per_byte: float
    tokens_per_forward: float
    tokens: int


def likelihoods(
    student: "DiffusionLM",
    arlm: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> list[Likelihood]:
    """The original itself, the student before training (the original's weights in the student's geometry), the student.

    The student before training shows what the conversion taught. The original shows what can be reached: at
    temperature 1 its bits per byte are its own entropy.
    """
    from opdlm.core.types import Geometry
    from opdlm.models.adapt import BlockDiffusionModel
    from opdlm.models.tokens import find_or_add_mask_token

    untrained = copy.deepcopy(arlm)
    mask_token_id = find_or_add_mask_token(untrained, copy.deepcopy(student.tokenizer))
    before = BlockDiffusionModel(untrained, student.model.geometry, mask_token_id)
    original = before.at(Geometry(1, "shifted", "causal"))
    writers = [("original", original, (_AUTOREGRESSIVE,))]
    writers += [("student before", before, decodings), ("student", student.model, decodings)]
    return [
        _likelihood(name, model, student, arlm, prompts, decoding, max_new_tokens, temperature, batch_size)
        for name, model, chosen in writers
        for decoding in chosen
    ]


def _likelihood(
    name: str,
    model: "BlockDiffusionModel",
    student: "DiffusionLM",
    arlm: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    decoding: str,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> Likelihood:
    from opdlm.evals.bits import bits_per_byte
    from opdlm.sampling.engine import Engine

    given = {"decoding": decoding, "max_new_tokens": max_new_tokens, "temperature": temperature}
    settings = settings_from(GenerationSettings, given)
    rollout = Engine(model, student.tokens, settings, batch_size).generate(prompts)
    ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), rollout.stopped.tolist(), strict=True)
    # The stop token has no byte, so it is not scored.
    sequences = [
        (rollout.input_ids[row, : length - int(stopped)].tolist(), begin)
        for row, (begin, length, stopped) in enumerate(ends)
    ]
    texts = student.tokenizer.batch_decode([ids[begin:] for ids, begin in sequences], skip_special_tokens=True)
    tokens = int((rollout.length - rollout.prompt_length).sum())
    bits = bits_per_byte(arlm, sequences, texts)
    return Likelihood(name, decoding, bits, tokens / int(rollout.forwards.sum()), tokens)


def likelihood_table(rows: Sequence[Likelihood], title: str) -> Table:
    """For the terminal."""
    made = Table(title=title, title_justify="left")
    made.add_column("written by")
    for column in ("decoding", "bits per byte", "tokens / forward", "tokens"):
        made.add_column(column, justify="right")
    for row in rows:
        decoding = "autoregressive" if row.writer == "original" else row.decoding
        numbers = (f"{row.bits_per_byte:.3f}", f"{row.tokens_per_forward:.2f}", f"{row.tokens:,}")
        made.add_row(row.writer, decoding, *numbers)
    return made


def likelihoods_to_json(rows: Sequence[Likelihood]) -> dict[str, Any]:
    """Plain values."""
    return {"likelihood": [asdict(row) for row in rows]}
