"""On-policy distillation of an autoregressive model into a block-diffusion one (arXiv 2606.06712), in one file.

    python examples/opd_one_file.py MODEL "first prompt" "second prompt" --steps 20

MODEL is the folder or hub name of a Llama-like decoder. Plain torch and transformers, one row at a time, no cache:
slow, and short enough to read in one sitting. `opdlm` computes the same, faster; tests/parity/test_one_file.py
compares the two.

Shape letters: T tokens of a text, S block size, Q columns of a packed row, M supervised positions, V vocabulary.
"""

import argparse
import copy
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

NEVER = 1_000_000  # the step of a token that was never unmasked


@dataclass
class Text:
    """A prompt with the student's response, in whole blocks.

    Attributes:
        ids: [T] prompt, response, and what is left of the last block.
        steps: [T] the step of its block in which each token was unmasked; -1 in the prompt, NEVER where it is a mask.
        prompt: tokens of the prompt.
        length: tokens of prompt and response, up to and including the first stop token.
    """

    ids: torch.Tensor
    steps: torch.Tensor
    prompt: int
    length: int


# --- who sees whom ------------------------------------------------------------------------------------------------


def visible(position: torch.Tensor, noised: torch.Tensor, size: int) -> torch.Tensor:
    """[Q, Q] bool: entry (q, k) says whether token q sees token k.

    Blocks follow absolute positions, prompt included. A clean token sees the clean tokens of its own block and of all
    blocks before it. A noised token sees the clean tokens of the blocks before its own, and the noised ones of its own.
    """
    block = position // size
    q_block, k_block = block[:, None], block[None]
    q_noised, k_noised = noised[:, None], noised[None]
    sees_clean = ~k_noised & ((k_block < q_block) | ((k_block == q_block) & ~q_noised))
    sees_noised = k_noised & q_noised & (k_block == q_block)
    return sees_clean | sees_noised


def log_probabilities(model: PreTrainedModel, hidden: torch.Tensor, mask_id: int) -> torch.Tensor:
    """[M, D] hidden states -> [M, V] log-probabilities; the mask token has none, it is never an answer."""
    logits = model.get_output_embeddings()(hidden).float()
    return logits.index_fill(-1, torch.tensor(mask_id, device=logits.device), -1e30).log_softmax(-1)


def block_diffusion(
    model: PreTrainedModel, ids: torch.Tensor, position: torch.Tensor, noised: torch.Tensor, size: int
) -> torch.Tensor:
    """[Q, D] final hidden states of a row under the block mask."""
    mask = visible(position, noised, size)[None, None]
    output = model.base_model(ids[None], attention_mask=mask, position_ids=position[None], use_cache=False)
    return output.last_hidden_state[0]


# --- 1. the student writes ----------------------------------------------------------------------------------------


