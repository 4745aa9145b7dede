"""Responses that a grammar describes, on the embedded models: are they valid, and what do they cost?

- Validity (--only validity, `results/grammar_validity.json`): many schemas and regular expressions, every way to
  decode, greedy and sampled; each response is read by pydantic or by Python's `re`, which know nothing of the library
  that made the masks. A response that --max-new-tokens cut off is counted by itself.
- Speed (--only speed, `results/grammar.json`): tokens per forward and per second of the same prompts in free text,
  under a schema, and under the same schema with masks alone, where what is forced takes part in forwards like all
  other tokens. They take turns within a repeat.
- Time of the constraint: seconds in masks, matchers and their transfer, per forward; and of one set of masks along a
  draft for a vocabulary of 152,000 tokens, if that tokenizer is at hand.

How fair it is. The embedded models have never seen JSON, and what they write into it is nonsense; a model that knows
JSON is surer of it and writes more tokens a forward in both columns. Free text is a different text, of another length:
compare tokens per forward, not seconds per response.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import measuring
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.utils import logging

from opdlm.config import GenerationSettings, settings_from
from opdlm.core.types import Rollout
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import DiffusionLM, load
from opdlm.sampling.constraining import Constraining, Row
from opdlm.sampling.grammar import Grammars
from opdlm.tiny.families import evaluation_set
from opdlm.tiny.weights import lossless_path, student_path

QWEN = Path(__file__).parents[2] / "shared" / "tokenizers" / "qwen2"
LENGTH = 96
DECODINGS = {
    "student": ("checked", "prefix:0.95", "dynamic:0.9"),
    "lossless": ("verified", "sequential"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Sum(_Strict):
    answer: int = Field(ge=-9999, le=9999)


class Judged(_Strict):
    verdict: Literal["right", "wrong", "unknown"]
    sure: bool


class Person(_Strict):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    town: str | None = Field(max_length=12)


class Words(_Strict):
    words: list[Literal["plum", "bird", "lemon", "silver"]] = Field(min_length=1, max_length=4)
    count: int = Field(ge=0, le=99)


class Order(_Strict):
    person: Judged
    items: list[Sum] = Field(max_length=2)
    state: Literal["open", "shipped", "returned"]
    notes: str = Field(max_length=8)


class Point(_Strict):
    x: float = Field(ge=-9, le=9)
    y: float = Field(ge=-9, le=9)


class Config(_Strict):
    enabled: bool
    retries: int = Field(ge=0, le=9)
    level: Literal["debug", "info", "warning", "error"]
    description: str = Field(pattern="^[a-z ]{0,10}$")


MODELS: tuple[type[BaseModel], ...] = (Sum, Judged, Person, Words, Order, Point, Config)
REGEXES = (
    r"#### [0-9]{1,4}",
    r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]",
    r"[a-z]{2,8}(, [a-z]{2,8}){0,3}\.",
    r"(yes|no|maybe)( because [a-z ]{3,12})?",
    r"[A-Z][a-z]{1,6} [A-Z][a-z]{1,6} <[a-z]{1,8}@[a-z]{1,8}\.(org|net)>",
)


def cases() -> list[tuple[str, dict[str, Any], Callable[[str], bool]]]:
    """(name, setting, whether a text is valid) of each."""

    def reads(model: type[BaseModel]) -> Callable[[str], bool]:
        def check(text: str) -> bool:
            try:
                model.model_validate_json(text)
            except ValidationError:
                return False
            return True

        return check

    found = [(model.__name__, {"json_schema": model}, reads(model)) for model in MODELS]
    return [*found, *((regex, {"regex": regex}, re.compile(regex).fullmatch) for regex in REGEXES)]  # type: ignore[list-item]


def settings_of(decoding: str, **changes: Any) -> GenerationSettings:
    return settings_from(GenerationSettings, {"decoding": decoding, "max_new_tokens": LENGTH, **changes})


def validity(models: dict[str, DiffusionLM], prompts: list[list[int]]) -> list[dict[str, Any]]:
    """A row for each decoding and temperature: how many responses are valid."""
    rows = []
    for name, model in models.items():
        for decoding in DECODINGS[name]:
            for temperature in (0.0, 1.0):
                counts = {"responses": 0, "valid": 0, "cut_off": 0}
                for _, setting, valid in cases():
                    settings = settings_of(decoding, temperature=temperature, **setting)
                    for row in responses(model, model.written(prompts, settings)):
                        counts["responses"] += 1
                        counts["cut_off"] += not row[1]
                        counts["valid"] += row[1] and bool(valid(row[0]))
                shown = {"model": name, "decoding": decoding, "temperature": temperature, "grammars": len(cases())}
                rows.append({"metric": "valid responses", "unit": "response", **counts, "settings": shown})
                print(shown, counts, flush=True)
    return rows


def responses(model: DiffusionLM, rollout: Rollout) -> list[tuple[str, bool]]:
    """(text, whether it is complete) of each row."""
    ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), rollout.stopped.tolist(), strict=True)
    ids = [(rollout.input_ids[i, begin:end].tolist(), stopped) for i, (begin, end, stopped) in enumerate(ends)]
    return [(str(model.tokenizer.decode(row, skip_special_tokens=True)), stopped) for row, stopped in ids]


@contextmanager
def masks_alone() -> Iterator[None]:
    """What is forced is not committed at once: it takes part in forwards."""
    forced = Row._forced
    Row._forced = lambda self: []  # type: ignore[method-assign]
    try:
        yield
    finally:
        Row._forced = forced  # type: ignore[method-assign]


@contextmanager
def timed() -> Iterator[list[float]]:
    """Seconds that are spent in the constraint."""
    spent: list[float] = []
    own = {name: getattr(Constraining, name) for name in ("open", "follow", "checked", "draft")}

    def timing(name: str) -> Callable[..., Any]:
        def call(self: Constraining, *args: Any) -> Any:
            began = time.perf_counter()
            try:
                return own[name](self, *args)
            finally:
                spent.append(time.perf_counter() - began)

        return call

    for name in own:
        setattr(Constraining, name, timing(name))
    try:
        yield spent
    finally:
        for name, method in own.items():
            setattr(Constraining, name, method)


def speed(
    models: dict[str, DiffusionLM], prompts: list[list[int]], batch_size: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows: tokens per forward and per second, of free text and under a schema; and the time of the constraint."""
    rows = []
    for name, model in models.items():
        for decoding in DECODINGS[name]:
            free, bound = settings_of(decoding), settings_of(decoding, json_schema=Order)
            model.written(prompts[:2], bound, batch_size)  # compiles the schema
            seen: dict[str, list[tuple[float, float]]] = {"free text": [], "schema": [], "masks alone": []}
            overhead = []
            for _ in range(repeats):
                seen["free text"].append(_measured(model, prompts, free, batch_size)[:2])
                with timed() as spent:
                    *pair, forwards = _measured(model, prompts, bound, batch_size)
                seen["schema"].append((pair[0], pair[1]))
                overhead.append(1e3 * sum(spent) / forwards)
                with masks_alone():
                    seen["masks alone"].append(_measured(model, prompts, bound, batch_size)[:2])
            shown = {"model": name, "decoding": decoding, "batch_size": batch_size, "responses": len(prompts)}
            for index, (metric, unit) in enumerate((("tokens per forward", "token"), ("tokens per second", "token/s"))):
                ours = [one[index] for one in seen["schema"]]
                for rival in ("free text", "masks alone"):
                    rows.append(measuring.row(metric, unit, ours, [one[index] for one in seen[rival]], rival, shown))
            rows.append(
                {
                    "metric": "time of the constraint",
                    "unit": "ms a row's forward",
                    "median": float(f"{sorted(overhead)[len(overhead) // 2]:.3g}"),
                    "min": float(f"{min(overhead):.3g}"),
                    "max": float(f"{max(overhead):.3g}"),
                    "settings": shown,
                }
            )
            print(shown, {key: [f"{a:.2f}, {b:.0f}" for a, b in values] for key, values in seen.items()}, flush=True)
    return rows


