"""A converted model against the AR model: facts kept, agreement, likelihood, last words, speed.

Everything is greedy. Rows are those of `measuring`: ours, and the AR model's as the rival.
"""

from collections.abc import Iterator, Sequence
from operator import eq
from statistics import median
from typing import Any

import measuring
from decoding import writers
from transformers import PreTrainedModel

from opdlm.config import GenerationSettings, settings_from
from opdlm.core.types import Rollout
from opdlm.evals.acceptance import acceptance_of
from opdlm.evals.bits import bits_per_byte
from opdlm.models.tokens import encode_prompt, encode_text
from opdlm.sampling.api import DiffusionLM
from real.reference import FACT_TOKENS, WORD_TOKENS, Reference, says

AR = "AR model, transformers generate"
BATCH = 32
SPEED_PROMPTS = {1: 6, 8: 16, 32: 32}
"""Batch size -> prompts of one timed pass."""
Row = dict[str, Any]


def settings_for(decoding: str, most: int) -> GenerationSettings:
    return settings_from(GenerationSettings, {"decoding": decoding, "max_new_tokens": most})


def facts(student: DiffusionLM, reference: Reference, decoding: str) -> Iterator[Row]:
    """Of the facts that the AR model knows, how many the student still knows."""
    if not reference.facts:
        return
    prompts = [encode_prompt(student.tokenizer, fact.question) for fact in reference.facts]
    rollout = student.written(prompts, settings_for(decoding, FACT_TOKENS), BATCH)
    texts = student.tokenizer.batch_decode(responses(rollout), skip_special_tokens=True)
    kept = [(fact.kind, fact.known(text)) for fact, text in zip(reference.facts, texts, strict=True)]
    for kind in ("all", *dict.fromkeys(kind for kind, _ in kept)):
        mine = [good for name, good in kept if kind in ("all", name)]
        shown = {"decoding": decoding, "kind": kind, "of": reference.asked_facts}
        yield measuring.row("facts kept", "fact", [sum(mine)], [len(mine)], AR, shown)
    yield _per_forward(rollout, {"decoding": decoding, "kind": "facts"})


def agreement(student: DiffusionLM, ar_model: PreTrainedModel, reference: Reference, decoding: str) -> Iterator[Row]:
    """Equal texts and tokens, the AR model's bits for each token of the student's text, tokens per forward."""
    shown = {"decoding": decoding}
    every: list[tuple[list[int], list[int], list[int]]] = []
    for kind, pairs in reference.texts.items():
        prompts = [prompt for prompt, _ in pairs]
        rollout = student.written(prompts, settings_for(decoding, reference.sizes.tokens), BATCH)
        ours = responses(rollout)
        yield _per_forward(rollout, {**shown, "kind": kind})
        every += [(prompt, mine, theirs) for (prompt, theirs), mine in zip(pairs, ours, strict=True)]
    same = [mine == theirs for _, mine, theirs in every]
    yield measuring.row("equal texts", "text", [sum(same)], [len(same)], AR, shown)
    equal = sum(a == b for _, mine, theirs in every for a, b in zip(mine, theirs, strict=False))
    longest = sum(max(len(mine), len(theirs)) for _, mine, theirs in every)
    yield measuring.row("tokens equal at the same place", "token", [equal], [longest], AR, shown)
    before = sum(_common(mine, theirs) for _, mine, theirs in every)
    yield measuring.row(
        "tokens before the first other one", "token", [before], [sum(len(theirs) for *_, theirs in every)], AR, shown
    )
    bits = [_bits(student, ar_model, [(prompt, text[which]) for prompt, *text in every]) for which in (0, 1)]
    yield measuring.row("bits per token under the AR model", "bit", bits[:1], bits[1:], AR, shown)


def _bits(student: DiffusionLM, ar_model: PreTrainedModel, texts: list[tuple[list[int], list[int]]]) -> float:
    """Bits of the AR model for each token, stop tokens included."""
    sequences = [([*prompt, *answer], len(prompt)) for prompt, answer in texts]
    decoded = student.tokenizer.batch_decode([answer for _, answer in texts], skip_special_tokens=True)
    size = sum(len(text.encode()) for text in decoded)
    return bits_per_byte(ar_model, sequences, decoded) * size / sum(len(answer) for _, answer in texts)


