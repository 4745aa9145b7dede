"""Packing: all documents are there, once, and none is cut."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opdlm.core.packing import pack

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
CAPACITIES = st.one_of(st.integers(0, 100), st.just(math.inf))


@settings(derandomize=True)
@given(lengths=LENGTHS, capacity=CAPACITIES)
def test_nothing_is_lost_doubled_or_cut(lengths: list[int], capacity: float) -> None:
    """Else tokens would overwrite each other, be trained on twice, or vanish; or a sequence would pass its capacity."""
    length = torch.tensor(lengths)
    packing = pack(length, capacity)
    document = torch.arange(len(lengths)).repeat_interleave(length)
    rank = torch.cat([torch.arange(n) for n in lengths])
    place = packing.place(document, rank)
    assert len(place.unique()) == len(place) == sum(lengths)
    number = torch.arange(len(place))
    laid, ids = packing.laid(number, place, -1), packing.document_ids(document, place)
    assert laid.shape == ids.shape == (packing.count, packing.width)
    assert torch.equal(laid[laid >= 0].sort().values, number)
    assert torch.equal(laid >= 0, ids >= 0)
    for index, tokens in enumerate(lengths):
        sequence, start = int(packing.sequence[index]), int(packing.start[index])
        assert torch.equal(laid[sequence, start : start + tokens], number[document == index]), (
            "a document stands in one piece"
        )
        assert (ids[sequence, start : start + tokens] == index).all()
    assert packing.width <= max(capacity, *lengths, 1)
    assert packing.count <= len(lengths)


@settings(derandomize=True)
@given(lengths=LENGTHS)
def test_padding_shares_its_id_with_nobody(lengths: list[int]) -> None:
    """Else padding would see a document, or other padding."""
    length = torch.tensor(lengths)
    packing = pack(length)
    document = torch.arange(len(lengths)).repeat_interleave(length)
    ids = packing.document_ids(document, packing.place(document, torch.cat([torch.arange(n) for n in lengths])))
    for sequence in ids:
        padding = sequence[sequence < 0]
        assert len(padding.unique()) == len(padding)


def test_short_documents_fill_the_sequences_of_long_ones() -> None:
    """Else a micro-batch would go on computing padding: first fit, the longest document first."""
    packing = pack(torch.tensor([2, 9, 3, 7, 5]))
    assert packing.sequence.tolist() == [1, 0, 2, 1, 2]
    assert packing.start.tolist() == [7, 0, 5, 0, 0]
    assert (packing.count, packing.width) == (3, 9)
    assert 1 - 26 / (3 * 9) < 0.04 < 1 - 26 / (5 * 9), "padding of sequences, and of rows padded to the longest"


def test_a_sequence_of_everything() -> None:
    """Else sparse attention would run over sequences of padding, when one without any would do."""
    packing = pack(torch.tensor([2, 9, 3]), math.inf)
    assert (packing.count, packing.width) == (1, 14)