@torch.no_grad()
def write(
    student: PreTrainedModel,
    prompt: list[int],
    mask_id: int,
    stop_ids: list[int],
    size: int = 4,
    max_new_tokens: int = 64,
    threshold: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Text:
    """One response, block by block; in each step every token above the threshold is unmasked, at least the best one."""
    cap = len(prompt) + max_new_tokens
    ids = torch.tensor(prompt, device=student.device)
    steps = torch.full_like(ids, -1)
    while True:
        start = len(ids) // size * size
        empty = start + size - len(ids)
        ids = torch.cat([ids, ids.new_full((empty,), mask_id)])
        steps = torch.cat([steps, steps.new_full((empty,), NEVER)])
        position = torch.arange(len(ids), device=ids.device)
        for step in range(size):
            hidden = block_diffusion(student, ids, position, position >= start, size)[start:]
            log_p = log_probabilities(student, hidden, mask_id)
            token = log_p.argmax(-1)
            if temperature > 0:
                token = torch.multinomial((log_p / temperature).softmax(-1), 1, generator=generator)[:, 0]
            # The model's own probability of its candidate, at temperature 1.
            confidence = log_p.gather(-1, token[:, None])[:, 0].exp()
            confidence = confidence.masked_fill(steps[start:] != NEVER, -1.0)
            fixed = (confidence > threshold).index_fill(0, confidence.argmax(), True)
            ids[start:][fixed], steps[start:][fixed] = token[fixed], step
            length = finished_length(ids, steps, len(prompt), cap, stop_ids)
            if length is not None:
                return Text(ids, steps, len(prompt), length)
            if not (steps == NEVER).any():
                break


def finished_length(ids: torch.Tensor, steps: torch.Tensor, prompt: int, cap: int, stop_ids: list[int]) -> int | None:
    """Tokens up to the first stop token or the cap, if everything before is fixed."""
    for i in range(prompt, min(len(ids), cap)):
        if steps[i] == NEVER:
            return None
        if int(ids[i]) in stop_ids:
            return i + 1
    return cap if len(ids) >= cap else None


# --- 2. states that it visited ------------------------------------------------------------------------------------


def choose_steps(text: Text, size: int, generator: torch.Generator | None = None) -> dict[int, int]:
    """One realised step of each block of the response, uniformly: {first position of the block: step}."""
    chosen = {}
    for start in range(text.prompt // size * size, text.length, size):
        steps = text.steps[start : start + size]
        realised = 1 + int(steps[steps != NEVER].max())
        chosen[start] = int(torch.randint(realised, (1,), generator=generator))
    return chosen


def packed_row(
    text: Text, chosen: dict[int, int], mask_id: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[clean text | noised blocks], each noised block as it was before its chosen step.

    Returns:
        ids, position ids and whether the token is noised, each [Q]; and the columns [M] whose tokens are predicted.
    """
    clean = torch.arange(len(text.ids), device=text.ids.device)
    blocks = torch.cat([clean[start : start + size] for start in chosen])
    step_of = torch.cat([torch.full((size,), chosen[start], device=clean.device) for start in chosen])
    masked = text.steps[blocks] >= step_of
    ids = torch.cat([text.ids, text.ids[blocks].masked_fill(masked, mask_id)])
    noised = torch.arange(len(ids), device=clean.device) >= len(clean)
    # What stands behind the stop token or the length cap was never the response: it is seen, never learnt.
    columns = len(clean) + (masked & (blocks < text.length)).nonzero()[:, 0]
    return ids, torch.cat([clean, blocks]), noised, columns


# --- 3. and 4. the teacher's opinion of them, and the loss ---------------------------------------------------------


def divergence(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    text: Text,
    chosen: dict[int, int],
    mask_id: int,
    size: int,
) -> tuple[torch.Tensor, int]:
    """Sum over the masked response positions of KL(teacher || student) in nats, and their number.

    The teacher reads the text once, from left to right: its output at i-1 is its opinion of token i, in every state.
    """
    ids, position, noised, columns = packed_row(text, chosen, mask_id, size)
    with torch.no_grad():
        read = teacher.base_model(text.ids[None], use_cache=False).last_hidden_state[0]
        expected = log_probabilities(teacher, read[position[columns] - 1], mask_id)
    hidden = block_diffusion(student, ids, position, noised, size)
    predicted = log_probabilities(student, hidden[columns], mask_id)
    return (expected.exp() * (expected - predicted)).sum(), len(columns)


# --- 5. the update ------------------------------------------------------------------------------------------------


def training_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    prompts: list[list[int]],
    optimiser: torch.optim.Optimizer,
    mask_id: int,
    stop_ids: list[int],
    size: int,
    max_new_tokens: int,
    generator: torch.Generator,
) -> float:
    """One rollout of all prompts and one update on it; returns the loss, a mean over supervised tokens."""
    texts = [write(student, prompt, mask_id, stop_ids, size, max_new_tokens, generator=generator) for prompt in prompts]
    total, count = torch.zeros((), device=student.device), 0
    for text in texts:
        loss, tokens = divergence(student, teacher, text, choose_steps(text, size, generator), mask_id, size)
        total, count = total + loss, count + tokens
    optimiser.zero_grad()
    (total / count).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimiser.step()
    return float(total.detach() / count)


def load(name: str) -> tuple[PreTrainedModel, AutoTokenizer, int, list[int]]:
    """The model in float32, its tokenizer, and the mask and stop ids; a mask token is added if there is none."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
        mask_id, rows = tokenizer.mask_token_id, model.get_input_embeddings().weight.shape[0]
        if mask_id >= rows:
            model.resize_token_embeddings(mask_id + 1, mean_resizing=False)
        with torch.no_grad():  # it starts as the mean of all others
            embedding = model.get_input_embeddings().weight
            embedding[mask_id] = embedding[:mask_id].mean(0)
    stops = model.generation_config.eos_token_id or tokenizer.eos_token_id
    return model, tokenizer, tokenizer.mask_token_id, stops if isinstance(stops, list) else [stops]


def main() -> None:
    parser = argparse.ArgumentParser(description="On-policy distillation into a block-diffusion model, in one file.")
    parser.add_argument("model", help="folder or hub name of an autoregressive decoder")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--block-size", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    student, tokenizer, mask_id, stop_ids = load(options.model)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.AdamW(student.parameters(), lr=options.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(options.seed)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in options.prompts]
    size, longest = options.block_size, options.max_new_tokens
    for step in range(options.steps):
        loss = training_step(student, teacher, prompts, optimiser, mask_id, stop_ids, size, longest, generator)
        print(f"step {step + 1:4d}   loss {loss:.4f}")
    for prompt in prompts:
        text = write(student, prompt, mask_id, stop_ids, size, longest, temperature=0.0)
        print(tokenizer.decode(text.ids[: text.length]))


if __name__ == "__main__":
    main()