def _measured(
    model: DiffusionLM, prompts: list[list[int]], settings: GenerationSettings, batch_size: int
) -> tuple[float, float, int]:
    """(tokens per forward, tokens per second, forwards of all rows)."""
    began = time.perf_counter()
    rollout = model.written(prompts, settings, batch_size)
    seconds = time.perf_counter() - began
    tokens, forwards = int((rollout.length - rollout.prompt_length).sum()), int(rollout.forwards.sum())
    return tokens / forwards, tokens / seconds, forwards


def large_vocabulary() -> list[dict[str, Any]]:
    """A row: the masks along a draft of four tokens of JSON, for Qwen's vocabulary."""
    if not (QWEN / "vocab.json").is_file():
        return []
    from llguidance import LLExecutor
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par_with_draft_tokens

    tokenizer, size = AutoTokenizer.from_pretrained(QWEN), 151_936
    began = time.perf_counter()
    grammars = Grammars(tokenizer, size, (int(tokenizer.eos_token_id),))
    built = time.perf_counter()
    grammar = grammars.of(settings_of("static", json_schema=Person))
    assert grammar is not None
    compiled = time.perf_counter()
    text = json.dumps({"name": "Emma Wood", "age": 21, "town": "Highbury"})
    ids, matcher, executor = tokenizer(text)["input_ids"], grammar.matcher(), LLExecutor(1)
    bits, times = allocate_token_bitmask(5, size), []
    for place, token in enumerate(ids[:-4]):
        start = time.perf_counter()
        fill_next_token_bitmask_par_with_draft_tokens(executor, [(matcher, 0, ids[place : place + 4])], bits)
        times.append(1e3 * (time.perf_counter() - start))
        assert matcher.consume_token(token)
    times.sort()
    return [
        {
            "metric": "five masks along a draft",
            "unit": "ms",
            "median": float(f"{times[len(times) // 2]:.3g}"),
            "max": float(f"{times[-1]:.3g}"),
            "n": len(times),
            "settings": {
                "vocabulary": size,
                "tokenizer_ms": float(f"{1e3 * (built - began):.3g}"),
                "schema_ms": float(f"{1e3 * (compiled - built):.3g}"),
            },
        }
    ]