def last_words(student: DiffusionLM, reference: Reference, decoding: str) -> Iterator[Row]:
    """The greedy word behind a passage."""
    prompts = [encode_text(student.tokenizer, before) for before, *_ in reference.words]
    rollout = student.written(prompts, settings_for(decoding, WORD_TOKENS), BATCH)
    pairs = zip(responses(rollout), reference.words, strict=True)
    ours = sum(says(student.tokenizer, ids, word) for ids, (_, word, _) in pairs)
    theirs = sum(said for *_, said in reference.words)
    shown = {"decoding": decoding, "of": len(reference.words)}
    if theirs:
        yield measuring.row("last words", "word", [ours], [theirs], AR, shown)


def lossless_text(student: DiffusionLM, reference: Reference, decoding: str) -> Iterator[Row]:
    """Equal texts, tokens per forward by kind of prompt, acceptance by place."""
    tried, held, settings = 0, 0, settings_for(decoding, reference.sizes.tokens)
    for kind, pairs in reference.texts.items():
        rollout = student.written([prompt for prompt, _ in pairs], settings, BATCH)
        same = [mine == theirs for mine, (_, theirs) in zip(responses(rollout), pairs, strict=True)]
        tried, held = tried + len(same), held + sum(same)
        yield _per_forward(rollout, {"decoding": decoding, "kind": kind})
        drafts = acceptance_of(student, settings)
        drafts.saw(rollout)
        for place, share in enumerate(drafts.shares, 1):
            yield measuring.row("acceptance", "share", [share], [1.0], AR, {"kind": kind, "place": place})
    yield measuring.row("equal texts", "text", [held], [tried], AR, {"decoding": decoding})


def speed(
    student: DiffusionLM,
    ar_model: PreTrainedModel,
    reference: Reference,
    decodings: Sequence[str],
    tokens: int,
    repeats: int,
    batch_sizes: Sequence[int] = tuple(SPEED_PROMPTS),
) -> Iterator[Row]:
    """Tokens per second, prompts' passes included, in turns with `generate`."""
    mixed = [prompt for group in zip(*reference.texts.values(), strict=False) for prompt, _ in group]
    for batch_size in batch_sizes:
        prompts = mixed[: SPEED_PROMPTS[batch_size]]
        turns = {AR: writers.autoregressive(ar_model, student.tokenizer, tokens, batch_size)}
        turns |= {one: writers.engine(student, settings_for(one, tokens), batch_size) for one in decodings}
        answers: dict[str, list[writers.Answers]] = {name: [] for name in turns}
        for number in range(repeats):
            for name in _turned(list(turns), number):
                answers[name].append(turns[name].answer(prompts))
        speeds = {name: [one.tokens_per_second for one in made] for name, made in answers.items()}
        texts = answers[AR][0].responses
        for one in decodings:
            shown = {"decoding": one, "batch_size": batch_size, "prompts": len(prompts), "tokens": tokens}
            yield measuring.row("tokens per second", "token/s", speeds[one], speeds[AR], AR, shown)
            same = [sum(map(eq, made.responses, texts)) for made in answers[one]]
            yield measuring.row("equal texts", "text", same, [len(texts)] * len(same), AR, shown)
            written = sum(map(len, answers[one][0].responses))
            yield measuring.row("tokens per forward", "token", [written / answers[one][0].forwards], [1.0], AR, shown)
        told = ", ".join(f"{name} {median(values):.1f}" for name, values in speeds.items())
        print(f"batch size {batch_size}, tokens a second: {told}", flush=True)


def responses(rollout: Rollout) -> list[list[int]]:
    """Token ids, stop tokens included."""
    ends = zip(rollout.input_ids.tolist(), rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
    return [ids[begin:end] for ids, begin, end in ends]


def _per_forward(rollout: Rollout, shown: dict[str, Any]) -> Row:
    rate = int((rollout.length - rollout.prompt_length).sum()) / int(rollout.forwards.sum())
    return measuring.row("tokens per forward", "token", [rate], [1.0], AR, shown)


def _common(mine: list[int], theirs: list[int]) -> int:
    """Length of what both begin with."""
    differ = (place for place, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)
    return next(differ, min(len(mine), len(theirs)))


def _turned(names: list[str], number: int) -> list[str]:
    """Every other time the other way round: who goes first changes."""
    return names if number % 2 == 0 else names[::-1]
