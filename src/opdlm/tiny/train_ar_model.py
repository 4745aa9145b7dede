"""Train the embedded AR model from scratch: `python -m opdlm.tiny.train_ar_model --output DIR`.

Plain next-token cross-entropy on the reference responses of the train split. Checkpoints every `--save-every` steps;
run the same command again to continue. The log (one JSON line an evaluation) ships with the weights.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opdlm.evals.problem import Problem
from opdlm.models.tokens import encode_prompt
from opdlm.tiny.families import FAMILIES, GENERATORS, evaluation_set, mixed
from opdlm.tiny.problems import Family
from opdlm.tiny.tokenizer import END, PAD, train_tokenizer

SHARES: dict[Family, float] = {"maths": 0.35, "recall": 0.12, "edit": 0.35, "code": 0.18}
LATE_SHARES: dict[Family, float] = {"maths": 0.24, "recall": 0.09, "edit": 0.60, "code": 0.07}
"""From LATE_STEP on: by then recall and code are learnt, while sorting and counting are not."""
LATE_STEP = 4000
SLOW_KINDS = frozenset({"sort_numbers", "reverse", "count"})
"""Kinds of `edit` that take longest to learn: after LATE_STEP only a third of the other edit problems is kept."""
VOCABULARY = 1000
IGNORE = -100


def new_model(seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 decoder of about 1.3 million parameters, randomly initialised; ids as `train_tokenizer` gives them."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=3,
    )
    return Qwen3ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> tuple[list[int], int]:
    """Token ids of prompt + response + end, and the length of the prompt part."""
    prompt = encode_prompt(tokenizer, problem.prompt)
    return [*prompt, *tokenizer.encode(problem.response), tokenizer.vocab[END]], len(prompt)


def late_problems(seed: int) -> Iterator[Problem]:
    """The stream after LATE_STEP: mostly what is not learnt yet."""
    rng = random.Random(f"late-{seed}")
    for problem in mixed(seed, "train", LATE_SHARES):
        if problem.family != "edit" or problem.tag in SLOW_KINDS or rng.random() < 1 / 3:
            yield problem


def batches(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Problem], rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, labels) [B, T], rows of similar length together; labels only on the response."""
    while True:
        chunk = [encode(tokenizer, problem) for problem in itertools.islice(stream, 8 * rows)]
        chunk.sort(key=lambda item: len(item[0]))
        order = torch.randperm(8).tolist()
        for part in (chunk[i * rows : (i + 1) * rows] for i in order):
            width = max(len(ids) for ids, _ in part)
            input_ids = torch.full((rows, width), tokenizer.vocab[PAD])
            labels = torch.full((rows, width), IGNORE)
            for row, (ids, prompt_length) in enumerate(part):
                input_ids[row, : len(ids)] = torch.tensor(ids)
                labels[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
            yield input_ids, labels


def response_loss(model: Qwen3ForCausalLM, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over response tokens; only those positions reach the LM head."""
    hidden = model.model(input_ids=input_ids).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != IGNORE
    return cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])


@torch.no_grad()
def exact_match(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, per_family: int) -> dict[str, float]:
    """Share of eval problems whose greedy response equals the reference, token for token, by family."""
    model.eval()
    right: dict[str, list[bool]] = {family: [] for family in FAMILIES}
    for problem in evaluation_set(per_family):
        ids, prompt_length = encode(tokenizer, problem)
        # Teacher forcing decides greedy equality exactly: the first wrong argmax is where greedy would part.
        predicted = model(torch.tensor([ids])).logits[0, prompt_length - 1 : -1].argmax(-1)
        right[problem.family].append(predicted.tolist() == ids[prompt_length:])
    model.train()
    return {family: round(sum(hits) / len(hits), 4) for family, hits in right.items()}


def new_optimiser(model: Qwen3ForCausalLM, learning_rate: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def save_whole(state: dict, path: Path) -> None:
    """A file that is complete or not there."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.rename(path)


def arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoint, log and final model")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--rows", type=int, default=96, help="rows per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, log and save."""
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    sample = itertools.chain.from_iterable(itertools.islice(GENERATORS[f](args.seed, "train"), 5000) for f in FAMILIES)
    tokenizer = train_tokenizer(text for problem in sample for text in (str(problem.prompt), problem.response))
    model = new_model(args.seed)
    optimiser = new_optimiser(model, args.learning_rate)
    warmup = 200

    def rate(step: int) -> float:
        decay = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * decay)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    start, tokens, checkpoint = 0, 0, args.output / "training_state.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        scheduler.load_state_dict(state["scheduler"])
        start, tokens = state["step"], state["tokens"]

    # A continued run draws other problems than the first part did; it need not be bit-equal to an unbroken one.
    early = batches(tokenizer, mixed(args.seed + start, "train", SHARES), args.rows)
    late = batches(tokenizer, late_problems(args.seed + start), args.rows)
    began, losses = time.perf_counter(), []
    for step in range(start, args.steps):
        input_ids, labels = next(early if step < LATE_STEP else late)
        with torch.autocast("cpu", torch.bfloat16):
            loss = response_loss(model, input_ids, labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        losses.append(loss.item())
        tokens += int((labels != IGNORE).sum())
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            line = {
                "step": step + 1,
                "loss": round(sum(losses) / len(losses), 4),
                "response_tokens": tokens,
                "seconds": round(time.perf_counter() - began, 1),
                "exact_match": exact_match(model, tokenizer, 200 if step + 1 == args.steps else 60),
            }
            losses.clear()
            print(json.dumps(line), flush=True)
            with (args.output / "training_log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            save_whole({**state, "scheduler": scheduler.state_dict(), "tokens": tokens}, checkpoint)
            model.save_pretrained(args.output / "model")
            tokenizer.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
