"""The server under load: nothing lost, its latency and memory, and its speed against `generate` and another server.

    python benchmarks/serve.py

Servers run in processes of their own, clients in this one: OpenAI's asynchronous client, in a closed loop. All weights
are those of the embedded models, in float32, on the processor.

Load: for a minute many clients ask, stream, hang up, cancel and send nonsense. Every full answer is compared with what
`generate` writes to the same question.

Speed, in tokens of responses a second, greedy: the engine alone (`DiffusionLM.answers`, in this process), `opdlm serve`
of the student and of the AR model, and `transformers serve` of the AR model, with and without continuous batching. They
take turns within each repeat. Rates are by the clock, and by the processor time of the process that writes: where
others use the machine as well, the second is the one to compare. "short": the embedded model's own questions. "long":
the same with the end-of-sequence token forbidden, 128 tokens each.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice, product
from statistics import median, quantiles
from typing import Any

import httpx2
import measuring
import openai
import psutil
import torch
from serving import servers
from serving.clients import Outcome, Question, Rate, rough_weather, throughput

from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import Answer, DiffusionLM, load, load_autoregressive
from opdlm.tiny.families import evaluation_set
from opdlm.tiny.weights import ar_model_path, student_path

LENGTHS: dict[str, dict[str, Any]] = {"short": {}, "long": {"max_tokens": 128, "logit_bias": {"3": -100}}}
ENGINE, ENGINE_AR = "opdlm generate", "opdlm generate, AR model"
OURS, OURS_AR = "opdlm serve", "opdlm serve, AR model"
THEIRS, THEIRS_BATCHED = "transformers serve, AR model", "transformers serve --continuous-batching, AR model"
PROBE_S = 120
Served = tuple[str, psutil.Process]
"""The address of an API, and the process behind it."""
RIVALS = {OURS: (ENGINE, OURS_AR, THEIRS, THEIRS_BATCHED), OURS_AR: (ENGINE_AR, THEIRS, THEIRS_BATCHED)}


def main() -> None:
    args = arguments()
    texts = [problem.prompt for problem in evaluation_set(100)][: args.questions]
    student, original = load(student_path()), load_autoregressive(ar_model_path())
    rows = []
    with ExitStack() as stack:
        names = (THEIRS,) if args.without_continuous else (THEIRS, THEIRS_BATCHED)
        theirs = {
            who: stack.enter_context(servers.transformers(ar_model_path(), continuous=who == THEIRS_BATCHED))
            for who in names
        }
        url, process = stack.enter_context(servers.opdlm(args.batch_size, 4 * args.clients))
        questions = [Question(text, answer) for text, answer in zip(texts, responses(student, texts), strict=True)]
        theirs = {who: at for who, at in theirs.items() if writes(who, at)}
        outcome = asyncio.run(rough_weather(url, questions, args.clients, args.load_s, process))
        rows.append(load_row(outcome, url, args))
        print(rows[-1], flush=True)
        rates = measured((url, process), theirs, student, original, texts, args)
    rows += speed_rows(rates, args)
    for row in rows[1:]:
        about = row["settings"]
        print(f"{about['length']}: {about['who']} {row['ours']:,} {row['unit']}, {row['ratio']} of {row['rival_name']}")
    if not args.quick:
        print(f"written: {measuring.write('serve', rows, load_note())}")


def responses(lm: DiffusionLM, texts: Sequence[str]) -> list[str]:
    """What `generate` writes to each, greedily."""
    prompts = [encode_prompt(lm.tokenizer, text) for text in texts]
    found = dict(lm.answers(prompts, batch_size=64, temperature=0.0))
    return [found[place].text for place in range(len(texts))]


def measured(
    ours: Served,
    theirs: Mapping[str, Served],
    student: DiffusionLM,
    original: DiffusionLM,
    texts: Sequence[str],
    args: argparse.Namespace,
) -> dict[tuple[str, str], list[Rate]]:
    """(who, length) -> one rate for each repeat."""
    rates: dict[tuple[str, str], list[Rate]] = {}
    for _, (length, more) in product(range(args.repeats), LENGTHS.items()):
        found = {
            ENGINE: alone(student, texts, args, more),
            OURS: served(ours, "student", texts, args, more),
            ENGINE_AR: alone(original, texts, args, more),
            OURS_AR: served(ours, "ar_model", texts, args, more),
        }
        if length == "short":  # theirs takes no logit_bias
            name, least = str(ar_model_path()), {"max_tokens": 64}
            found |= {who: served(at, name, texts, args, least) for who, at in theirs.items()}
        for who, rate in found.items():
            rates.setdefault((who, length), []).append(rate)
            print(f"{length}: {who} {rate}", flush=True)
    return rates


def writes(who: str, at: Served) -> bool:
    """Whether another's server answers at all; if not, it is said and left out."""
    messages: Any = [{"role": "user", "content": "What is 12 + 30?"}]
    servers.wait_for(*at)
    with openai.OpenAI(base_url=at[0], api_key="any", max_retries=0, timeout=PROBE_S) as client:
        try:
            client.chat.completions.create(model=str(ar_model_path()), messages=messages, max_tokens=4)
        except openai.APIError as error:
            print(f"{who} does not write: {error}", flush=True)
            return False
    return True


