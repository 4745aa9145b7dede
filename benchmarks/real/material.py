"""What is trained on and what is asked, from a folder of data sets; written once, so that every arm has the same.

The folder holds `instruct/rasbt_instruction-data.json` and `instruct/self_instruct_seed_tasks.jsonl` (instructions with
answers), `instruct/mt_bench_question.jsonl`, `gsm8k/{train,test}.jsonl` and `tinystories/tinystories_1000.json`.
Trained on: nine in ten instructions, and as many questions of GSM8K's training part. Asked: the other instructions,
GSM8K's test questions and MT-bench's first turns, none of which is trained on. One arm trains on prompts that the AR
model writes itself.
"""

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from opdlm.sampling import own_prompts as own
from opdlm.sampling.api import load_autoregressive
from real.facts import countries_and_capitals, named

_CALCULATOR = re.compile(r"<<.*?>>")
_HELD_OUT = 10  # every tenth instruction
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[A-Za-z]+")
PASSAGE_WORDS = (30, 80)


@dataclass(frozen=True)
class Material:
    """Attributes:
    training: file with "prompt", "response", "kind". validation: file with prompts of the run's own validations.
    asked: kind -> prompts that no training sees. passages: (text, its last word).
    """

    training: Path
    validation: Path
    asked: dict[str, list[str]]
    passages: list[tuple[str, str]]

    def texts(self) -> str:
        """All that is trained on, prompts and answers, in lower case."""
        return self.training.read_text(encoding="utf-8").lower()


def prepare(data: Path, folder: Path) -> Material:
    """Reads `data`, and writes the training's files to `folder` where they are not there."""
    rows = [*_rasbt(data / "instruct"), *_self_instruct(data / "instruct")]
    kept = [row for number, row in enumerate(rows) if number % _HELD_OUT]
    asked = [row["prompt"] for number, row in enumerate(rows) if not number % _HELD_OUT]
    draw = random.Random(0)
    maths = draw.sample(_gsm8k(data / "gsm8k" / "train.jsonl"), len(kept))
    training = [*kept, *maths]
    draw.shuffle(training)
    draw.shuffle(asked)
    test = [row["prompt"] for row in _gsm8k(data / "gsm8k" / "test.jsonl")]
    writing = [row["turns"][0] for row in _lines(data / "instruct" / "mt_bench_question.jsonl")]
    validation = [*asked[-8:], *test[-8:]]
    folder.mkdir(parents=True, exist_ok=True)
    return Material(
        training=_write(folder / "training.jsonl", training),
        validation=_write(folder / "validation.jsonl", [{"prompt": text} for text in validation]),
        asked={"instructions": asked[:-8], "maths": test[:-8], "open questions": writing},
        passages=_passages(data / "tinystories" / "tinystories_1000.json"),
    )


def own_prompts(model: Path, count: int, folder: Path) -> Path:
    """A file of prompts that the AR model wrote itself (`opdlm prompts`). None names what the facts are about."""
    path = folder / f"own-{count}.jsonl"
    if not path.is_file():
        writer, names = load_autoregressive(model, device="cpu"), countries_and_capitals()
        written = islice(own.own_prompts(writer, 2 * count, max_new_tokens=96, batch_size=16), 2 * count)
        kept = islice((row.prompt for row in written if not named(row.prompt, names)), count)
        _write(path, [{"prompt": prompt} for prompt in kept])
    return path


def _rasbt(folder: Path) -> Iterable[dict[str, str]]:
    for row in json.loads((folder / "rasbt_instruction-data.json").read_text(encoding="utf-8")):
        yield _row(row["instruction"], row["input"], row["output"])


def _self_instruct(folder: Path) -> Iterable[dict[str, str]]:
    for row in _lines(folder / "self_instruct_seed_tasks.jsonl"):
        first = row["instances"][0]
        yield _row(row["instruction"], first["input"], first["output"])


def _row(instruction: str, given: str, answer: str) -> dict[str, str]:
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return {"prompt": prompt, "response": answer, "kind": "instructions"}


def _gsm8k(path: Path) -> list[dict[str, str]]:
    """Questions; the answers without the calculator's marks, for the arm that trains on given answers."""
    return [
        {"prompt": row["question"], "response": _CALCULATOR.sub("", row["answer"]), "kind": "maths"}
        for row in _lines(path)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _write(path: Path, rows: list[dict[str, str]]) -> Path:
    """Never in place of other content: the runs that began with it could not go on."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") != content:
        raise SystemExit(f"{path} was made from other data; take another --work folder")
    path.write_text(content, encoding="utf-8")
    return path


def _passages(path: Path) -> list[tuple[str, str]]:
    """The first sentences of each story, cut before the last word of the last of them, as LAMBADA has it."""
    found = []
    least, most = PASSAGE_WORDS
    for story in json.loads(path.read_text(encoding="utf-8")):
        text = ""
        for sentence in _SENTENCE.split(story.strip()):
            text = f"{text} {sentence}".strip()
            if len(text.split()) >= least:
                break
        before, _, last = text.rpartition(" ")
        word = _WORD.match(last)
        # As in LAMBADA the word occurs in the text before: it can be known.
        if word and len(word[0]) > 3 and len(text.split()) <= most and word[0].lower() in before.lower():
            found.append((before, word[0]))
    return found
