"""A text with gaps: as token ids with mask tokens, and as text again, each piece around the gaps as it was written."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from opdlm.errors import ContextLengthError
from opdlm.models.tokens import check_beginning, check_text, decode_inside, encode_front, encode_inside, encode_text

_GAP = r"\[\[MASK:([0-9]+)\]\]"
_NO_GAP = re.compile(r"\[\[MASK:0+\]\]")
_MOST_TOKENS = 2**20  # where the architecture names no context


@dataclass(frozen=True)
class _Piece:
    """Part of the text: `text` as it is given, or None for a gap; `size` in tokens."""

    text: str | None
    size: int


class GapText:
    """`[[MASK:12]]` in a text stands for twelve tokens, the tokenizer's own mask token for one.

    Attributes:
        ids: [n] the text, mask tokens in its gaps.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, mask_token_id: int, context: int | None) -> None:
        """`context`: most tokens of the model. ContextLengthError where the text has more, before they are made."""
        self._tokenizer, self._mask = tokenizer, mask_token_id
        self._special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        parts = _split(check_text(text), str(tokenizer.decode([mask_token_id])))
        self.ids: list[int] = encode_front(tokenizer) if isinstance(parts[0], int) else []
        pieces = [_Piece("", len(self.ids))]
        most = context or _MOST_TOKENS
        for index, part in enumerate(parts):
            if isinstance(part, str):
                check_beginning(tokenizer, part, most)
                new = encode_inside(tokenizer, mask_token_id, part) if index else encode_text(tokenizer, part)
                pieces.append(_Piece(part, len(new)))
            else:
                new = [mask_token_id] * min(part, most + 1)
                pieces.append(_Piece(None, part))
            if len(self.ids) + len(new) > most:
                raise ContextLengthError(
                    f"the text has more than {most} tokens with its gaps, and the model's context ends there; "
                    "make the gaps or the text shorter"
                )
            self.ids += new
        self._pieces = tuple(pieces)

    def pieces(self, ids: Sequence[int]) -> Iterator[tuple[str | None, list[int]]]:
        """(the given text, or None in a gap, and its ids) of `ids` [n], which are filled, or partly."""
        begin = 0
        for piece in self._pieces:
            yield piece.text, list(ids[begin : begin + piece.size])
            begin += piece.size

    def filled(self, ids: Sequence[int]) -> str:
        """The text with `ids` [n] in its gaps, without special tokens there."""
        text, before = "", []
        for given, part in self.pieces(ids):
            text += self._written(part, text, before) if given is None else given
            before = part
        return text

    def _written(self, ids: Sequence[int], text: str, before: Sequence[int]) -> str:
        """What `ids` say behind `text`, which ends with the tokens `before`."""
        ids = [token for token in ids if token not in self._special]
        if not text:
            return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        written = decode_inside(self._tokenizer, self._mask, ids)
        # A tokenizer that knows no spaces (WordPiece) puts one before each word: here it stands in the text already.
        spaced = text[-1].isspace() and not decode_inside(self._tokenizer, self._mask, before)[-1:].isspace()
        return written.removeprefix(" ") if spaced else written


def _split(text: str, mask: str) -> list[str | int]:
    """Given pieces and the sizes of the gaps between them, in turn; neighbouring gaps are one."""
    parts: list[str | int] = []
    begin, text = 0, _NO_GAP.sub("", text)
    for gap in re.finditer(f"{_GAP}|{re.escape(mask)}", text):
        parts += [text[begin : gap.start()]] if begin < gap.start() else []
        # No context has more than ten digits, and Python refuses to read some thousands.
        size = int(gap[1].lstrip("0")[:10]) if gap[1] else 1
        begin = gap.end()
        if parts and isinstance(parts[-1], int):
            parts[-1] += size
        else:
            parts.append(size)
    return [*parts, text[begin:]] if begin < len(text) or not parts else parts
