"""The log-likelihood of given text: against slow oracles, against transformers, and against what the engine writes."""

from collections.abc import Sequence
from functools import cache
from itertools import permutations, product

import pytest
import torch

from lossless import drafting
from opdlm.config import GenerationSettings
from opdlm.core.layout import CLEAN, Attention
from opdlm.core.types import Geometry
from opdlm.errors import UsageError
from opdlm.evals import scoring
from opdlm.evals.scoring import Kind, Score, Scoring, Text, log_likelihoods, longest_text
from opdlm.models.block_diffusion import BlockDiffusionModel
from opdlm.models.tokens import SpecialTokens
from opdlm.sampling.engine import Engine
from opdlm.sampling.requests import continuations
from rollouts import random_prompts
from sampling_support import forwards_of
from support import ARCHITECTURES, MASK, tiny_model

GEOMETRIES = [
    Geometry(4, "same", "block"),
    Geometry(4, "shifted", "causal"),
    Geometry(3, "shifted", "block"),
    Geometry(2, "same", "causal"),
]
NAMES = [f"{g.block_size}-{g.prediction}-{g.context}" for g in GEOMETRIES]


def model_at(geometry: Geometry, architecture: str = "llama") -> BlockDiffusionModel:
    return BlockDiffusionModel(tiny_model(architecture, initializer_range=0.35), geometry, MASK)


def texts_of(pairs: Sequence[tuple[int, int]], seed: int = 0) -> list[Text]:
    """Random ones of these numbers of tokens in context and continuation."""
    ids = iter(random_prompts([length for pair in pairs for length in pair], seed))
    return [Text(tuple(next(ids)), tuple(next(ids))) for _ in pairs]


TEXTS = texts_of([(1, 1), (1, 9), (4, 4), (5, 2), (6, 7), (8, 1), (3, 5), (12, 3)])


def scores(model: BlockDiffusionModel, texts: Sequence[Text], kind: Kind, batch_size: int = 32, **how) -> list[Score]:
    found = dict(log_likelihoods(model, texts, Scoring(kind, **how), batch_size))
    return [found[index] for index in range(len(texts))]


def nats(found: Sequence[Score]) -> torch.Tensor:
    return torch.tensor([one.log_likelihood for one in found])


@cache
@torch.no_grad()
def block_log_probability(model: BlockDiffusionModel, known: tuple[int | None, ...], start: int) -> torch.Tensor:
    """[S, V]: the oracle. The whole text in one pass without a cache: clean blocks, then one block with None masked."""
    size = model.geometry.block_size
    ids = [MASK if token is None else token for token in known]
    ids += [MASK] * (start + size - len(ids))
    position = torch.arange(len(ids))[None]
    stream = torch.where(position < start, CLEAN, 1)
    hidden = model.hidden(torch.tensor([ids]), Attention.within(model.geometry, position, stream))[0]
    shift = int(model.geometry.prediction == "shifted")
    rows = (torch.arange(start, start + size) - shift).clamp(min=0)
    return model.logits(hidden[rows]).log_softmax(-1)


def along(model: BlockDiffusionModel, text: Text, start: int, order: Sequence[int]) -> float:
    """The chain rule inside one block in this order; positions before and behind are as they are when it is written."""
    whole, total = text.context + text.continuation, 0.0
    known: list[int | None] = [None if position in order else token for position, token in enumerate(whole)]
    known = known[: start + model.geometry.block_size]
    for position in order:
        total += float(block_log_probability(model, tuple(known), start)[position - start, whole[position]])
        known[position] = whole[position]
    return total


