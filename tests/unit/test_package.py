"""The package's own promises: cheap import, errors that other code can catch."""

import inspect
import pickle
import subprocess
import sys

import pytest

import opdlm
from opdlm import errors

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass)]


def test_import_loads_nothing_heavy():
    """Without it `opdlm --help` would wait seconds for torch."""
    code = "import sys, opdlm; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_attribute():
    """Without it the lazy look-up could answer for names that do not exist."""
    assert {"convert", "load"} <= set(dir(opdlm))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = opdlm.nothing


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_errors_keep_their_message_and_survive_a_process_border(error):
    """Without it a worker's error would arrive as another one, or say nothing."""
    raised = pickle.loads(pickle.dumps(error("what; fix")))
    assert type(raised) is error
    assert str(raised) == "what; fix"
    assert isinstance(raised, errors.OpdlmError)
    assert raised.exit_code == (1 if issubclass(error, (ArithmeticError, errors.RankFailedError)) else 2)


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_error_tree_is_drawn(error):
    """Without it the docstring of the module could tell of another tree."""
    drawn = [line for line in (errors.__doc__ or "").splitlines() if error.__name__ in line.split()]
    drawn += [line for line in (errors.__doc__ or "").splitlines() if f"── {error.__name__} " in line + " "]
    assert drawn
