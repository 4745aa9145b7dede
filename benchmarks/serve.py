"""The server under load: nothing lost, its latency and memory, and its speed against `generate` and another server.

    python benchmarks/serve.py

Servers run in processes of their own, clients in this one: OpenAI's asynchronous client, in a closed loop. All weights
are those of the embedded models, in float32, on the processor.

Load: for a minute many clients ask, stream, hang up, cancel and send nonsense. Every full answer is compared with what
`generate` writes to the same question.

Speed, in tokens of responses a second, greedy: the engine alone (`DiffusionLM.answers`, in this process), `opdlm serve`
of the student and of the AR model, and `transformers serve` of the AR model, with and without continuous batching. They
take turns within each repeat. "short": the embedded model's own questions. "long": the same with the end-of-sequence
token forbidden, 128 tokens each.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from statistics import median, quantiles
from typing import Any

import httpx2
import measuring
import torch
from serving import servers
from serving.clients import Outcome, Question, rough_weather, throughput

from opdlm.models.tokens import encode_prompt
from opdlm.sampling.api import DiffusionLM, load, load_autoregressive
from opdlm.tiny.families import evaluation_set
from opdlm.tiny.weights import ar_model_path, student_path

LENGTHS: dict[str, dict[str, Any]] = {"short": {}, "long": {"max_tokens": 128, "logit_bias": {"3": -100}}}
ENGINE, ENGINE_AR = "opdlm generate", "opdlm generate, AR model"
OURS, OURS_AR = "opdlm serve", "opdlm serve, AR model"
THEIRS, THEIRS_BATCHED = "transformers serve, AR model", "transformers serve --continuous-batching, AR model"
RIVALS = {OURS: (ENGINE, OURS_AR, THEIRS, THEIRS_BATCHED), OURS_AR: (ENGINE_AR, THEIRS, THEIRS_BATCHED)}


def main() -> None:
    args = arguments()
    texts = [problem.prompt for problem in evaluation_set(100)][: args.questions]
    student, original = load(student_path()), load_autoregressive(ar_model_path())
    rows = []
    with servers.opdlm(args.batch_size, 4 * args.clients) as (url, process):
        questions = [Question(text, answer) for text, answer in zip(texts, responses(student, texts), strict=True)]
        outcome = asyncio.run(rough_weather(url, questions, args.clients, args.load_s, process))
        rows.append(load_row(outcome, url, args))
        print(rows[-1], flush=True)
        rates = measured(url, student, original, texts, args)
    rows += speed_rows(rates, args)
    for row in rows[1:]:
        about = row["settings"]
        print(f"{about['length']}: {about['who']} {row['ours']:,} token/s, {row['ratio']} of {row['rival_name']}")
    if not args.quick:
        print(f"written: {measuring.write('serve', rows, load_note())}")


def responses(lm: DiffusionLM, texts: Sequence[str]) -> list[str]:
    """What `generate` writes to each, greedily."""
    prompts = [encode_prompt(lm.tokenizer, text) for text in texts]
    found = dict(lm.answers(prompts, batch_size=64, temperature=0.0))
    return [found[place].text for place in range(len(texts))]


def measured(
    url: str, student: DiffusionLM, original: DiffusionLM, texts: Sequence[str], args: argparse.Namespace
) -> dict[tuple[str, str], list[float]]:
    """(who, length) -> tokens a second, one for each repeat."""
    rates: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        theirs = {
            THEIRS: stack.enter_context(servers.transformers(ar_model_path(), continuous=False)),
            THEIRS_BATCHED: stack.enter_context(servers.transformers(ar_model_path(), continuous=True)),
        }
        for _ in range(args.repeats):
            for length, more in LENGTHS.items():
                found = {
                    ENGINE: alone(student, texts, args, more),
                    OURS: served(url, "student", texts, args, more),
                    ENGINE_AR: alone(original, texts, args, more),
                    OURS_AR: served(url, "ar_model", texts, args, more),
                }
                if length == "short":  # theirs takes no logit_bias
                    name, least = str(ar_model_path()), {"max_tokens": 64}
                    found |= {who: served(at, name, texts, args, least) for who, at in theirs.items()}
                for who, rate in found.items():
                    rates.setdefault((who, length), []).append(rate)
                    print(f"{length}: {who} {rate:,.0f} token/s", flush=True)
    return rates


def served(url: str, model: str, texts: Sequence[str], args: argparse.Namespace, more: dict[str, Any]) -> float:
    """By a server, for more clients than its engine has rows."""
    return asyncio.run(throughput(url, model, texts, args.clients, args.seconds, temperature=0, **more))


def alone(lm: DiffusionLM, texts: Sequence[str], args: argparse.Namespace, more: dict[str, Any]) -> float:
    """By the engine, with more prompts than rows, so that slots are filled again."""
    settings = {"temperature": 0.0, "logit_bias": {int(k): v for k, v in more.get("logit_bias", {}).items()}}
    if "max_tokens" in more:
        settings["max_new_tokens"] = more["max_tokens"]
    began, tokens = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < args.seconds:
        prompts = [encode_prompt(lm.tokenizer, text) for text in texts]
        tokens += sum(answer.tokens for _, answer in lm.answers(prompts, batch_size=args.batch_size, **settings))
    return tokens / took


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


def speed_rows(rates: dict[tuple[str, str], list[float]], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Our server against each rival."""
    for who, rivals in RIVALS.items():
        for rival in rivals:
            for length in LENGTHS:
                if (rival, length) in rates:
                    settings = {"who": who, "length": length, "clients": args.clients, "batch_size": args.batch_size}
                    yield measuring.row("speed", "token/s", rates[who, length], rates[rival, length], rival, settings)


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
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="seconds of each timed pass (10)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="passes of each (3)")
    chosen = parser.parse_args(given)
    if chosen.quick:
        chosen.load_s, chosen.seconds, chosen.repeats, chosen.questions = 5.0, 3.0, 1, 64
    return chosen


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
