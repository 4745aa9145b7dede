"""What the AR model itself answers: asked once, kept in a file, the measure of every arm."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decoding.writers import autoregressive
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opdlm.models.tokens import encode_prompt, encode_text
from real.facts import Fact, untouched
from real.material import Material

FACT_TOKENS, WORD_TOKENS = 24, 6
_MOST_ASKED = 5  # for each fact that is wanted: a model that knows nothing is not asked for ever


@dataclass(frozen=True)
class Sizes:
    """How much is asked. facts: that the AR model knows. prompts: of each kind, with `tokens` of answer at most."""

    facts: int = 200
    prompts: int = 24
    tokens: int = 64
    passages: int = 100


@dataclass(frozen=True)
class Reference:
    """Attributes:
    sizes: what was asked. facts: those that the AR model knows; asked_facts: how many it was asked for that.
    texts: kind -> (prompt's ids, its answer's ids). words: (passage, last word, whether the AR model says it).
    """

    sizes: Sizes
    facts: list[Fact]
    asked_facts: int
    texts: dict[str, list[tuple[list[int], list[int]]]]
    words: list[tuple[str, str, bool]]


def reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material, sizes: Sizes, path: Path
) -> Reference:
    """Of the file, if it has these sizes; else asked now."""
    if path.is_file() and (kept := json.loads(path.read_text(encoding="utf-8")))["sizes"] == asdict(sizes):
        return _read(kept)
    facts, asked = _known_facts(model, tokenizer, untouched(material.texts()), sizes.facts)
    texts = {}
    for kind, prompts in material.asked.items():
        ids = [encode_prompt(tokenizer, prompt, 192) for prompt in prompts[: sizes.prompts]]
        texts[kind] = list(zip(ids, answers(model, tokenizer, ids, sizes.tokens), strict=True))
    passages = material.passages[: sizes.passages]
    said = answers(model, tokenizer, [encode_text(tokenizer, before) for before, _ in passages], WORD_TOKENS)
    words = [(before, word, says(tokenizer, ids, word)) for (before, word), ids in zip(passages, said, strict=True)]
    made = Reference(sizes, facts, asked, texts, words)
    path.write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
    return made


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], most: int
) -> list[list[int]]:
    """Greedy answers by transformers' `generate`, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    written = autoregressive(model, tokenizer, most, 16).write([prompts[index] for index in order])[0]
    return [ids for _, ids in sorted(zip(order, written, strict=True))]


def says(tokenizer: PreTrainedTokenizerBase, ids: list[int], word: str) -> bool:
    """Whether the first word of the continuation is that word."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True)).split()
    return bool(text) and text[0].strip(".,!?;:\"'").lower() == word.lower()


def _known_facts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: list[Fact], wanted: int
) -> tuple[list[Fact], int]:
    """The first `wanted` facts that the model knows, in a random order, and how many it was asked."""
    known, asked = list[Fact](), 0
    facts = random.Random(0).sample(facts, min(len(facts), _MOST_ASKED * wanted))
    while facts and len(known) < wanted:
        batch, facts = facts[:64], facts[64:]
        ids = [encode_prompt(tokenizer, fact.question) for fact in batch]
        said = answers(model, tokenizer, ids, FACT_TOKENS)
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        known += [fact for fact, text in zip(batch, texts, strict=True) if fact.known(text)]
        asked += len(batch)
    return known[:wanted], asked


def _read(kept: dict[str, Any]) -> Reference:
    return Reference(
        Sizes(**kept["sizes"]),
        [Fact(**fact) for fact in kept["facts"]],
        kept["asked_facts"],
        {kind: [(prompt, answer) for prompt, answer in pairs] for kind, pairs in kept["texts"].items()},
        [(before, word, said) for before, word, said in kept["words"]],
    )