def blocks(text: Text, size: int) -> list[tuple[int, list[int]]]:
    first, end = len(text.context), len(text.context) + len(text.continuation)
    starts = range(first // size * size, end, size)
    return [(start, list(range(max(start, first), min(start + size, end)))) for start in starts]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_sequential_is_the_chain_rule_of_the_slow_pass(geometry):
    """Without it a leak, a slip of a position or a stale cache would change every multiple-choice score."""
    model = model_at(geometry)
    expected = [sum(along(model, text, *one) for one in blocks(text, geometry.block_size)) for text in TEXTS]
    torch.testing.assert_close(nats(scores(model, TEXTS, "sequential")), torch.tensor(expected), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_bound_is_the_mean_over_all_orders(geometry):
    """Without it the bound would be that of no order at all."""
    model = model_at(geometry)
    expected = []
    for text in TEXTS:
        total = 0.0
        for start, inside in blocks(text, geometry.block_size):
            orders = list(permutations(inside))
            total += sum(along(model, text, start, order) for order in orders) / len(orders)
        expected.append(total)
    torch.testing.assert_close(nats(scores(model, TEXTS, "bound")), torch.tensor(expected), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_causal_is_the_chain_rule_of_transformers(architecture):
    """Without it a shifted, causal student would not be scored as the AR model that it also is."""
    model = model_at(Geometry(4, "shifted", "causal"), architecture)
    found = scores(model, TEXTS, "causal")
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor([text.context + text.continuation])
        with torch.no_grad():
            logits = model.model(input_ids=ids, use_cache=False).logits[0].float()
        logits[:, MASK] = -1e30  # the student's mask token is never written
        log_probability = logits.log_softmax(-1)[len(text.context) - 1 : -1]
        target = torch.tensor(text.continuation)
        assert one.log_likelihood == pytest.approx(float(log_probability.gather(1, target[:, None]).sum()), abs=1e-4)
        assert one.greedy == bool((log_probability.argmax(-1) == target).all())


@pytest.mark.parametrize("context", ["causal", "block"])
@pytest.mark.parametrize("kind", ["sequential", "bound"])
def test_blocks_of_one_token_are_the_ar_model(context, kind):
    """Without it the three likelihoods would not meet where they must: with one token there is one order."""
    one = model_at(Geometry(1, "shifted", context))
    torch.testing.assert_close(nats(scores(one, TEXTS, kind)), nats(scores(one, TEXTS, "causal")))


def test_a_lossless_model_has_the_likelihood_of_its_base():
    """Without it the gate would speak where only the original may."""
    model = drafting()
    plain = BlockDiffusionModel(tiny_model(), model.geometry, model.mask_token_id)
    torch.testing.assert_close(nats(scores(model, TEXTS, "causal")), nats(scores(plain, TEXTS, "causal")))
    with pytest.raises(UsageError, match="choose causal"):
        scores(model, TEXTS, "bound")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_sequential_is_what_the_engine_says_while_it_writes(geometry):
    """Without it the likelihood could be that of a decoder that nobody runs."""
    model = model_at(geometry)
    prompts = random_prompts((1, 4, 6, 7))
    settings = GenerationSettings.model_validate({"decoding": "sequential", "temperature": 1, "max_new_tokens": 10})
    rollout = Engine(model, SpecialTokens(MASK, 0, ())).write(continuations(prompts, settings))
    ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
    written = [rollout.input_ids[row, begin:end].tolist() for row, (begin, end) in enumerate(ends)]
    assert rollout.confidence is not None
    said = [float(rollout.confidence[row, len(ids) : len(ids) + 10].log().sum()) for row, ids in enumerate(prompts)]
    texts = [Text(tuple(ids), tuple(text)) for ids, text in zip(prompts, written, strict=True)]
    torch.testing.assert_close(nats(scores(model, texts, "sequential")), torch.tensor(said), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
@pytest.mark.parametrize("kind", ["sequential", "bound"])
def test_greedy_is_what_the_engine_writes(geometry, kind):
    """Without it LAMBADA's accuracy would be about other text than the model writes."""
    model = model_at(geometry)
    prompts = random_prompts((1, 4, 6, 7))
    settings = GenerationSettings.model_validate({"decoding": "sequential", "max_new_tokens": 6})
    rollout = Engine(model, SpecialTokens(MASK, 0, ())).write(continuations(prompts, settings))
    right = [
        Text(tuple(ids), tuple(rollout.input_ids[row, len(ids) : len(ids) + 6].tolist()))
        for row, ids in enumerate(prompts)
    ]
    wrong = [Text(text.context, (*text.continuation[:-1], (text.continuation[-1] + 1) % MASK)) for text in right]
    assert [one.greedy for one in scores(model, right + wrong, kind)] == [True] * 4 + [False] * 4


def test_probabilities_add_up_to_one():
    """Without it a "likelihood" could be larger than any distribution allows; a bound may only be smaller."""
    letters = 7
    model = BlockDiffusionModel(
        tiny_model(vocab_size=letters + 1, initializer_range=0.35), Geometry(2, "same", "block"), letters
    )
    every = [Text((1, 2, 3), pair) for pair in product(range(letters), repeat=3)]
    assert float(nats(scores(model, every, "sequential", 512)).exp().sum()) == pytest.approx(1, abs=1e-4)
    assert float(nats(scores(model, every, "bound", 512)).exp().sum()) < 1


@pytest.mark.parametrize("kind", ["sequential", "bound"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_the_batch_does_not_matter(kind, architecture, monkeypatch):
    """Without it a score would depend on the other choices, on the shared context, or on how passes are divided."""
    model = model_at(Geometry(4, "same", "block"), architecture)
    shared = [Text(TEXTS[-1].context, text.continuation) for text in TEXTS]
    longer = [Text(TEXTS[-1].context[:9] + text.context, text.continuation) for text in TEXTS]
    texts = [*TEXTS, *shared, *longer]
    alone = [one for text in texts for one in scores(model, [text], kind)]
    for batch_size in (3, 64):
        torch.testing.assert_close(nats(scores(model, texts, kind, batch_size)), nats(alone), atol=2e-4, rtol=1e-5)
    monkeypatch.setattr(scoring, "_NOISED_TOKENS", 150)
    monkeypatch.setattr(scoring, "_LOGITS", 500)
    torch.testing.assert_close(nats(scores(model, texts, kind)), nats(alone), atol=2e-4, rtol=1e-5)


def test_a_shared_context_is_computed_once():
    """Without it four choices would cost four contexts, and five-shot questions all their examples each."""
    model = model_at(Geometry(4, "shifted", "causal"))
    shots, question = tuple(random_prompts((40,))[0]), tuple(random_prompts((9,), 1)[0])
    texts = [Text(shots + question[:n], (choice,)) for n in (5, 7, 9) for choice in (6, 7, 8, 9)]
    with forwards_of(model) as passes:
        scores(model, texts, "causal")
    assert sum(rows * tokens for rows, tokens in passes) < 40 + 3 * 10 + 12 * 2


def test_draws_are_of_the_seed_and_come_near_the_bound():
    """Without it two runs would differ, or the estimate would be of something else."""
    model = model_at(Geometry(8, "same", "block"))
    texts = texts_of([(3, 5), (8, 8)])
    exact = nats(scores(model, texts, "bound", samples=255))
    drawn = [nats(scores(model, texts, "bound", samples=16, seed=seed)) for seed in range(16)]
    assert torch.equal(drawn[3], nats(scores(model, texts, "bound", samples=16, seed=3)))
    assert not torch.equal(drawn[0], drawn[1])
    values = torch.stack(drawn)
    assert ((values.mean(0) - exact).abs() < 4 * values.std(0) / 16**0.5).all()


def test_choices_of_a_question_are_compared_on_the_same_states():
    """Without it two equal choices could get two scores, and chance would pick one."""
    model = model_at(Geometry(8, "same", "block"))
    text = texts_of([(3, 13)])[0]
    found = scores(model, [text, text], "bound", samples=4, batch_size=1)
    assert found[0].log_likelihood == pytest.approx(found[1].log_likelihood, abs=1e-5)


def test_what_cannot_be_scored():
    """Without it a wrong question would get a number."""
    model = model_at(Geometry(4, "same", "block"))
    with pytest.raises(UsageError, match="choose sequential or bound"):
        scores(model, TEXTS, "causal")
    with pytest.raises(UsageError, match="no context"):
        scores(model, [Text((), (5,))], "bound")
    assert scores(model, [Text((5,), ())], "bound") == [Score(0.0, True)]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=NAMES)
def test_a_text_as_long_as_the_context(geometry):
    """Without it the last block, or the cache, could reach behind the model's positions."""
    model = model_at(geometry)
    assert model.max_length == 256
    most = longest_text(model, "sequential", 256)
    assert most == 256 // geometry.block_size * geometry.block_size
    text = texts_of([(most - 5, 5)])[0]
    assert scores(model, [text], "sequential")[0].log_likelihood < 0
    causal = model_at(Geometry(4, "shifted", "causal"))
    assert longest_text(causal, "causal", 256) == 257
    assert scores(causal, texts_of([(250, 7)]), "causal")[0].log_likelihood < 0
