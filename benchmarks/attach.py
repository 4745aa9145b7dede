"""What a gate is worth on a fine-tune of its base, as it is and after a little more training.

    python benchmarks/attach.py

The embedded AR model is fine-tuned by cross-entropy on right answers in other words (`studies/foreign.py`), for several
numbers of updates. Each fine-tune gets the gate that ships with the package, by `opdlm.attach`; the last one also by a
short conversion that begins with it (`gate_from`), beside conversions of two budgets that begin with none. Questions
are new ones, greedy, in float32; texts are compared with those of transformers' `generate` of the fine-tune.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import measuring
import torch
from decoding import writers
from studies.foreign import restyled
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import opdlm
from opdlm.config import GenerationSettings, VerifiedDecoding
from opdlm.models.tokens import encode_prompt
from opdlm.tiny.families import evaluation_set, mixed
from opdlm.tiny.problems import Problem
from opdlm.tiny.weights import ar_model_path, lossless_path

MAX_NEW_TOKENS = 64
UPDATES = (0, 10, 100, 1000)
"""Of the fine-tune."""
ROWS, RATE = 32, 3e-4
REFRESHED, NEW = (6,), (6, 24)
"""Rollouts of 128 prompts of conversions that begin with the gate, and with none."""
RIVAL = "the gate on its base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-family", type=int, default=100, help="questions of each family")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a look that writes nothing")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    problems = evaluation_set(10 if arguments.quick else arguments.per_family)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(Path(folder), problems, UPDATES[:2] if arguments.quick else UPDATES))
    if not arguments.quick:
        print(f"written to {measuring.write('attach', rows)}")


def measured(folder: Path, problems: Sequence[Problem], updates: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows: tokens per forward of each gate on each fine-tune, beside those of the gate on its base."""
    tokenizer = AutoTokenizer.from_pretrained(ar_model_path())
    prompts = [encode_prompt(tokenizer, problem.prompt) for problem in problems]
    original = writers.autoregressive(_base(), tokenizer, MAX_NEW_TOKENS, 1).answer(prompts).responses
    own = None
    for count in updates:
        tuned = folder / f"tuned-{count}"
        model = fine_tuned(_base(), tokenizer, count)
        model.save_pretrained(tuned)
        tokenizer.save_pretrained(tuned)
        texts = writers.autoregressive(model, tokenizer, MAX_NEW_TOKENS, 1).answer(prompts).responses
        moved = sum(mine != theirs for mine, theirs in zip(texts, original, strict=True)) / len(texts)
        for gate, made in gates(folder, tuned, trained=count == UPDATES[-1]):
            rate, same = decoded(made, prompts, texts)
            own = own or rate
            shown = {"updates": count, "gate": gate, "same_text": same, "questions": len(texts), "moved": moved}
            print(
                f"{count} updates, {moved:.0%} of the texts are others: {gate}: {rate:.2f} tokens a forward, {same} of "
                f"{len(texts)} texts the fine-tune's",
                flush=True,
            )
            yield measuring.row("tokens per forward", "token", [rate], [own], RIVAL, shown)


def gates(folder: Path, tuned: Path, *, trained: bool) -> Iterator[tuple[str, Path]]:
    """Lossless models of the fine-tune: with the shipped gate, and with those that are `trained` beside it."""
    yield "attached", opdlm.attach(lossless_path(), tuned, folder / f"{tuned.name}-attached")
    if not trained:
        return
    for begin, budgets in (("attached", REFRESHED), ("none", NEW)):
        for rollouts in budgets:
            prompts = [problem.prompt for problem in islice(mixed(0, "conversion"), rollouts * 128)]
            start = {"gate_from": str(lossless_path())} if begin == "attached" else {}
            settings: dict[str, Any] = {"recipe": "demo-lossless", "rollouts": rollouts, "device": "cpu", **start}
            output = folder / f"{tuned.name}-{begin}-{rollouts}"
            losses: list[Any] = []
            made = opdlm.convert(tuned, prompts, output, on_step=losses.append, **settings)
            yield f"{begin}, then {losses[-1].total.tokens_trained:,} response tokens", made


def decoded(folder: Path, prompts: Sequence[list[int]], expected: Sequence[list[int]]) -> tuple[float, int]:
    """Tokens per forward by `verified`, and how many texts are the expected ones."""
    model = opdlm.load(folder, device="cpu")
    settings = GenerationSettings(decoding=VerifiedDecoding(), max_new_tokens=MAX_NEW_TOKENS)
    rollout = model.written(prompts, settings, 32)
    ends = zip(rollout.prompt_length.tolist(), rollout.length.tolist(), strict=True)
    texts = [rollout.input_ids[row, begin:end].tolist() for row, (begin, end) in enumerate(ends)]
    tokens = rollout.length - rollout.prompt_length
    same = sum(mine == theirs for mine, theirs in zip(texts, expected, strict=True))
    return float(tokens.sum() / rollout.forwards.sum()), same


# --- the fine-tune ------------------------------------------------------------------------------------------------


def _base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(ar_model_path()).eval()


def fine_tuned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, updates: int) -> PreTrainedModel:
    """The model after so many updates on reworded answers, all weights, next-token cross-entropy on the answers."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    problems = mixed(1, "conversion")
    for _ in range(updates):
        ids, answers = _rows(list(islice(problems, ROWS)), tokenizer)
        logits = model(ids).logits[:, :-1]
        cross_entropy(logits[answers[:, 1:]], ids[:, 1:][answers[:, 1:]]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model


def _rows(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] prompts with their reworded answers, padded on the right, and where the answers are."""
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    rows = []
    for problem in problems:
        prompt = encode_prompt(tokenizer, problem.prompt)
        rows.append((prompt, [*tokenizer.encode(restyled(problem), add_special_tokens=False), end]))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, answers = torch.full((len(rows), longest), end), torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        answers[row, len(prompt) : len(prompt) + len(answer)] = True
    return ids, answers


if __name__ == "__main__":
    main()
