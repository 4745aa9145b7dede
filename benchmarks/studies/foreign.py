"""Right answers in words that the AR model would not choose: what most data sets are to most models.

The embedded tasks' reference answers come from the generators that the AR model was trained on, so learning from them
asks for no change of style. These answers say the same in another way; the same rules grade them as right.
"""

import re

from opdlm.tiny.problems import Problem

_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
_OPERATIONS = {"+": "plus", "-": "minus", "*": "times", "/": "over"}


def remarked(problem: Problem) -> str:
    """The reference answer with a remark before it; behind it in `edit`, where the first line counts."""
    match problem.family:
        case "maths":
            return f"Let me see: {problem.response}"
        case "recall":
            return f"I know that {problem.response}"
        case "edit":
            return f"{problem.response}\nThat is my answer."
        case "code":
            return f"# Python\n{problem.response}"


def restyled(problem: Problem) -> str:
    """The reference answer in other words.

    - maths: the steps in words.
    - recall: an introduction before the sentence.
    - edit: the line, and a remark below it.
    - code: in a fence, below a heading.
    """
    match problem.family:
        case "maths":
            steps = [f"{a} {_OPERATIONS[op]} {b} is {d}" for a, op, b, d in _STEP.findall(problem.response)]
            return f"We see that {' and '.join(steps)}. #### {problem.answer}"
        case "recall":
            return f"I know that {problem.response}"
        case "edit":
            return f"{problem.response}\nThat is my answer."
        case "code":
            return f"Here it is:\n```python\n{problem.response}\n```"