def main() -> None:
    """Measures, shows, writes `results/grammar.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: few prompts, nothing written")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--prompts", type=int, default=16, metavar="N", help="of the largest measurement (16)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed passes of each (3)")
    parser.add_argument("--only", choices=("speed", "validity"), help="one of the two, into a file of its own")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    models = {"student": load(student_path(), device="cpu"), "lossless": load(lossless_path(), device="cpu")}
    count, repeats = (2, 1) if args.quick else (args.prompts, args.repeats)
    problems = evaluation_set(-(-count // 4))[:count]
    prompts = [encode_prompt(models["student"].tokenizer, problem.prompt) for problem in problems]
    rows = []
    if args.only != "validity":
        rows += large_vocabulary() + speed(models, prompts[: max(2, count // 2)], 1, repeats)
        rows += speed(models, prompts, 16, repeats)
    if args.only != "speed":
        rows += validity(models, prompts[: max(2, count // 4)])
    table = Table("model", "decoding", "rows", "metric", "schema", "against", "", "ratio")
    for row in rows:
        if "rival" in row:
            shown = row["settings"]
            against = (str(row["rival"]), row["rival_name"], str(row["ratio"]))
            table.add_row(shown["model"], shown["decoding"], str(shown["batch_size"]), row["metric"], str(row["ours"]), *against)  # fmt: skip  # noqa: E501
    Console(width=150).print(table)
    if args.quick:
        print("not numbers to quote, nothing is written")
    else:
        name = "grammar_validity" if args.only == "validity" else "grammar"
        print(f"written: {measuring.write(name, rows)}")


if __name__ == "__main__":
    main()
