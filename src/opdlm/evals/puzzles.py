"""Whether an answer to Countdown or to a sudoku solves it: worked out, not compared with one solution."""

import ast
import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

_LONGEST = 200  # characters of an expression
_SIGNS = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("×", "*"), ("÷", "/"), ("\u2212", "-"), ("$", ""))
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


def solves_countdown(expression: str, numbers: Sequence[int], target: int) -> bool:
    """Whether an expression of + - * / and brackets uses every number exactly once and comes to `target`.

    As TinyZero's reward has it (Jiayi Pan and others, 2025), and d1 (arXiv 2504.12216) after it; worked out in
    fractions, so that no rounding decides. What stands behind an equals sign is not read.
    """
    for old, new in _SIGNS:
        expression = expression.replace(old, new)
    expression = expression.partition("=")[0].strip()
    if len(expression) > _LONGEST:
        return False
    used: list[int] = []
    try:
        with warnings.catch_warnings():  # "1or 2" is no expression of ours, and nobody's to be warned of
            warnings.simplefilter("ignore")
            tree = ast.parse(expression, mode="eval")
        value = _worked_out(tree.body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return False
    return sorted(used) == sorted(numbers) and value == target


def _worked_out(node: ast.expr, used: list[int]) -> Fraction:
    """The value; notes the numbers that occur. ValueError for anything but the four operations on whole numbers."""
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _OPERATORS):
            first, second = _worked_out(left, used), _worked_out(right, used)
            if isinstance(op, ast.Add):
                return first + second
            if isinstance(op, ast.Sub):
                return first - second
            return first * second if isinstance(op, ast.Mult) else first / second
    raise ValueError("not one of the four operations")


def read_grid(text: str, cells: int) -> str | None:
    """The digits of the last grid in `text`: exactly `cells` of them, with nothing but space and lines between them."""
    found = re.findall(rf"(?<![0-9])(?:[0-9][\s|,+\-]*){{{cells - 1}}}[0-9](?![0-9])", text)
    return re.sub(r"[^0-9]", "", found[-1]) if found else None


def solves_sudoku(grid: str, puzzle: str) -> bool:
    """Whether `grid` keeps the digits of `puzzle` (0: an empty cell) and each row, column and box has each digit once.

    Any such grid is right: a quarter of d1's 500 puzzles have several.
    """
    if len(grid) != len(puzzle) or any(given not in ("0", cell) for given, cell in zip(puzzle, grid, strict=True)):
        return False
    digits = {str(digit) for digit in range(1, isqrt(len(puzzle)) + 1)}
    return all(set(part) == digits for part in _parts(grid))


def can_be_sudoku(puzzle: str) -> bool:
    """Whether it has 16 or 81 digits of its size, none given twice in a row, column or box."""
    if re.fullmatch(r"[0-4]{16}|[0-9]{81}", puzzle) is None:
        return False
    given = (part.replace("0", "") for part in _parts(puzzle))
    return all(len(set(part)) == len(part) for part in given)


def _parts(grid: str) -> list[str]:
    """Rows, columns and boxes."""
    size = isqrt(len(grid))
    box = isqrt(size)
    rows = [grid[first : first + size] for first in range(0, len(grid), size)]
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    boxes = [
        "".join(row[left : left + box] for row in rows[top : top + box])
        for top in range(0, size, box)
        for left in range(0, size, box)
    ]
    return [*rows, *columns, *boxes]
