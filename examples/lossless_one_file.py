"""Lossless conversion in one file: exactly the original's text, in fewer forwards.

    python examples/lossless_one_file.py                           # a minute and a half on one core
    python examples/lossless_one_file.py --updates 250 --rows 32   # the budget of `opdlm demo`, rather slowly

An autoregressive model needs one forward for each token, since a token is known only when the one before it is. Here a
small adapter, the gate, drafts several tokens at once, and the same forward lets the model itself, whose weights never
change, check the drafts before. What it does not confirm is thrown away: drafts decide the speed, never the text.

Plain torch and transformers, for Llama-like decoders, one text at a time. `opdlm convert --lossless` computes the same,
batched, for more architectures, with sampling; tests/parity/test_lossless_one_file.py compares the two.

Shape letters: C clean tokens of a pass, P tokens in the cache, A windows, k places of a window, Q = C + A k, D hidden
size, V vocabulary.
"""

import argparse
import inspect
import itertools
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from opdlm.tiny.families import mixed  # questions that the embedded model was taught to answer
from opdlm.tiny.problems import Split
from opdlm.tiny.weights import ar_model_path

# --- the gate: an adapter that acts on window tokens alone ------------------------------------------------------------


class Gate(nn.Module):
    """LoRA on every linear layer but the LM head, and a learnt vector for each place of a window.

    Attributes:
        width: how many tokens at the end of the pass are window tokens. All others go through the original weights.
    """

    def __init__(self, model: PreTrainedModel, window: int, rank: int) -> None:
        """Begins as no change at all; the model's own weights stop training."""
        super().__init__()
        model.requires_grad_(False)
        self.width = 0
        self.places = nn.Parameter(model.get_input_embeddings().weight.mean(0).repeat(window, 1))
        linear = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
        self.down = nn.ParameterList(torch.randn(rank, one.in_features) / one.in_features**0.5 for one in linear)
        self.up = nn.ParameterList(torch.zeros(rank, one.out_features) for one in linear)
        for layer, down, up in zip(linear, self.down, self.up, strict=True):
            layer.register_forward_hook(self._adding(down, up))

    def _adding(self, down: nn.Parameter, up: nn.Parameter):
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if self.width:
                output[:, -self.width :] += 2 * (inputs[0][:, -self.width :] @ down.T @ up)

        return hook


# --- one pass: clean text, and windows behind any of its tokens -------------------------------------------------------


