"""SGLang's cycle for one text, written out; torch alone, for it also runs beside SDAR's own modelling file.

SGLang 0.5.23, `srt/dllm/algorithm/low_confidence.py` and `srt/dllm/mixin/req.py`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

LogitsOf = Callable[[list[int]], torch.Tensor]
"""Ids of whole blocks -> [S, V] logits of the last block's positions."""


@dataclass(frozen=True)
class Cycle:
    """How the engine decodes.

    Attributes:
        block_size: S; blocks are aligned to position 0, so that the first one may begin with the prompt's end.
        mask: its token. threshold: probability above which a token is unmasked.
        most: most new tokens. stops: tokens that end a text.
    """

    block_size: int
    mask: int
    threshold: float
    most: int
    stops: Collection[int]

    def write(self, logits_of: LogitsOf, prompt: Sequence[int]) -> list[int]:
        """The response. Where the mask token itself is the most probable one, SGLang would go on for ever: it ends."""
        text = list(prompt)
        while True:
            start = len(text) // self.block_size * self.block_size
            known = len(text) - start
            block = self._denoised(logits_of, text[:start], text[start:])
            text += block[known:]
            response = text[len(prompt) :]
            ends = [place for place, token in enumerate(response) if token in self.stops]
            if ends or self.mask in block[known:] or len(response) >= self.most:
                return response[: min([self.most, *(place + 1 for place in ends)])]

    def _denoised(self, logits_of: LogitsOf, before: list[int], known: list[int]) -> list[int]:
        """The block that begins with the tokens `known`, behind the finished blocks `before`."""
        block = known + [self.mask] * (self.block_size - len(known))
        while masked := [i for i in range(len(known), self.block_size) if block[i] == self.mask]:
            confidence, token = logits_of(before + block).float().softmax(-1).max(-1)
            sure = [i for i in masked if confidence[i] > self.threshold]
            chosen = sure or [max(masked, key=lambda i: float(confidence[i]))]
            if all(int(token[i]) == self.mask for i in chosen):
                break
            for i in chosen:
                block[i] = int(token[i])
        return block
