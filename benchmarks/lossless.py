"""Lossless decoding of the embedded model: the same text as the AR model's `generate`, in how many forwards, how fast.

    python benchmarks/lossless.py [MODEL]

MODEL is a lossless conversion of the embedded AR model; default: the one that ships with the package. All figures are
of questions that no conversion saw, greedy, in float32. Text is compared token by token with transformers' `generate`
of the same weights without the gate. Acceptance by place is the share of drafts that hold, given that those before
held.

Speeds run from lists of prompt ids to lists of response ids, prompts' passes included; writers take turns within each
repeat. `generate` pads prompts on the left and waits for the longest row of each batch; the engine replaces rows.
"""

import argparse
import random
from collections.abc import Sequence
from statistics import median
from typing import Any

import measuring
import torch
from decoding import writers
from decoding.writers import Answers, Writer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from opdlm.config import GenerationSettings, settings_from
from opdlm.evals.acceptance import acceptance_of
from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import DiffusionLM, load
from opdlm.tiny.families import evaluation_set
from opdlm.tiny.weights import ar_model_path, lossless_path

QUESTIONS = {1: 48, 8: 128, 32: 256}
"""Batch size -> questions of one timed pass."""
DECODINGS = ("verified", "verified:3", "verified:auto", "sequential")
COMPILED = ("verified", "verified:3", "verified:auto")
MAX_NEW_TOKENS = 64
AR, AR_COMPILED, OURS, OURS_COMPILED = "transformers AR", "transformers AR, compiled", "opdlm", "opdlm, compiled"


def settings_of(decoding: str) -> GenerationSettings:
    return settings_from(GenerationSettings, {"decoding": decoding, "max_new_tokens": MAX_NEW_TOKENS})


def same_text(
    model: DiffusionLM, prompts: Sequence[list[int]], families: Sequence[str], expected: Answers
) -> list[dict[str, Any]]:
    """Rows: equal texts at each batch size, tokens per forward by family, acceptance."""
    rows = []
    for batch_size in QUESTIONS:
        rollout = model.written(prompts, settings_of("verified"), batch_size)
        ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
        texts = [rollout.input_ids[row, begin:end].tolist() for row, (begin, end) in enumerate(ends)]
        same = [mine == theirs for mine, theirs in zip(texts, expected.responses, strict=True)]
        shown = {"batch_size": batch_size, "questions": len(prompts), "decoding": "verified"}
        rows.append(measuring.row("same text as generate", "text", [sum(same)], [len(same)], AR, shown))
        print(f"batch size {batch_size}: {sum(same)} of {len(same)} texts are the original's", flush=True)
    tokens, forwards = (rollout.length - rollout.prompt_length).tolist(), rollout.forwards.tolist()
    for family in ("all", *dict.fromkeys(families)):
        mine = [i for i, name in enumerate(families) if family in ("all", name)]
        rate = sum(tokens[i] for i in mine) / sum(forwards[i] for i in mine)
        rows.append(measuring.row("tokens per forward", "token", [rate], [1.0], AR, {"family": family}))
        print(f"{family}: {rate:.2f} tokens a forward", flush=True)
    drafts = acceptance_of(model, settings_of("verified"))
    drafts.saw(rollout)
    for place, share in enumerate(drafts.shares, 1):
        rows.append(measuring.row("acceptance", "share", [round(share, 3)], [1.0], AR, {"place": place}))
        print(f"drafts at place {place}: {share:.1%} accepted", flush=True)
    return rows


def speed(turns: dict[str, Writer], prompts: list[list[int]], batch_size: int, repeats: int) -> list[dict[str, Any]]:
    """Rows: tokens per second of each of our writers against each AR one."""
    for _ in range(2):
        for writer in turns.values():
            writer.answer(prompts)  # warm-up: the compiled ones see every shape that they will meet, twice
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(repeats):
        for name, writer in turns.items() if repeat % 2 == 0 else reversed(turns.items()):
            speeds[name].append(writer.answer(prompts).tokens_per_second)
    shown = {"batch_size": batch_size, "questions": len(prompts)}
    rows = [
        measuring.row("tokens per second", "token/s", values, speeds[rival], rival, shown | {"writer": name})
        for name, values in speeds.items()
        for rival in (AR, AR_COMPILED)
        if rival in speeds and name not in (AR, AR_COMPILED)
    ]
    print(f"batch size {batch_size}, tokens per second: ", end="")
    print(", ".join(f"{name} {median(values):,.0f}" for name, values in speeds.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(lossless_path()))
    parser.add_argument("--per-family", type=int, default=250, help="questions of each family whose text is compared")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=list(QUESTIONS), choices=QUESTIONS, metavar="B")
    parser.add_argument("--decodings", nargs="+", default=list(DECODINGS), metavar="D", help="those that are timed")
    parser.add_argument("--name", default="lossless", help="of the result file")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    compiled = not arguments.no_compile
    model = load(arguments.model, device="cpu")
    fast = load(arguments.model, device="cpu", compile=True) if compiled else model
    ar_model, ar_fast = (AutoModelForCausalLM.from_pretrained(ar_model_path()).eval() for _ in range(2))
    ar_fast.forward = torch.compile(ar_fast.forward, dynamic=True)
    tokenizer = AutoTokenizer.from_pretrained(ar_model_path())
    problems = evaluation_set(arguments.per_family)
    random.Random(0).shuffle(problems)
    prompts = [encode_prompt(tokenizer, problem.prompt) for problem in problems]
    expected = writers.autoregressive(ar_model, tokenizer, MAX_NEW_TOKENS, 1).answer(prompts)
    rows = same_text(model, prompts, [problem.family for problem in problems], expected)
    for batch_size in arguments.batch_sizes:
        questions = QUESTIONS[batch_size]
        turns: dict[str, Writer] = {AR: writers.autoregressive(ar_model, tokenizer, MAX_NEW_TOKENS, batch_size)}
        turns |= {f"{OURS}, {one}": writers.engine(model, settings_of(one), batch_size) for one in arguments.decodings}
        if compiled:
            turns[AR_COMPILED] = writers.autoregressive(ar_fast, tokenizer, MAX_NEW_TOKENS, batch_size)
            for one in (one for one in arguments.decodings if one in COMPILED):
                turns[f"{OURS_COMPILED}, {one}"] = writers.engine(fast, settings_of(one), batch_size)
        rows += speed(turns, prompts[:questions], batch_size, arguments.repeats)
        print(f"written to {measuring.write(arguments.name, rows)}", flush=True)


if __name__ == "__main__":
    main()
