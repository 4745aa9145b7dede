"""From commit steps to training sequences. Rollouts are written by hand: see `rollouts.scripted`."""

from itertools import combinations

import pytest
import torch

from opdlm.core.types import Geometry, Rollout, StateBatch
from rollouts import scripted, states_of
from support import MASK

# Prompt of 5; block 1 (columns 4-7) was decoded in steps 1, 0, 1; block 2 (8-11) in 2, 0, 1, and column 11 never.
ONE = scripted([("ppppp101201.", 11)])
GEOMETRY = Geometry(4)


def chosen(rollout: Rollout, selection: str, seed: int = 0, **options: object) -> StateBatch:
    seeds = torch.arange(seed, seed + len(rollout.length))
    return states_of(rollout, GEOMETRY, selection, seeds, **options)  # type: ignore[arg-type]


def noised_blocks(states: StateBatch, row: int = 0) -> dict[tuple[int, int], list[int]]:
    """(stream, first position) -> the block's ids."""
    found: dict[tuple[int, int], list[int]] = {}
    mine = states.document == row
    columns = zip(states.stream[mine].tolist(), states.position_ids[mine].tolist(), states.input_ids[mine], strict=True)
    for stream, position, token in columns:
        if stream > 0:
            found.setdefault((stream, position // 4 * 4), []).append(int(token))
    return found


M = MASK
STATES = {  # first position -> its visited states, step after step
    4: [[14, M, M, M], [14, M, 16, M]],
    8: [[M, M, M, M], [M, 19, M, M], [M, 19, 20, M]],
}


def test_all_states_are_the_visited_ones() -> None:
    """Else the student would be trained on states that decoding never shows it."""
    states = chosen(ONE, "all")
    expected = {(stream + 1, start): ids for start, steps in STATES.items() for stream, ids in enumerate(steps)}
    assert noised_blocks(states) == expected
    clean = states.stream[0] == 0
    assert states.input_ids[0, clean].tolist() == list(range(10, 18)), "the clean text up to the last block"
    assert states.position_ids[0, clean].tolist() == list(range(8))


def test_only_response_tokens_are_supervised() -> None:
    """Else the loss would run on the prompt, on what follows the end, or on padding (up to five times too much)."""
    states = chosen(ONE, "all")
    pairs = sorted(zip(states.stream[0, states.predictor].tolist(), states.position.tolist(), strict=True))
    assert pairs == [(1, 5), (1, 6), (1, 7), (1, 8), (1, 9), (1, 10), (2, 5), (2, 7), (2, 8), (2, 10), (3, 8)]
    assert (states.input_ids[0, states.predictor] == MASK).all()
    assert torch.equal(states.position_ids[0, states.predictor], states.position)


def test_one_per_block_is_uniform_over_the_visited() -> None:
    """Else a bias to early or late steps would change the recipe."""
    counts: dict[tuple[int, ...], int] = {}
    rows = 300
    many = ONE.rows(torch.zeros(rows, dtype=torch.int64))
    states = chosen(many, "one_per_block")
    for row in range(rows):
        blocks = noised_blocks(states, row)
        assert blocks.keys() == {(1, 4), (1, 8)}
        for (_, start), ids in blocks.items():
            assert ids in STATES[start]
            counts[start, STATES[start].index(ids)] = counts.get((start, STATES[start].index(ids)), 0) + 1
    for (start, _), count in counts.items():
        share = 1 / len(STATES[start])
        assert abs(count - rows * share) < 4 * (rows * share * (1 - share)) ** 0.5
    assert len(counts) == 5


def test_one_per_rollout_is_one_global_step() -> None:
    """Else Algorithm 1 as printed would be another recipe: finished blocks before the step, empty blocks behind it."""
    many = ONE.rows(torch.zeros(200, dtype=torch.int64))
    states = chosen(many, "one_per_rollout")
    steps = [
        {(1, 4): STATES[4][0], (1, 8): STATES[8][0]},
        {(1, 4): STATES[4][1], (1, 8): STATES[8][0]},
        {(1, 8): STATES[8][0]},
        {(1, 8): STATES[8][1]},
        {(1, 8): STATES[8][2]},
    ]
    found = [steps.index(noised_blocks(states, row)) for row in range(200)]
    for step in range(5):
        assert abs(found.count(step) - 40) < 4 * (200 * 0.2 * 0.8) ** 0.5


def test_the_end_can_be_left_out() -> None:
    """Else `supervise_end = false` (the published loss) would not be what it says; the stop token stays in the row."""
    stopped = scripted([("ppppp101201.", 11)], stopped=True)
    with_end, without = chosen(stopped, "all"), chosen(stopped, "all", supervise_end=False)
    assert set(with_end.position.tolist()) - set(without.position.tolist()) == {10}
    capped = chosen(ONE, "all", supervise_end=False)
    assert torch.equal(capped.position, chosen(ONE, "all").position), "a row cut at the cap has no end to leave out"


def test_shifted_predictors_stand_one_to_the_left() -> None:
    """Else a student with the AR model's shift would be trained on the outputs of other tokens than it decodes with."""
    shifted = Geometry(4, prediction="shifted")
    states = states_of(ONE, shifted, "all")
    same = chosen(ONE, "all")
    assert torch.equal(states.position, same.position)
    assert torch.equal(states.position_ids[0, states.predictor], states.position - 1)
    own_stream = same.stream[0, same.predictor]
    expected = torch.where(states.position % 4 == 0, 0, own_stream)  # a block's first token: the clean text before it
    assert torch.equal(states.stream[0, states.predictor], expected)


def test_documents_of_different_lengths_pack() -> None:
    """Else a short row would differ from the same row alone, or padding would be computed or supervised."""
    rows = [("ppppp101201.", 11), ("p012", 4), ("pppppppp0...", 9)]
    together = chosen(scripted(rows), "one_per_block", seed=5)
    assert len(together.input_ids) == 2, "8 + 8 tokens | 8 + 4 and 0 + 4 tokens"
    for row, one in enumerate(rows):
        alone = chosen(scripted([one]), "one_per_block", seed=5 + row)
        here, mine = together.document == row, together.row == row
        for name in ("input_ids", "position_ids", "stream"):
            assert torch.equal(getattr(together, name)[here], getattr(alone, name)[0])
        assert torch.equal(together.position[mine], alone.position)
        start = here.nonzero()[0, 1]
        assert torch.equal(together.predictor[mine] - start, alone.predictor)
    assert torch.equal(together.document[together.sequence, together.predictor], together.row)
    assert torch.equal(together.document < 0, together.stream < 0)


@pytest.mark.parametrize("supervise_end", [True, False])
def test_random_masks_are_unbiased(supervise_end: bool) -> None:
    """Else random-mask training would weigh tokens by the block that they are in (the 1/t weight of BD3-LM).

    Enumerated: over m ~ U{1..n} and all subsets of m tokens, the mean of sum(weight * loss) is the sum of the means of
    each token's loss over the states; with a loss of 1 it is the number of supervised tokens.
    """
    size, rows = 3, 3000
    text = scripted([("ppppp000", 8)], stopped=True).rows(torch.zeros(rows, dtype=torch.int64))
    states = chosen(text, "random_mask", supervise_end=supervise_end, bound_weight=True)
    exact = sum(
        size / m / sum(1 for _ in combinations(range(size), m)) / size
        for m in range(1, size + 1)
        for subset in combinations(range(size), m)
        for token in subset
        if supervise_end or token < 2
    )
    assert exact == pytest.approx(3 if supervise_end else 2)
    mean = states.weight.sum() / rows
    assert abs(mean - exact) < 0.1
    per_token = torch.zeros(8).index_add(0, states.position, states.weight) / rows
    torch.testing.assert_close(per_token[5:], torch.tensor([1.0, 1.0, float(supervise_end)]), atol=0.1, rtol=0)


def test_random_masks_have_uniform_counts_and_leave_the_prompt() -> None:
    """Else few or many masks would be preferred, a block could have none, or the prompt could be masked."""
    rows = 1200
    text = scripted([("pppppp0000000.", 12)]).rows(torch.zeros(rows, dtype=torch.int64))  # ends within block 2
    states = chosen(text, "random_mask", bound_weight=True)
    for start, count in ((4, 2), (8, 4)):
        block = (states.position >= start) & (states.position < start + 4)
        masks = torch.bincount(states.row[block], minlength=rows)
        for m in range(1, count + 1):
            assert abs(int((masks == m).sum()) - rows / count) < 4 * (rows / count) ** 0.5
        assert (masks > 0).all()
        torch.testing.assert_close(states.weight[block], count / masks[states.row[block]].float())
    assert int(states.position.min()) == 6
    assert int(states.position.max()) == 11
    plain = chosen(text, "random_mask")
    assert torch.equal(plain.position, states.position)
    assert (plain.weight == 1).all(), "the divergences weigh all masked tokens alike"


def test_inputs_are_left_alone() -> None:
    """Else states of a second update would be taken from an edited rollout."""
    before = {name: getattr(ONE, name).clone() for name in ("input_ids", "commit_step", "length", "end")}
    for selection in ("one_per_block", "all", "one_per_rollout", "random_mask"):
        chosen(ONE, selection)
    assert all(torch.equal(getattr(ONE, name), value) for name, value in before.items())


def test_a_response_that_is_only_its_end_can_be_left_out() -> None:
    """Else a row with nothing to learn would stop the run."""
    only_end = scripted([("pppp0...", 5)], stopped=True)
    states = chosen(only_end, "one_per_block", supervise_end=False)
    assert len(states.row) == 0


@pytest.mark.parametrize("supervise_end", [True, False])
def test_clean_text_predicts_its_next_token(supervise_end: bool) -> None:
    """Else `clean_weight` would train on other tokens than those that decoding `checked` reads from left to right."""
    rollout = scripted([("ppppp101201.", 11), ("pp10", 4)])
    geometry, seeds = Geometry(4, "shifted", "causal"), torch.arange(2)
    plain = states_of(rollout, geometry, "all", seeds, supervise_end=supervise_end)
    states = states_of(rollout, geometry, "all", seeds, supervise_end=supervise_end, clean_weight=0.5)
    more = slice(len(plain.row), None)
    assert torch.equal(states.position[: len(plain.row)], plain.position), "the others stay as they were"
    assert states.weight[: len(plain.row)].eq(1).all()
    assert states.weight[more].eq(0.5).all()
    row, position, place = states.row[more], states.position[more], (states.sequence[more], states.predictor[more])
    assert states.stream[place].eq(0).all()
    assert torch.equal(states.document[place], row)
    assert torch.equal(states.input_ids[place], rollout.input_ids[row, position - 1])
    ends = [int(rollout.length[r]) - int(rollout.stopped[r] and not supervise_end) for r in range(2)]
    expected = [[*range(5, ends[0])], [*range(2, ends[1])]]
    assert [sorted(position[row == r].tolist()) for r in range(2)] == expected
