"""Commit rules, against the definitions of their papers written out in loops."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opdlm.config import GenerationSettings
from opdlm.core import commit
from opdlm.core.propose import Proposals
from opdlm.sampling.rules import MOST_NUMBERS, as_numbers, decide, history

RULES: dict[str, commit.CommitRule] = {
    "static": partial(commit.static, tokens_per_step=1),
    "static:2": partial(commit.static, tokens_per_step=2),
    "sequential:3": partial(commit.sequential, tokens_per_step=3),
    "dynamic:0.8": partial(commit.dynamic, threshold=0.8),
    "prefix:0.8": partial(commit.prefix, threshold=0.8),
    "factor:0.6": partial(commit.factor, factor=0.6),
    "entropy:2": partial(commit.entropy_bound, bound=2.0, by_confidence=False),
    "entropy by confidence": partial(commit.entropy_bound, bound=2.0, by_confidence=True),
    "klass:0.8": partial(commit.klass, threshold=0.8, drift=0.05, history=2),
}


def proposals(
    confidence: list[list[float]], log_probability: torch.Tensor | None = None, drift: torch.Tensor | None = None
) -> Proposals:
    """Proposals with these confidences [B, S]; what a rule does not look at stays empty."""
    c = torch.tensor(confidence)
    return Proposals(
        token=torch.zeros_like(c, dtype=torch.int64),
        confidence=c,
        log_probability=c.new_zeros(*c.shape, 0) if log_probability is None else log_probability,
        drift=c.new_zeros(*c.shape, 2) if drift is None else drift,
    )


def fixed(committed: torch.Tensor) -> list[set[int]]:
    return [set(row.nonzero()[:, 0].tolist()) for row in committed]


@st.composite
def drawn_steps(draw: st.DrawFn) -> tuple[Proposals, torch.Tensor]:
    """Proposals of 3 rows and what is masked. Confidences and drifts are coarse, so that they tie and touch bounds."""
    size = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    steps = st.lists(st.integers(0, 32), min_size=size, max_size=size)
    confidence = [[n / 32 for n in draw(steps)] for _ in range(3)]
    sharpness = torch.rand(3, size, 1, generator=generator) * 8
    log_probability = (torch.randn(3, size, 5, generator=generator) * sharpness).log_softmax(-1)
    drift = torch.tensor([0.0, 0.01, 0.05, 0.2, torch.inf])[torch.randint(0, 5, (3, size, 3), generator=generator)]
    masked = torch.tensor([draw(st.lists(st.booleans(), min_size=size, max_size=size)) for _ in range(3)])
    return proposals(confidence, log_probability, drift), masked


# --- the papers' definitions: what to fix of the masked positions `open_` of a row ----------------------------------

Row = Callable[[list[int], list[float], list[float], list[list[float]]], set[int]]


def best(open_: list[int], confidence: list[float]) -> list[int]:
    """Most confident first, the left one of equals."""
    return sorted(open_, key=lambda i: (-confidence[i], i))


def prefix_by_hand(open_: list[int], confidence: list[float], _entropy: object, _drift: object) -> set[int]:
    """From the left while the model is sure; else the leftmost."""
    return set(itertools.takewhile(lambda i: confidence[i] > 0.8, open_)) or set(open_[:1])


def factor_by_hand(open_: list[int], confidence: list[float], _entropy: object, _drift: object) -> set[int]:
    """Fast-dLLM, section 3.3: the largest n with (n + 1)(1 - c_(n)) < f, at least one token."""
    ranked = best(open_, confidence)
    good = [n for n in range(1, len(ranked) + 1) if (n + 1) * (1 - confidence[ranked[n - 1]]) < 0.6]
    return set(ranked[: max([1, *good])])


def entropy_by_hand(
    open_: list[int], confidence: list[float], entropy: list[float], _drift: object, by_confidence: bool = False
) -> set[int]:
    """EB-Sampler, equation 8: the largest n whose n least wrong have entropies with sum - max <= bound."""
    ranked = best(open_, confidence) if by_confidence else sorted(open_, key=lambda i: (entropy[i], i))
    chosen: set[int] = set()
    for n in range(1, len(ranked) + 1):
        first = [entropy[i] for i in ranked[:n]]
        if sum(first) - max(first) <= 2.0:
            chosen = set(ranked[:n])
    return chosen


def klass_by_hand(open_: list[int], confidence: list[float], _entropy: object, drift: list[list[float]]) -> set[int]:
    """KLASS, algorithm 1: confident, and stable for the last 2 steps; else the most confident."""
    stable = {i for i in open_ if confidence[i] > 0.8 and drift[i][-1] < 0.05 and drift[i][-2] < 0.05}
    return stable or set(best(open_, confidence)[:1])


BY_HAND: dict[str, Row] = {
    "prefix:0.8": prefix_by_hand,
    "factor:0.6": factor_by_hand,
    "entropy:2": entropy_by_hand,
    "entropy by confidence": partial(entropy_by_hand, by_confidence=True),
    "klass:0.8": klass_by_hand,
    "static:2": lambda open_, confidence, *_: set(best(open_, confidence)[:2]),
    "sequential:3": lambda open_, *_: set(open_[:3]),
    "dynamic:0.8": lambda open_, c, *_: {i for i in open_ if c[i] > 0.8} or set(best(open_, c)[:1]),
}


@pytest.mark.parametrize("rule", BY_HAND)
@settings(max_examples=60, deadline=None)
@given(drawn=drawn_steps())
def test_each_rule_is_its_papers_definition(rule: str, drawn: tuple[Proposals, torch.Tensor]) -> None:
    """Else a number from a paper would fix other tokens here than there."""
    seen, masked = drawn
    entropy = seen.entropy().tolist()
    for row, found in enumerate(fixed(RULES[rule](seen, masked))):
        open_ = masked[row].nonzero()[:, 0].tolist()
        expected = BY_HAND[rule](open_, seen.confidence[row].tolist(), entropy[row], seen.drift[row].tolist())
        assert found == expected


@settings(max_examples=60, deadline=None)
@given(drawn=drawn_steps())
def test_every_rule_makes_progress(drawn: tuple[Proposals, torch.Tensor]) -> None:
    """Else a row could loop forever, or a rule could overwrite a fixed token.

    What is proposed where nothing is masked counts for nothing: other values there, the same choice.
    """
    seen, masked = drawn
    elsewhere = ~masked
    other = replace(
        seen,
        token=seen.token + 1,
        confidence=torch.where(elsewhere, 1 - seen.confidence, seen.confidence),
        log_probability=torch.where(elsewhere[..., None], seen.log_probability.flip(1), seen.log_probability),
        drift=torch.where(elsewhere[..., None], 0.0, seen.drift),
    )
    before = [getattr(seen, field.name).clone() for field in fields(seen)]
    for rule in RULES.values():
        committed = rule(seen, masked)
        assert not (committed & elsewhere).any()
        assert torch.equal(committed.any(-1), masked.any(-1))
        assert torch.equal(rule(other, masked), committed)
    assert torch.equal(masked, ~elsewhere)
    assert all(torch.equal(getattr(seen, f.name), value) for f, value in zip(fields(seen), before, strict=True))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("static", "....x."),
        ("static:2", ".x..x."),
        ("sequential:3", ".x.xx."),
        ("dynamic:0.8", ".x..xx"),
        ("prefix:0.8", ".x...."),
        ("factor:0.6", ".x..x."),
        ("klass:0.8", ".x...x"),
    ],
)
def test_what_each_rule_fixes(rule: str, expected: str) -> None:
    """Else a threshold or a count would mean something else than the papers say.

    Column 0 and 2 are fixed already, however confident the model is of them; column 4 has not settled yet.
    """
    drift = torch.tensor([[0.0, 0.01, 0.0, 0.0, 0.3, 0.02]])[..., None].expand(-1, -1, 2)
    seen = proposals([[0.99, 0.9, 0.999, 0.3, 0.95, 0.81]], drift=drift)
    masked = torch.tensor([[False, True, False, True, True, True]])
    found = RULES[rule](seen, masked)[0].tolist()
    assert "".join("x" if fixed else "." for fixed in found) == expected


def test_prefix_reads_over_what_is_fixed() -> None:
    """Else a filled gap, of which the model is not sure, would stop it."""
    masked = torch.tensor([[False, True, False, True, True, True]])
    seen = proposals([[0.1, 0.9, 0.2, 0.95, 0.3, 0.99]])
    assert commit.prefix(seen, masked, 0.8).tolist() == [[False, True, False, True, False, False]]


def test_dynamic_fixes_the_best_one_below_the_threshold() -> None:
    """Else decoding would never end where the model is unsure; the comparison is strict, as published."""
    masked = torch.ones(1, 3, dtype=torch.bool)
    assert commit.dynamic(proposals([[0.2, 0.5, 0.4]]), masked, 0.9).tolist() == [[False, True, False]]
    assert commit.dynamic(proposals([[0.5, 0.5, 0.4]]), masked, 0.5).tolist() == [[True, False, False]]


def test_factor_prefers_the_surer_of_two_that_seem_hopeless() -> None:
    """Else rounding, which makes 1 of both doubts, would fix the left one instead of the more confident one."""
    seen = proposals([[1e-12, 1e-9, 0.0]])
    assert commit.factor(seen, torch.ones(1, 3, dtype=torch.bool), 2.5).tolist() == [[False, True, False]]


def test_klass_waits_for_a_history() -> None:
    """Else the first steps of a block, which have nothing to be compared with, would count as settled."""
    masked = torch.ones(1, 3, dtype=torch.bool)
    for known, expected in ((0, [False, True, False]), (1, [False, True, False]), (2, [True, True, False])):
        drift = torch.full((1, 3, 2), torch.inf)
        drift[..., 2 - known :] = 0.0
        seen = proposals([[0.9, 0.95, 0.5]], drift=drift)
        assert commit.klass(seen, masked, 0.8, 0.05, history=2).tolist() == [expected]


def test_certain_tokens_are_free_under_any_bound() -> None:
    """Else a bound of 0 would never fix two tokens, though certain ones know nothing about each other."""
    certain = torch.full((1, 4, 5), -1e30)
    certain[..., 0] = 0.0
    certain[0, 2] = 0.0  # a uniform one: log 5 nats
    seen = proposals([[1.0, 1.0, 0.2, 1.0]], certain.log_softmax(-1))
    masked = torch.tensor([[True, True, True, False]])
    assert commit.entropy_bound(seen, masked, 0.0, by_confidence=False).tolist() == [[True, True, True, False]]
    assert commit.entropy_bound(seen, masked, 0.0, by_confidence=True).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("bound", [0.1, 1.0, 4.0])
def test_entropy_bound_is_the_sampler_of_transformers(bound: float) -> None:
    """Else the bound would not be the one that DiffusionGemma's checkpoints name."""
    theirs = pytest.importorskip(
        "transformers.models.diffusion_gemma.generation_diffusion_gemma", reason="this transformers has none"
    )
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 8, 11, generator=generator) * torch.rand(40, 8, 1, generator=generator) * 9
    sampler = theirs.EntropyBoundSampler(theirs.EntropyBoundSamplerConfig(bound), 8, 11, 1)
    zeros = torch.zeros(40, 8, dtype=torch.int64)
    expected = sampler.accept_canvas(zeros, zeros + 1, logits, 0).bool()
    seen = proposals(torch.zeros(40, 8).tolist(), logits.log_softmax(-1))
    found = commit.entropy_bound(seen, torch.ones_like(expected), bound, by_confidence=False)
    assert torch.equal(found, expected)
    assert len(found.sum(-1).unique()) > 2, "all rows fix as many: the test says less than it seems to"
    odd = torch.arange(8) % 2 == 1  # only these are masked
    expected = sampler.accept_canvas(zeros[:, odd], zeros[:, odd] + 1, logits[:, odd], 0).bool()
    found = commit.entropy_bound(seen, odd.expand(40, -1), bound, by_confidence=False)
    assert torch.equal(found[:, odd], expected)
    assert not found[:, ~odd].any()


