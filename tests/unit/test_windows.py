"""Which windows a drafting model is trained on, and what stands in them."""

from dataclasses import replace

import torch

from opdlm.core.layout import PADDING
from opdlm.core.windows import WindowChoice, noise, select_windows
from rollouts import scripted

TEXT = replace(scripted([("ppp0011223", 10), ("p00012", 6), ("pp01", 4)], size=1))
SEEDS = torch.arange(3)


def anchors_of(choice: WindowChoice, row: int) -> list[int]:
    batch = select_windows(TEXT, choice, SEEDS)
    return batch.anchor[row][batch.stream[row] != PADDING].unique().tolist()


def test_visited_anchors_end_a_forward() -> None:
    """A window that decoding used begins at the last token of a forward; training at others would be a mismatch."""
    choice = WindowChoice(2)
    assert [anchors_of(choice, row) for row in range(3)] == [[4, 6, 8], [3, 4], [2]]
    everywhere = WindowChoice(2, anchors="all")
    assert [anchors_of(everywhere, row) for row in range(3)] == [[3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [2]]
    found = [anchors_of(WindowChoice(2, anchors="random"), row) for row in range(3)]
    assert [len(one) for one in found] == [3, 2, 1]
    assert all(set(one) <= set(anchors_of(everywhere, row)) for row, one in enumerate(found))


def test_each_place_predicts_the_token_behind_it_up_to_the_end() -> None:
    """Else drafts would be off by one, or the loss would run into the padding."""
    batch = select_windows(TEXT, WindowChoice(3), SEEDS)
    assert torch.equal(batch.position, batch.position_ids[batch.row, batch.predictor] + 1)
    pairs = {(int(row), int(position)) for row, position in zip(batch.row, batch.position, strict=True)}
    assert pairs == {(0, 5), (0, 6), (0, 7), (0, 8), (0, 9), (1, 4), (1, 5), (2, 3)}
    assert (batch.weight == 1).all()
    stopped = select_windows(replace(TEXT, stopped=torch.ones(3).bool()), WindowChoice(3, supervise_end=False), SEEDS)
    assert (stopped.position < TEXT.length[stopped.row] - 1).all()


def test_every_window_is_whole_and_has_a_stream_of_its_own() -> None:
    """Else a draft would see another number of neighbours in training than in decoding."""
    batch = select_windows(TEXT, WindowChoice(3, anchors="all"), SEEDS)
    for row in range(3):
        streams = batch.stream[row][batch.stream[row] != PADDING]
        assert streams.tolist() == [1 + i // 3 for i in range(len(streams))]
    inside = batch.stream != PADDING
    assert ((batch.position_ids - batch.anchor)[inside].view(-1, 3) == torch.arange(3)).all()


def test_noise_is_uniform_and_a_function_of_seed_anchor_and_place() -> None:
    """Else a stock engine, which draws uniform ids, would feed the adapter what it never saw."""
    seed, anchor = torch.arange(2000)[:, None], torch.arange(5)[None]
    ids = noise(seed, anchor, torch.zeros(1, 1).long(), 10)
    counts = ids.flatten().bincount(minlength=10).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 30  # chi-square, 9 degrees: p about 0.0005
    assert torch.equal(ids[7:8, 2:3], noise(seed[7:8], anchor[:, 2:3], torch.zeros(1, 1).long(), 10))
    assert not torch.equal(ids, noise(seed, anchor, torch.ones(1, 1).long(), 10))


def test_texts_of_one_token_have_no_window() -> None:
    """Else responses that stop at once would end the training in a traceback."""
    batch = select_windows(scripted([("pp0", 3), ("ppp0", 4)], size=1), WindowChoice(3), torch.arange(2))
    assert (batch.stream == PADDING).all()
    assert len(batch.row) == 0
