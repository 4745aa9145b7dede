"""Texts of different lengths in few lines: which texts share a line, and where each one stands in it.

Shape letters: B texts, N tokens of all texts, L lines, Q columns of a line. Attention keeps the texts of a line apart
by their text ids (`layout.Attention`), so that no text is padded to the longest.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Lines:
    """Where each text stands. Made by `share_lines`.

    Attributes:
        line: [B] int64, the line of each text.
        start: [B] int64, the column of its first token.
        count: L, number of lines. width: Q, columns of each.
    """

    line: torch.Tensor
    start: torch.Tensor
    count: int
    width: int

    def place(self, text: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
        """[N] int64 index into the flattened lines of the tokens number `rank` [N] of the texts `text` [N]."""
        return self.line[text] * self.width + self.start[text] + rank

    def laid(self, values: torch.Tensor, place: torch.Tensor, empty: int) -> torch.Tensor:
        """[L, Q] lines with `values` [N] at their places and `empty` elsewhere."""
        flat = values.new_full((self.count * self.width,), empty)
        return flat.index_copy_(0, place, values).view(self.count, self.width)

    def text_ids(self, text: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """[L, Q] the text of each token; in the padding -1, -2, ..., so that no two tokens of a line share one."""
        alone = (-1 - torch.arange(self.width, device=text.device)).repeat(self.count)
        return alone.index_copy_(0, place, text).view(self.count, self.width)


def share_lines(length: torch.Tensor, capacity: float = 0) -> Lines:
    """First-fit decreasing: the longest text first, each into the first line that has room for it.

    Args:
        length: [B] int64 tokens of each text; read once by the host.
        capacity: most tokens of a line, or the longest text if that is longer: dense attention over lines then never
            costs more than over texts padded to the longest. `math.inf` puts everything into one line.
    """
    lengths = length.tolist()
    room = max([capacity, *lengths])
    line, start, used = [0] * len(lengths), [0] * len(lengths), [0]
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        line[text] = next((i for i, taken in enumerate(used) if taken + lengths[text] <= room), len(used))
        if line[text] == len(used):
            used.append(0)
        start[text] = used[line[text]]
        used[line[text]] += lengths[text]
    made = torch.tensor([line, start], dtype=torch.int64).to(length.device)
    return Lines(made[0], made[1], len(used), max([1, *used]))
