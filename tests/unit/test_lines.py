"""Texts share lines: all of them are there, once, and none is cut."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opdlm.core.lines import share_lines

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
CAPACITIES = st.one_of(st.integers(0, 100), st.just(math.inf))


@settings(derandomize=True)
@given(lengths=LENGTHS, capacity=CAPACITIES)
def test_nothing_is_lost_doubled_or_cut(lengths: list[int], capacity: float) -> None:
    """Else tokens would overwrite each other, be trained on twice, or vanish; or a line would pass its capacity."""
    length = torch.tensor(lengths)
    lines = share_lines(length, capacity)
    text = torch.arange(len(lengths)).repeat_interleave(length)
    rank = torch.cat([torch.arange(n) for n in lengths])
    place = lines.place(text, rank)
    assert len(place.unique()) == len(place) == sum(lengths)
    number = torch.arange(len(place))
    laid, ids = lines.laid(number, place, -1), lines.text_ids(text, place)
    assert laid.shape == ids.shape == (lines.count, lines.width)
    assert torch.equal(laid[laid >= 0].sort().values, number)
    assert torch.equal(laid >= 0, ids >= 0)
    for index, tokens in enumerate(lengths):
        line, start = int(lines.line[index]), int(lines.start[index])
        assert torch.equal(laid[line, start : start + tokens], number[text == index]), "a text stands in one piece"
        assert (ids[line, start : start + tokens] == index).all()
    assert lines.width <= max(capacity, *lengths, 1)
    assert lines.count <= len(lengths)


@settings(derandomize=True)
@given(lengths=LENGTHS)
def test_padding_shares_its_id_with_nobody(lengths: list[int]) -> None:
    """Else padding would see a text, or other padding."""
    length = torch.tensor(lengths)
    lines = share_lines(length)
    text = torch.arange(len(lengths)).repeat_interleave(length)
    ids = lines.text_ids(text, lines.place(text, torch.cat([torch.arange(n) for n in lengths])))
    for line in ids:
        padding = line[line < 0]
        assert len(padding.unique()) == len(padding)


def test_short_texts_fill_the_lines_of_long_ones() -> None:
    """Else a micro-batch would go on computing padding: first fit, the longest text first."""
    lines = share_lines(torch.tensor([2, 9, 3, 7, 5]))
    assert lines.line.tolist() == [1, 0, 2, 1, 2]
    assert lines.start.tolist() == [7, 0, 5, 0, 0]
    assert (lines.count, lines.width) == (3, 9)
    assert 1 - 26 / (3 * 9) < 0.04 < 1 - 26 / (5 * 9), "padding of lines, and of rows padded to the longest"


def test_a_line_of_everything() -> None:
    """Else sparse attention would run over lines of padding, when one line without any would do."""
    lines = share_lines(torch.tensor([2, 9, 3]), math.inf)
    assert (lines.count, lines.width) == (1, 14)
