"""Where the final answer stands in a response: in a box, in a tag, behind a mark, or at its end."""

import re
from decimal import Decimal

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")
_IN_LATEX = (("\\!", ""), ("\\,", ""), ("{,}", ","), ("\\$", ""), ("$", ""), ("\u2212", "-"))
_MOST = 100_000  # characters that are looked at; no response of a model is longer


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces inside it balanced; None without one.

    How answers to MATH are marked (arXiv 2103.03874) and what maths models are asked for.
    """
    text = text[-_MOST:]
    for begin in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for end in range(begin.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[begin.end() : end]
    return None


def last_tagged(text: str) -> str | None:
    """What the last <answer>...</answer> holds, as d1 (arXiv 2504.12216) asks for it; None without one."""
    found = _TAGGED.findall(text[-_MOST:])
    return found[-1] if found else None


def last_number(text: str) -> Decimal | None:
    r"""The number that a response ends in: in its last \boxed{}, else behind its last `####`, else the last of all.

    The last number anywhere is the filter "flexible-extract" of lm-evaluation-harness (tasks/gsm8k); a box or a mark
    goes before it, because text may follow them. Commas between groups of three, a currency sign and a full stop
    behind the number are no part of it.
    """
    text = text[-_MOST:]
    for part in (last_boxed(text), _behind_mark(text), text):
        if part is None:
            continue
        for old, new in _IN_LATEX:
            part = part.replace(old, new)
        found = _NUMBER.findall(part)
        return Decimal(found[-1].replace(",", "")) if found else None
    return None


def _behind_mark(text: str) -> str | None:
    _, mark, rest = text.rpartition("####")
    return rest.strip().partition("\n")[0] if mark else None