@settings(max_examples=20, deadline=None)
@given(drawn=drawn_steps())
def test_the_settings_reach_the_rule(drawn: tuple[Proposals, torch.Tensor]) -> None:
    """Else `--decoding factor:0.6` would decode with the default, or with another rule.

    Each rule alone, and a batch whose rows have different ones: row by row the same.
    """
    seen, masked = drawn
    given_ = {
        "factor:0.6": "factor:0.6",
        "entropy:2": "entropy:2",
        "entropy by confidence": {"kind": "entropy", "bound": 2, "by_confidence": True},
        "klass:0.8": {"kind": "klass", "threshold": 0.8, "drift": 0.05, "history": 2},
    }
    decodings = {
        name: GenerationSettings.model_validate({"decoding": given_.get(name, name)}).decoding.model_dump()
        for name in RULES
    }
    rows = len(masked)
    for name, decoding in decodings.items():
        found = decide([decoding["kind"]], *numbered([decoding] * rows), seen, masked)
        assert torch.equal(found, RULES[name](seen, masked)), name
        assert history(decoding) == (2 if name == "klass:0.8" else 0)
    for first in range(len(RULES)):
        mixed = [list(RULES)[(first + 4 * row) % len(RULES)] for row in range(rows)]
        chosen = [decodings[name] for name in mixed]
        found = decide({one["kind"] for one in chosen}, *numbered(chosen), seen, masked)
        for row, name in enumerate(mixed):
            assert torch.equal(found[row], RULES[name](seen, masked)[row]), name


def numbered(decodings: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule and its numbers of each row."""
    rules = [as_numbers(decoding) for decoding in decodings]
    return torch.tensor([index for index, _ in rules]), torch.tensor([n for _, n in rules]).view(-1, MOST_NUMBERS)