def served(at: Served, model: str, texts: Sequence[str], args: argparse.Namespace, more: dict[str, Any]) -> Rate:
    """By a server, for more clients than its engine has rows."""
    url, process = at
    return asyncio.run(throughput(url, model, texts, args.clients, args.seconds, process, temperature=0, **more))


def alone(lm: DiffusionLM, texts: Sequence[str], args: argparse.Namespace, more: dict[str, Any]) -> Rate:
    """By the engine, with more prompts than rows, so that slots are filled again."""
    settings = {"temperature": 0.0, "logit_bias": {int(k): v for k, v in more.get("logit_bias", {}).items()}}
    if "max_tokens" in more:
        settings["max_new_tokens"] = more["max_tokens"]
    prompts = [encode_prompt(lm.tokenizer, text) for text in texts] * 4  # a longer queue would cost the engine time

    def endless() -> Iterator[Answer]:
        while True:
            yield from (answer for _, answer in lm.answers(prompts, batch_size=args.batch_size, **settings))

    answers = endless()
    for _ in islice(answers, args.batch_size):  # a warm-up
        pass
    began, cpu, tokens = time.perf_counter(), time.process_time(), 0
    while (used := time.process_time() - cpu) < args.seconds:
        tokens += next(answers).tokens
    return Rate(tokens, time.perf_counter() - began, used)


def load_row(outcome: Outcome, url: str, args: argparse.Namespace) -> dict[str, Any]:
    """What came of the rough weather."""
    third = max(1, len(outcome.memory) // 3)
    cuts = quantiles(outcome.seconds, n=20)
    return {
        "metric": "load",
        "unit": "s",
        "p50": round(median(outcome.seconds), 4),
        "p95": round(cuts[-1], 4),
        "tokens_per_second": round(outcome.tokens / args.load_s, 1),
        "counts": dict(sorted(outcome.counts.items())),
        "open_afterwards": sum(still_open(url)),
        "load_average": round(os.getloadavg()[0], 1),
        "memory_mb": {
            "first_third": round(median(outcome.memory[:third]) / 1e6, 1),
            "second_third": round(median(outcome.memory[third : 2 * third]) / 1e6, 1),
            "last_third": round(median(outcome.memory[2 * third :]) / 1e6, 1),
        },
        "settings": {"clients": args.clients, "batch_size": args.batch_size, "seconds": args.load_s},
    }


def still_open(url: str) -> Iterator[float]:
    """Texts that the server still has, a moment after all clients are gone."""
    time.sleep(2)
    for line in httpx2.get(url.removesuffix("/v1") + "/metrics").text.splitlines():
        if line.startswith(("opdlm_texts_writing", "opdlm_texts_waiting")):
            yield float(line.rpartition(" ")[2])


def speed_rows(rates: dict[tuple[str, str], list[Rate]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Our server against each rival, by the clock and by the processor time of who writes."""
    by = {
        "token/s": lambda rate: rate.tokens / rate.seconds,
        "token/s of the processor": lambda rate: rate.tokens / rate.cpu,
    }
    for who, rivals in RIVALS.items():
        for rival, length, (unit, speed) in product(rivals, LENGTHS, by.items()):
            if (rival, length) in rates:
                settings = {"who": who, "length": length, "clients": args.clients, "batch_size": args.batch_size}
                mine, other = ([speed(rate) for rate in rates[name, length]] for name in (who, rival))
                yield measuring.row("speed", unit, mine, other, rival, settings)


def load_note() -> str:
    """What else the machine did."""
    return f"load average of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short repeat, nothing is written")
    parser.add_argument("--clients", type=int, default=64, metavar="N", help="clients at once (64)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows of the engine (32)")
    parser.add_argument("--questions", type=int, default=256, metavar="N", help="different questions (256)")
    parser.add_argument("--load-s", type=float, default=60, metavar="S", help="seconds of the load (60)")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="processor seconds of a timed pass (20)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="passes of each (3)")
    parser.add_argument("--without-continuous", action="store_true", help="leave out --continuous-batching of theirs")
    chosen = parser.parse_args(given)
    if chosen.quick:
        chosen.load_s, chosen.seconds, chosen.repeats, chosen.questions = 5.0, 3.0, 1, 64
    return chosen


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
