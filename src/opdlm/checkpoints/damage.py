"""What other libraries raise over a broken file of a model, as one line that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager

from opdlm.errors import CheckpointError, OpdlmError, StorageError

_NO_ROOM = ("not enough memory", "can't allocate memory", "out of memory")
_LONGEST = 200


@contextmanager
def blamed_on(what: str, fix: str) -> Iterator[None]:
    """Turns an error of the body into a CheckpointError: `what` cannot be used, why, and the fix.

    transformers reads a model's files with code that trusts them: a wrong value surfaces anywhere inside, as a
    TypeError, a ZeroDivisionError, a KeyError ..., and tokenizers raises bare Exceptions. All of them mean the same
    here. The first error stays attached as the cause.
    """
    try:
        yield
    except OpdlmError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_ROOM):
            message = f"{what} needs more memory than there is; take a smaller model or a larger machine"
            raise StorageError(message) from error
        raise CheckpointError(f"{what} cannot be used ({reason_of(error)}); {fix}") from error


def reason_of(error: BaseException) -> str:
    """The error's text as one line of limited length, its kind where the text alone says little."""
    text = " ".join(str(error).split())
    named = text if " " in text else f"{type(error).__name__}: {text}" if text else type(error).__name__
    return named if len(named) <= _LONGEST else named[: _LONGEST - 3] + "..."
