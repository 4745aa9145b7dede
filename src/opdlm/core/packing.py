"""Packing: documents of different lengths in few sequences. Which share a sequence, and where each one stands in it.

Shape letters: B documents, M tokens of all documents, N sequences, Q columns of a sequence. Attention keeps the
documents of a sequence apart by their ids (`layout.Attention`), so that no document is padded to the longest.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Packing:
    """Where each document stands. Made by `pack`.

    Attributes:
        sequence: [B] int64, the sequence of each document.
        start: [B] int64, the column of its first token.
        count: N, number of sequences. width: Q, columns of each.
    """

    sequence: torch.Tensor
    start: torch.Tensor
    count: int
    width: int

    def place(self, document: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
        """[M] int64 index into the flattened sequences of the tokens number `rank` [M] of the documents [M]."""
        return self.sequence[document] * self.width + self.start[document] + rank

    def laid(self, values: torch.Tensor, place: torch.Tensor, empty: int) -> torch.Tensor:
        """[N, Q] sequences with `values` [M] at their places and `empty` elsewhere."""
        flat = values.new_full((self.count * self.width,), empty)
        return flat.index_copy_(0, place, values).view(self.count, self.width)

    def document_ids(self, document: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """[N, Q] the document of each token; in the padding -1, -2, ..., so that no two tokens there share one."""
        alone = (-1 - torch.arange(self.width, device=document.device)).repeat(self.count)
        return alone.index_copy_(0, place, document).view(self.count, self.width)


def pack(length: torch.Tensor, capacity: float = 0) -> Packing:
    """First-fit decreasing: the longest document first, each into the first sequence that has room for it.

    Args:
        length: [B] int64 tokens of each document; read once by the host.
        capacity: most tokens of a sequence, or the longest document if that is longer: dense attention over sequences
            then never costs more than over documents padded to the longest. `math.inf` puts all into one sequence.
    """
    lengths = length.tolist()
    room = max([capacity, *lengths])
    sequence, start, used = [0] * len(lengths), [0] * len(lengths), [0]
    for document in sorted(range(len(lengths)), key=lambda document: -lengths[document]):
        size = lengths[document]
        sequence[document] = next((i for i, taken in enumerate(used) if taken + size <= room), len(used))
        if sequence[document] == len(used):
            used.append(0)
        start[document] = used[sequence[document]]
        used[sequence[document]] += size
    made = torch.tensor([sequence, start], dtype=torch.int64).to(length.device)
    return Packing(made[0], made[1], len(used), max([1, *used]))
