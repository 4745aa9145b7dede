"""Who sees whom: written out by hand."""

import torch
from torch.nn.attention.flex_attention import create_mask

from opdlm.core.layout import Attention, block_start, causal
from opdlm.core.types import Geometry


def attention(position: list[int], copy: list[int], context: str = "block", size: int = 2) -> Attention:
    geometry = Geometry(size, context=context)  # type: ignore[arg-type]
    return Attention.within(geometry, torch.tensor([position]), torch.tensor([copy]))


def drawn(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask[0].tolist()]


# Clean tokens 0 to 4; copy 1 of block 1 (positions 2, 3), copy 2 of block 1, copy 1 of block 2 (position 4); padding.
POSITION = [0, 1, 2, 3, 4, 2, 3, 2, 3, 4, 0]
COPY = [0, 0, 0, 0, 0, 1, 1, 2, 2, 1, -1]
TEXT = [7, 7, 7, 7, 7, 7, 7, 8, 8, 8, -1]


def test_the_mask_is_drawn_right() -> None:
    """Else a noised block would see its own answer, another copy of itself, or nothing of the text before it."""
    assert drawn(attention(POSITION, COPY).dense()) == [
        "xx.........",
        "xx.........",
        "xxxx.......",
        "xxxx.......",
        "xxxxx......",
        "xx...xx....",
        "xx...xx....",
        "xx.....xx..",
        "xx.....xx..",
        "xxxx.....x.",
        "..........x",
    ]


def test_a_causal_context_changes_finished_text_alone() -> None:
    """Else `context = "causal"` would not be the AR model's own cache, or would make noised blocks causal too."""
    block, strictly = attention(POSITION, COPY).dense(), attention(POSITION, COPY, "causal").dense()
    assert drawn(strictly)[:5] == ["x..........", "xx.........", "xxx........", "xxxx.......", "xxxxx......"]
    assert torch.equal(block[:, 5:], strictly[:, 5:])


def test_flex_is_dense_with_padding_and_cached_keys() -> None:
    """Else a GPU run would see padding or empty cache columns that a CPU run does not."""
    for context in ("block", "causal"):
        for window in (None, 3):
            within = attention(POSITION, COPY, context)
            cached = Attention(
                within.geometry,
                within.query_position[:, 5:9],
                within.query_stream[:, 5:9],
                torch.arange(6)[None],
                torch.tensor([[0, 0, 0, 1, -1, -1]]),
            )
            shared = Attention.within(within.geometry, within.query_position, within.query_stream, torch.tensor([TEXT]))
            for one in (within, cached, shared):
                dense = one.dense(window)
                flex = create_mask(one.flex(window).mask_mod, 1, None, *dense.shape[1:], device="cpu")
                assert torch.equal(flex[:, 0], dense)


def test_texts_of_a_line_do_not_see_each_other() -> None:
    """Else a text would read another one at the same positions. Two texts in turn, and padding at equal positions."""
    position, copy = [0, 0, 1, 1, 2, 2, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1, -1, -1]
    text = torch.tensor([[0, 1, 0, 1, 0, 1, 0, 1, -9, -10]])
    attended = attention(position, copy)
    mask = Attention.within(attended.geometry, attended.query_position, attended.query_stream, text).dense()
    assert drawn(mask) == [
        "x.x.......",
        ".x.x......",
        "x.x.......",
        ".x.x......",
        "x.x.x.....",
        ".x.x.x....",
        "x.x...x...",
        ".x.x...x..",
        "........x.",
        ".........x",
    ]


def test_padding_is_seen_by_nobody_and_sees_only_itself() -> None:
    """Else padded rows would differ from single ones, or a softmax over nothing would give NaN."""
    position, copy = [0, 0, 0, 1, 2, 3, 3], [-1, -1, 0, 0, 0, 0, -1]
    mask = attention(position, copy).dense()
    alone = attention(position[2:6], copy[2:6]).dense()
    assert torch.equal(mask[:, 2:6, 2:6], alone)
    assert not mask[:, 2:6, [0, 1, 6]].any()
    assert not mask[:, [0, 1, 6], 2:6].any()
    assert mask.any(-1).all()


def test_columns_do_not_matter_position_ids_do() -> None:
    """Else left padding or packing would move the borders of the blocks."""
    order = torch.tensor([4, 9, 1, 0, 6, 2, 8, 3, 10, 7, 5])
    moved = attention(torch.tensor(POSITION)[order].tolist(), torch.tensor(COPY)[order].tolist()).dense()
    assert torch.equal(moved, attention(POSITION, COPY).dense()[:, order][:, :, order])


def test_a_block_of_one_token_is_causal() -> None:
    """Else the teacher, and the AR model's own decoding, would not be autoregressive."""
    position = torch.arange(5)[None]
    valid = position < 4
    mask = causal(position, valid).dense()
    assert torch.equal(mask[0, :4, :4], torch.ones(4, 4).tril().bool())
    assert not mask[0, :4, 4].any()
    assert torch.equal(Attention.within(Geometry(1), position, torch.zeros_like(position)).dense()[0, :4], mask[0, :4])


def test_block_borders() -> None:
    """Else decoding would start in another block than the one in which the prompt ends."""
    position = torch.arange(9)
    assert block_start(position, 4).tolist() == [0, 0, 0, 0, 4, 4, 4, 4, 8]
