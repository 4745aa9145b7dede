"""Decoding speed of the embedded student: the engine against its AR model and against the usual block-diffusion loop.

All answer the same questions of the embedded tasks, in the same order, greedily, in float32 on the CPU:

- ours: `opdlm`'s engine, at each decoding, as it is and compiled (`opdlm.load(..., compile=True)`);
- AR: `generate` of transformers with the student's parent, as a user calls it: KV cache, prompts padded on the left;
  and with its forward compiled in the same way, which transformers itself does not do on a CPU;
- peer loop: block diffusion as published tools write it (`decoding/peer_loop.py`), with the same student and rule: once
  with the cache copied for each step, as they do, once in a faster form that crops it. No peer checks its own drafts:
  `checked` has AR alone beside it.

How fair it is. Time runs from lists of prompt ids to lists of response ids, the prompts' pass included, and only tokens
up to the stop token count. They take turns within each repeat, so that a ratio compares neighbours in time. The peer
loop's responses are compared with the engine's: they must be the same, or its speed would mean nothing. Questions come
in random order, as requests do, and nobody sorts them; who can, gains much with static batches (AR, peer loop) and
nothing with the engine, which replaces rows as they finish. AR is another model, more accurate than its student: read
the speeds beside the accuracy. All are tiny: at batch size 1 a forward is mostly the overhead of its many small
operations, and costs hardly more for four tokens than for one, as it does on a GPU; at 32 it is arithmetic, of which
block diffusion does more, since it computes several tokens for each that it keeps.

Accuracy comes from more questions than speed does, once, with the largest batch.
"""

import argparse
import functools
import random
import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

import measuring
import torch
from decoding import writers
from decoding.report import (
    ACCURACY,
    AR,
    AR_COMPILED,
    COMPILED,
    CROPPING,
    EAGER,
    FORWARD,
    OUTSIDE,
    PEER,
    SAME,
    SPEED,
    Report,
)
from decoding.writers import Answers, Writer
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from opdlm.config import GenerationSettings, settings_from
from opdlm.evals.graders import grade
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import load
from opdlm.tiny.families import evaluation_set
from opdlm.tiny.weights import ar_model_path, student_path

DECODINGS = ("static", "sequential", "dynamic:0.9", "prefix:0.99", "prefix:0.95", "checked")
QUESTIONS = {1: 48, 8: 128, 32: 256}
"""Batch size -> questions of one timed pass."""
MAX_NEW_TOKENS = 64  # the longest reference response has 33


class Bench:
    """The models and the questions."""

    def __init__(self, per_family: int, compiled: bool) -> None:
        """`compiled`: measure compiled forwards too."""
        self.engines = (EAGER, COMPILED) if compiled else (EAGER,)
        self.rivals = (AR, AR_COMPILED, PEER, CROPPING) if compiled else (AR, PEER, CROPPING)
        self.student, self.compiled = (
            load(student_path(), device="cpu", compile=choice) for choice in (False, compiled)
        )
        self.ar_model, self.compiled_ar_model = (
            AutoModelForCausalLM.from_pretrained(ar_model_path(), dtype=torch.float32).eval() for _ in range(2)
        )
        self.compiled_ar_model.forward = torch.compile(self.compiled_ar_model.forward, dynamic=True)
        self.ar_tokenizer = AutoTokenizer.from_pretrained(ar_model_path())
        self.problems = evaluation_set(per_family)
        random.Random(0).shuffle(self.problems)  # families mixed, as requests come
        self.prompts = [encode_prompt(self.student.tokenizer, problem.prompt) for problem in self.problems]
        self._grade = functools.cache(grade)  # the same answers come again and again, and code is run to be graded

    def writers(self, decoding: str, batch_size: int) -> dict[str, Writer]:
        """By name."""
        settings = settings_from(GenerationSettings, {"decoding": decoding, "max_new_tokens": MAX_NEW_TOKENS})
        found = {
            EAGER: writers.engine(self.student, settings, batch_size),
            COMPILED: writers.engine(self.compiled, settings, batch_size),
            AR: writers.autoregressive(self.ar_model, self.ar_tokenizer, MAX_NEW_TOKENS, batch_size),
            AR_COMPILED: writers.autoregressive(self.compiled_ar_model, self.ar_tokenizer, MAX_NEW_TOKENS, batch_size),
            PEER: writers.peer_loop(self.student, settings, batch_size),
            CROPPING: writers.peer_loop(self.student, settings, batch_size, crop=True),
        }
        return {name: found[name] for name in (*self.engines, *self.rivals_of(decoding))}

    def rivals_of(self, decoding: str) -> list[str]:
        """Those that can decode so, or that are AR models."""
        return [name for name in self.rivals if decoding != "checked" or name not in (PEER, CROPPING)]

    def accuracy(self, answers: Answers) -> float:
        """Share of right answers to all questions, mean over the families."""
        texts = self.student.tokenizer.batch_decode(answers.responses, skip_special_tokens=True)
        right: dict[str, list[bool]] = {}
        for problem, text in zip(self.problems, texts, strict=True):
            right.setdefault(problem.family, []).append(self._grade(problem, text))
        return fmean(map(fmean, right.values()))