def visible(past: int, behind: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """[Q, P + Q] bool: entry (q, key) says whether token q sees the key; cached tokens come first.

    Clean tokens see clean tokens up to themselves: the original's own causal mask. A window sees the clean text before
    it, and itself in both directions. Nobody else sees a window.

    Args:
        behind: [Q] the token sees clean text before this position. number: [Q] of its window, -1 for clean tokens.
    """
    clean = past + int((number < 0).sum())  # a clean key stands at its own position
    sees_clean = torch.arange(clean) < behind[:, None]
    windows = number[number >= 0]
    return torch.cat([sees_clean, number[:, None] == windows], 1)


def _cache_argument(model: PreTrainedModel) -> str:
    """What the KV cache is called: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.base_model.forward).parameters else "past_key_values"


def forward(
    model: PreTrainedModel, gate: Gate, text: torch.Tensor, anchors: torch.Tensor, cache: DynamicCache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Final hidden states, [C, D] of the clean tokens `text` [C], behind what is cached, and [A, k, D] of windows.

    The window anchored at n sees the text before n; its places stand at positions n, n + 1, ... and, like every token,
    each says what comes next: place j drafts token n + 1 + j. Token n itself the model says without help.
    """
    past, window = cache.get_seq_length(), len(gate.places)
    clean = torch.arange(past, past + len(text))
    places = (anchors[:, None] + torch.arange(window)).flatten()
    behind = torch.cat([clean + 1, anchors.repeat_interleave(window)])
    number = torch.cat([torch.full_like(clean, -1), torch.arange(len(anchors)).repeat_interleave(window)])
    gate.width = len(places)
    hidden = model.base_model(
        inputs_embeds=torch.cat([model.get_input_embeddings()(text), gate.places.repeat(len(anchors), 1)])[None],
        position_ids=torch.cat([clean, places])[None],
        attention_mask=visible(past, behind, number)[None, None],
        **{_cache_argument(model): cache},
        use_cache=True,
    ).last_hidden_state[0]
    gate.width = 0
    return hidden[: len(text)], hidden[len(text) :].unflatten(0, (len(anchors), window))


def log_probabilities(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """[..., D] hidden states -> [..., V]."""
    return model.get_output_embeddings()(hidden).float().log_softmax(-1)


# --- decoding: one forward checks the last drafts and makes the next ones ---------------------------------------------


@dataclass
class Text:
    """Attributes: ids: [T] prompt and response. prompt: tokens of the prompt. forwards: that the response took."""

    ids: torch.Tensor
    prompt: int
    forwards: int


@torch.no_grad()
def write(model: PreTrainedModel, gate: Gate, prompt: list[int], stop_ids: list[int], max_new_tokens: int = 64) -> Text:
    """The original's greedy text, up to a stop token or `max_new_tokens`."""
    ids, drafts, cache, forwards = list(prompt), [], DynamicCache(), 0
    while True:
        known, forwards = len(ids), forwards + 1
        new = torch.tensor([*ids, *drafts][cache.get_seq_length() :])
        # Where the drafts will be refused is not known yet, so there is a window for every case: the one that stands
        # behind what turns out to be right makes the next drafts.
        anchors = known + torch.arange(len(drafts) + 1)
        clean, windows = forward(model, gate, new, anchors, cache)
        # What the original says behind the known text, and behind each draft.
        said = log_probabilities(model, clean[-len(drafts) - 1 :]).argmax(-1).tolist()
        right = 0
        while right < len(drafts) and drafts[right] == said[right]:
            right += 1
        for token in said[: right + 1]:  # the drafts that it confirms, and one token of its own: no forward is lost
            ids.append(token)
            if token in stop_ids or len(ids) == len(prompt) + max_new_tokens:
                return Text(torch.tensor(ids), len(prompt), forwards)
        # Roll back: the cache forgets refused drafts and all windows, and is the original's own cache again.
        cache.crop(known + right - cache.get_seq_length())
        drafts = log_probabilities(model, windows[right]).argmax(-1).tolist()


# --- training: windows at all anchors of a text, behind one clean pass ------------------------------------------------


def divergence(model: PreTrainedModel, gate: Gate, text: Text) -> tuple[torch.Tensor, int]:
    """Sum over all places of KL(original || draft) in nats, and their number.

    Clean tokens do not go through the gate. So one pass without gradient is the teacher, whose output at each position
    is its opinion of the next token, and holds, in its cache, everything that the windows see of the text.
    """
    window, cache, length = len(gate.places), DynamicCache(), len(text.ids)
    anchors = torch.arange(text.prompt, length - 1)
    if not len(anchors):  # a response of one token: there is nothing to draft
        return torch.zeros(()), 0
    with torch.no_grad():
        clean, _ = forward(model, gate, text.ids, anchors[:0], cache)
        expected = log_probabilities(model, clean)
    _, drafted = forward(model, gate, text.ids[:0], anchors, cache)
    place = anchors[:, None] + torch.arange(window)
    inside = place < length - 1  # behind the end there is no text to be right about
    target, predicted = expected[place[inside]], log_probabilities(model, drafted[inside])
    return (target.exp() * (target - predicted)).sum(), len(target)


def training_step(
    model: PreTrainedModel,
    gate: Gate,
    prompts: list[list[int]],
    optimiser: torch.optim.Optimizer,
    stop_ids: list[int],
    max_new_tokens: int,
) -> tuple[float, float]:
    """One update on the model's own texts, written by the decoding that it trains; the loss, and tokens a forward."""
    texts = [write(model, gate, prompt, stop_ids, max_new_tokens) for prompt in prompts]
    losses = [divergence(model, gate, text) for text in texts]
    loss = torch.stack([total for total, _ in losses]).sum() / sum(count for _, count in losses)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(gate.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach()), speed(texts)


def speed(texts: list[Text]) -> float:
    """Response tokens a forward."""
    return sum(len(text.ids) - text.prompt for text in texts) / sum(text.forwards for text in texts)


# --- all of it --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Exactly the original's text in fewer forwards, in one file.")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rows", type=int, default=8, help="texts of an update")
    parser.add_argument("--window", type=int, default=3, help="drafts of a forward")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--questions", type=int, default=40, help="that are answered in the end, none of them seen")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ar_model_path())
    model = AutoModelForCausalLM.from_pretrained(ar_model_path(), dtype=torch.float32, attn_implementation="sdpa")
    gate = Gate(model.eval(), options.window, options.rank)
    stop_ids, longest = [model.generation_config.eos_token_id], options.max_new_tokens

    def prompts(split: Split, count: int) -> list[list[int]]:
        chats = [[{"role": "user", "content": one.prompt}] for one in itertools.islice(mixed(1, split), count)]
        return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]

    optimiser = torch.optim.AdamW(gate.parameters(), lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.updates)
    asked = prompts("conversion", options.updates * options.rows)
    for update in range(options.updates):
        part = asked[update * options.rows : (update + 1) * options.rows]
        loss, rate = training_step(model, gate, part, optimiser, stop_ids, longest)
        schedule.step()
        if update % 10 == 9 or update == options.updates - 1:
            print(f"update {update + 1:4d}   loss {loss:.3f}   {rate:.2f} tokens a forward", flush=True)

    questions = prompts("eval", options.questions)
    texts = [write(model, gate, question, stop_ids, longest) for question in questions]
    same = sum(text.ids.tolist() == original(model, text, longest) for text in texts)
    print(f"same text as the original: {same} of {len(texts)}, at {speed(texts):.2f} tokens a forward")


def original(model: PreTrainedModel, text: Text, max_new_tokens: int) -> list[int]:
    """What `generate` of transformers makes of the same prompt, one forward for each token."""
    prompt = text.ids[None, : text.prompt]
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False
    )
    return made[0].tolist()


if __name__ == "__main__":
    main()
