"""Countdown and sudoku, as papers on diffusion models ask them (d1, arXiv 2504.12216)."""

from decimal import Decimal
from typing import Any

from opdlm.errors import PromptsError
from opdlm.evals.problem import Problem
from opdlm.evals.suites.suite import Suite, field, text_field

_MOST = 10**18
_SHOW = "Think step by step, then give {what} in <answer> </answer> tags."


def _countdown(row: Any, where: str) -> Problem:
    """d1's columns (input, output), or TinyZero's (nums, target)."""
    given, target = field(row, where, "input", "nums"), field(row, where, "output", "target")
    try:
        parts = given.split(",") if isinstance(given, str) else given
        numbers = [_whole(number) for number in (parts if isinstance(parts, list) else [None])]
        goal = _whole(target)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise PromptsError(f"{where} has no whole numbers and target ({given!r}, {target!r}); check --data") from error
    asked = (
        f"Using the numbers {numbers}, write an expression that equals {goal}. You can use +, -, * and /, and each "
        "number exactly once. "
    ) + _SHOW.format(what="the expression alone, such as <answer>(1 + 2) / 3</answer>,")
    answer = f"{goal} from {','.join(map(str, numbers))}"
    return Problem("countdown", asked, "", answer, plain=f"{asked}\n<answer>")


def _whole(value: Any) -> int:
    """4, 4.0 and "4". ValueError or ArithmeticError for what is more or less than that: nothing is cut off."""
    number = Decimal(str(value))
    if not abs(number) < _MOST or number != int(number):
        raise ValueError("no whole number")
    return int(number)


def _sudoku(row: Any, where: str) -> Problem:
    puzzle, solution = text_field(row, where, "Puzzle", "puzzle"), text_field(row, where, "Solution", "solution")
    if not puzzle.isdigit() or len(puzzle) not in (16, 81):
        raise PromptsError(f"{where} has no puzzle of 16 or 81 digits; keep leading zeros, check --data")
    size, box = (4, 2) if len(puzzle) == 16 else (9, 3)
    asked = (
        f"Fill the empty cells of this {size}x{size} sudoku. It is given row by row as {size * size} digits, and 0 is "
        f"an empty cell. Each row, each column and each {box}x{box} box has each of the digits 1 to {size} once.\n"
        f"{puzzle}\n"
    ) + _SHOW.format(what=f"all {size * size} digits of the full grid, row by row,")
    return Problem("sudoku", asked, solution, puzzle, plain=f"{asked}\n<answer>")


PUZZLES = (
    Suite("countdown", "d1, arXiv 2504.12216, after TinyZero: each number exactly once", 256, _countdown),
    Suite("sudoku", "d1, arXiv 2504.12216; here a whole grid counts, not its cells", 256, _sudoku),
)
