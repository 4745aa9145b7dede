"""The models that ship with the package: 1.3 million parameters, four tasks, and everything that makes them."""

QUESTIONS = (
    "Ben has 12 books. Ben finds 30 more. How many books does Ben have now?",
    "Sort these words from a to z: pear fish ant bag",
    "Write a Python function f that takes x and returns x times 12 plus 3.",
)
"""What the shipped models can be asked: short sums in words, lists of words and numbers, small Python functions."""