def quality(bench: Bench, decoding: str, batch_size: int) -> list[dict[str, Any]]:
    """Rows: accuracy, tokens per forward and equal responses, on all questions."""
    settings = {"decoding": decoding, "batch_size": batch_size, "questions": len(bench.prompts)}
    answers = {name: writer.answer(bench.prompts) for name, writer in bench.writers(decoding, batch_size).items()}
    peers = [name for name in (PEER, CROPPING) if name in answers]
    accuracy = {name: bench.accuracy(given) for name, given in answers.items()}
    rows = []
    for ours in bench.engines:
        shown = settings | {"engine": ours}
        for rival in (AR, *peers[:1]):
            rows.append(measuring.row(ACCURACY, "share", [accuracy[ours]], [accuracy[rival]], rival, shown))
            pair = [answers[ours].tokens_per_forward], [answers[rival].tokens_per_forward]
            rows.append(measuring.row(FORWARD, "token", *pair, rival, shown))
        for rival in peers:
            pairs = zip(answers[ours].responses, answers[rival].responses, strict=True)
            same = fmean(mine == theirs for mine, theirs in pairs)
            rows.append(measuring.row(SAME, "share", [same], [1.0], rival, shown))
            print(f"{decoding}, {ours}: {same:.1%} of the responses equal those of {rival}", flush=True)
    print(f"{decoding}: accuracy {accuracy[EAGER]:.1%}", flush=True)
    return rows


def speed(bench: Bench, decoding: str, batch_size: int, questions: int, repeats: int) -> list[dict[str, Any]]:
    """Rows: tokens per second, and time outside the model."""
    prompts = bench.prompts[:questions]
    turns = list(bench.writers(decoding, batch_size).items())
    for _, writer in turns:
        for _ in range(len(bench.engines)):
            writer.answer(prompts)  # warm-up: the compiled ones see every shape that they will meet, twice
    passes: dict[str, list[Answers]] = {name: [] for name, _ in turns}
    for repeat in range(repeats):
        for name, writer in turns if repeat % 2 == 0 else reversed(turns):
            passes[name].append(writer.answer(prompts))
    speeds = {name: [a.tokens_per_second for a in answers] for name, answers in passes.items()}
    outside = {name: [a.outside for a in answers] for name, answers in passes.items()}
    settings = {"decoding": decoding, "batch_size": batch_size, "questions": len(prompts)}
    rows = []
    for ours in bench.engines:
        for rival in bench.rivals_of(decoding):
            pair = speeds[ours], speeds[rival], rival, settings | {"engine": ours}
            rows.append(measuring.row(SPEED, "token/s", *pair))
            pair = outside[ours], outside[rival], rival, settings | {"engine": ours}
            rows.append(measuring.row(OUTSIDE, "share", *pair))
    shown = ", ".join(f"{name} {median(values):,.0f}" for name, values in speeds.items())
    print(f"batch size {batch_size}, {decoding}, tokens per second: {shown}", flush=True)
    return rows


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a minute's smoke run: few questions, two decodings, nothing compiled, nothing written",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave compiled forwards out")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument(
        "--decoding",
        nargs="+",
        metavar="KIND",
        help=f"static, sequential, dynamic, prefix, factor or checked; default: {' '.join(DECODINGS)}",
    )
    parser.add_argument("--batch-size", nargs="+", type=int, metavar="N", help="default: 1 8 32")
    parser.add_argument("--name", default="decode", help="of the result file (decode)")
    parser.add_argument("--per-family", type=int, default=100, metavar="N", help="questions for accuracy (100)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed passes of each (5)")
    chosen = parser.parse_args(given)
    if chosen.quick:
        chosen.per_family, chosen.repeats = 5, 1
    chosen.decoding = chosen.decoding or (["static", "prefix:0.95"] if chosen.quick else list(DECODINGS))
    chosen.batch_size = chosen.batch_size or ([1, 32] if chosen.quick else list(QUESTIONS))
    return chosen


def main() -> None:
    """Measures, shows, writes `results/decode.json`."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.set_verbosity_error()  # no hint that the prompts could be padded while they are encoded
    logging.disable_progress_bar()
    bench, began, rows = Bench(args.per_family, compiled=not (args.quick or args.no_compile)), time.perf_counter(), []
    for decoding in args.decoding:
        rows += quality(bench, decoding, max(args.batch_size))
    for batch_size in args.batch_size:
        usual = QUESTIONS[batch_size] if batch_size in QUESTIONS else 8 * batch_size
        questions = 2 * batch_size + 6 if args.quick else usual
        for decoding in args.decoding:
            rows += speed(bench, decoding, batch_size, questions, args.repeats)
    report = Report(rows, args.decoding, args.batch_size)
    Console(width=190).print(report.quality(), report.speed())
    print(*report.summary(), f"{time.perf_counter() - began:.0f} s on {measuring.hardware()}", sep="\n")
    if args.quick:
        print("left out: compiled forwards, most decodings and questions, batch size 8; not numbers to quote")
    else:
        print(f"written: {measuring.write(args.name, rows, note='; '.join(report.summary()))}")


if __name__ == "__main__":
    main()
