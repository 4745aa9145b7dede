"""What the fuzz tests share: inputs that nobody would write, and how many of them are tried.

FUZZ_EXAMPLES raises the number of tries of each test, and makes them random.
"""

import json
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from opdlm.errors import OpdlmError

TRIES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzz(tries):
    """The budget of one test; the same tries each time, unless more are asked for."""
    return settings(
        max_examples=TRIES or tries,
        derandomize=not TRIES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def one_line(function, *words):
    """Calls it: it may fail with one of our errors alone, and with one line."""
    try:
        return function(*words)
    except OpdlmError:  # the command line puts it into one line
        return None


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "\x00", "\u2028", "none", "nan", "1e999", "9" * 5000, "static:2"])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner))
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name"]), VALUES | st.sampled_from(["user", "assistant"]))
    | VALUES,
    max_size=3,
)
ROWS = VALUES | st.dictionaries(
    st.sampled_from(["prompt", "messages", "answer", "family", "calls", "response", "tag"]),
    VALUES | MESSAGES | st.sampled_from(["maths", "code", "recall", "edit"]),
)
LINES = st.lists(
    st.binary(max_size=20)
    | ROWS.map(lambda row: json.dumps(row).encode())
    | st.sampled_from(
        [b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b'"\xe2\x80\xa8"', b"NaN"]
    ),
    max_size=4,
).map(b"\n".join)
