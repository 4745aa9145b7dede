"""Any command line ends in success or in one line: flags, texts and files that nobody would write."""

import contextlib
import io
import signal
import tempfile
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import LINES, fuzz
from opdlm.checkpoints.save import save_checkpoint
from opdlm.cli.main import COMMANDS, main
from opdlm.config import GenerationSettings
from opdlm.core.types import Geometry
from opdlm.models.block_diffusion import BlockDiffusionModel
from support import MASK, tiny_model, tiny_tokenizer

LIMIT_S = 60  # for each try: nothing here takes longer than a few seconds, but for what never ends
LEFT_OUT = {
    "-h",
    "--help",
    "--compile",
    "--allow-unconfined-code",
    "--threads",
    "--tracker",
}  # they end it, are slow, or reach further than a test
NUMBERS = [
    "1",
    "2",
    "3",
    "4",
    "7",
    "0",
    "-1",
    "1e3",
    "0.5",
    "1e39",
    "nan",
    "inf",
    "-inf",
    "9" * 30,
    "9" * 5000,
    "100000",
]
KINDS = ["static:2", "dynamic:0.8", "prefix", "klass:1", "entropy:1e9", "factor:-1", "jsd:1", "1:2", "3:1e39,0:-1"]
TEXTS = [
    "",
    " ",
    "-",
    "--",
    "none",
    "null",
    "true",
    "a,b",
    "\udcff",
    "\u2028",
    "[[MASK:2]]",
    "a[[MASK:0]][[MASK:99999]]",
]
PLACES = ["{ar}", "{student}", "{ar}/config.json", "{rows}", "{rows}.gz", "missing/x.jsonl", ".", "..", "a/b"]
VALUES = st.sampled_from([*NUMBERS, *KINDS, *TEXTS, *PLACES]) | st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=4
)


class TooSlow(BaseException):
    """A try that did not end."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny AR model, and of one that was converted."""
    ar, student = tmp_path_factory.mktemp("ar") / "model", tmp_path_factory.mktemp("student") / "model"
    tiny_model(max_position_embeddings=64).save_pretrained(ar)
    tiny_tokenizer(chat=True).save_pretrained(ar)
    model = BlockDiffusionModel(tiny_model(max_position_embeddings=64), Geometry(4), MASK)
    kept = GenerationSettings(max_new_tokens=8)
    save_checkpoint(model, tiny_tokenizer(mask=True), student, generation=kept, provenance={"base_model": str(ar)})
    return {"ar": ar, "student": student}


def flags_of(command):
    """The flags of a command as lists of words, most with a value of the kind that they take."""
    likely = {"N": NUMBERS, "X": NUMBERS, "KIND": KINDS, "FILE": PLACES, "DIR": PLACES}
    made = []
    for action in import_module(COMMANDS[command][0]).parser()._actions:
        name = next((one for one in action.option_strings if one not in LEFT_OUT), None)
        if name is None:
            continue
        choices = [value for value in (action.metavar or "").strip("{}").split(",") if "{" in (action.metavar or "")]
        values = st.sampled_from(likely.get(action.metavar) or choices or TEXTS) | VALUES
        made.append(st.just([name]) if action.nargs == 0 else values.map(lambda value, name=name: [name, value]))
    return made


def more_words(command):
    """Up to three flags, and sometimes a text, that the user would not type."""
    flags = st.lists(st.one_of(flags_of(command)), max_size=3)
    texts = st.just([]) | st.lists(VALUES, max_size=1)
    return st.tuples(flags, texts).map(lambda parts: [word for words in parts[0] for word in words] + parts[1])


def tried(words, limit_s=LIMIT_S):
    """Runs `opdlm WORDS`: success, or one line that begins with `error:`, within the limit."""

    def stop(*_):
        raise TooSlow(words)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as end:  # argparse has printed its help
        code = end.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if code:
        assert code in (1, 2), (words, code)
        errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (words, err.getvalue())
    assert "Traceback" not in out.getvalue() + err.getvalue(), (words, err.getvalue())


ROWS = [
    b'{"prompt": "one two", "answer": "2"}\n{"prompt": "three", "answer": "3", "family": "edit"}\n',
    b'{"messages": [{"role": "user", "content": "one"}], "answer": "2"}\n',
]
CONVERT = (
    "{ar} --prompts {rows} --output run --rollouts 1 --prompts-per-rollout 2 --rows-per-update 1 "
    "--response-length.start 4 --response-length.end 4 --recipe small"
)
BASES = {
    "doctor": (8, ["{ar} --no-speed", "{ar} --no-speed --prompts {rows}", "--json"]),
    "convert": (6, [CONVERT, CONVERT + " --lora-rank 2 --adapter-only", "{ar} --prompts {rows}"]),
    "generate": (
        12,
        [
            "{student}",
            "{student} one --json",
            "{student} --infill one[[MASK:2]]",
            "{student} --prompts {rows} --output out.jsonl --max-new-tokens 4",
        ],
    ),
    "eval": (
        6,
        [
            "{student} --against {ar} --problems {rows} --max-new-tokens 4 --decoding static",
            "{student} --against {ar} --prompts {rows} --max-new-tokens 4 --decoding static",
        ],
    ),
    "push": (8, ["{student} someone/name", "{student}"]),
    "demo": (4, ["--help"]),
}


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs an alarm")
@pytest.mark.parametrize("command", BASES)
def test_command_lines(command, models, monkeypatch, capsys):
    """Without it an odd flag, text or file could end in a traceback, or never."""
    tries, bases = BASES[command]
    monkeypatch.setattr("sys.stdin", io.StringIO("a prompt"))

    @fuzz(tries)
    @given(st.sampled_from(bases), more_words(command), st.sampled_from(ROWS) | LINES)
    def check(base, more, content):
        with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
            rows = Path(place) / "rows.jsonl"
            rows.write_bytes(content)
            known = {name: str(path) for name, path in {**models, "rows": rows}.items()}
            words = [word.format_map(known) for word in base.split()]
            tried([command, *words, *(_placed(word, known) for word in more)])

    check()


def _placed(word, known):
    return word.format_map(known) if word in PLACES else word


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs an alarm")
def test_what_never_ends_is_found(monkeypatch):
    """Without it the limit of the other tests could hold nobody to anything."""

    def forever(words):
        while True:
            pass

    monkeypatch.setattr("opdlm.cli.main._dispatch", forever)
    with pytest.raises(TooSlow):
        tried(["generate"], limit_s=1)
