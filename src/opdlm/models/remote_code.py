"""Block-diffusion decoding for this checkpoint, with torch and transformers alone (written by opdlm).

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    tokens = model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=64)

The weights and the forward pass are those of the model class that config.json names; only `generate` is new. It writes
blocks of S tokens: all positions of a block start as mask tokens, and each round one forward pass proposes a token for
every masked position and fixes those that it is sure of. opdlm's own sampler yields the same tokens.

Shape letters: B rows, S block size, W query window, K columns of the cache, H rounds of history, V vocabulary. Column =
position id. Copies: 0 finished text, 1 the current block, -1 nothing.
"""

import inspect
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Cache, StopStringCriteria

CLEAN, NOISED, NOTHING = 0, 1, -1
NEVER_SAMPLED = -1e30
NO_TOKEN = 2**31 - 1  # part of no stop string

SETTINGS = {"max_new_tokens": 256, "decoding": "dynamic", "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
SETTINGS |= {"repetition_penalty": 1.0, "logit_bias": {}, "stop_strings": (), "seed": 0}
DECODINGS = {  # "kind:NUMBER" gives the first setting
    "dynamic": {"threshold": 0.9},
    "static": {"tokens_per_round": 1},
    "sequential": {"tokens_per_round": 1},
    "prefix": {"threshold": 0.9},
    "factor": {"factor": 1.0},
    "entropy": {"bound": 0.1, "by_confidence": False},
    "klass": {"threshold": 0.9, "drift": 0.01, "history": 2},
}
LIMITS = {"threshold": (0, 1), "tokens_per_round": (1, math.inf), "history": (1, math.inf)}


class BlockDiffusionForCausalLM:
    """What `auto_map` names: `from_pretrained` gives the config's own class, with this file's `generate`."""

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`."""
        config = AutoConfig.from_pretrained(name) if config is None else config
        native: Any = AutoModelForCausalLM._model_mapping[type(config)]
        # Named as the native class and as a member of its module: transformers renames some weights on their way from
        # and to disk (GPT-NeoX's head), but not for classes that it takes for custom code.
        names = {"__module__": native.__module__, "__qualname__": native.__qualname__}
        model_class = type(native.__name__, (BlockDiffusionMixin, native), names)
        return model_class.from_pretrained(name, *args, config=config, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing to register: config.json names this class already. AutoModel calls it."""


class BlockDiffusionMixin:
    """`generate` by block diffusion, for any decoder that takes a 4D attention mask and position ids."""

    @torch.no_grad()
    def generate(
        self: Any, input_ids: torch.Tensor, attention_mask: Any = None, tokenizer: Any = None, **settings: Any
    ) -> torch.Tensor:
        """Continues every row. What is not given comes from "block_diffusion" in generation_config.json.

        Args:
            input_ids: [B, T]; padding on either side, marked by 0 in `attention_mask` [B, T].
            tokenizer: needed with `stop_strings` alone.
            settings: any of SETTINGS:
                max_new_tokens: most tokens written after the prompt.
                decoding: how many tokens are fixed at once: "KIND[:NUMBER]", as in DECODINGS, or a dict with "kind".
                temperature: 0 takes the most probable token; else tokens are drawn.
                top_k, top_p, min_p: filters of the drawn distribution; 0, 1.0 and 0.0 are off.
                repetition_penalty: above 1, tokens that the text has already become less likely.
                logit_bias: {token id: what is added to its logit}.
                stop_strings: the response ends with the token that completes one of these strings.
                seed: row i draws from seed + i, whatever else is in the batch.

        Returns:
            [B, T + n]: the input, then the new tokens up to and including the one that stops, then padding.
        """
        if unsupported := sorted(set(settings) - set(SETTINGS)):
            raise ValueError(f"generate() of a block-diffusion model does not take {', '.join(unsupported)}")
        saved = getattr(self.generation_config, "block_diffusion", None) or {}
        settings = SETTINGS | saved | {name: value for name, value in settings.items() if value is not None}
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [row[mask.bool()] for row, mask in zip(input_ids, valid, strict=True)]
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("every row needs at least one token that the attention mask does not hide")
        responses = _Decoder(self, prompts, settings, tokenizer).run()
        stops = _as_list(self.generation_config.eos_token_id)
        pad = self.generation_config.pad_token_id
        padding = (stops or [0])[0] if pad is None else pad
        new = torch.nn.utils.rnn.pad_sequence(responses, batch_first=True, padding_value=padding)
        return torch.cat([input_ids, new.to(input_ids.dtype)], 1)

    def save_pretrained(self: Any, folder: str, *args: Any, **kwargs: Any) -> None:
        """As usual; this file goes along."""
        super().save_pretrained(folder, *args, **kwargs)  # type: ignore[misc]
        shutil.copyfile(__file__, Path(folder) / "modeling_opdlm.py")


class _Decoder:
    """The texts of all rows, and the loop that writes them."""

    def __init__(self, model: Any, prompts: list[torch.Tensor], settings: dict[str, Any], tokenizer: Any):
        entry = model.config.block_diffusion
        self.model, self.settings = model, settings
        self.size, self.mask_id = entry["block_size"], entry["mask_token_id"]
        self.shift = int(entry["prediction"] == "shifted")  # the output at i - 1 predicts token i
        self.causal = entry["context"] == "causal"
        self.kind, self.rule = _parsed(settings["decoding"])
        device = prompts[0].device
        self.bias = _bias(settings["logit_bias"], model).to(device)
        self.stops = torch.tensor(_as_list(model.generation_config.eos_token_id), device=device)
        self.stop_strings = _criteria(settings["stop_strings"], tokenizer)
        self.length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.cap = self.length + settings["max_new_tokens"]
        width = -(-int(self.cap.max()) // self.size) * self.size + self.size
        self.cache = _Cache(len(prompts), width)
        self.columns = torch.arange(width, device=device)
        self.ids = torch.full((len(prompts), width), self.mask_id, device=device)
        for row, prompt in enumerate(prompts):
            self.ids[row, : len(prompt)] = prompt
        self.masked = self.columns >= self.length[:, None]
        self.start = self.length // self.size * self.size
        self.seed = settings["seed"] + torch.arange(len(prompts), device=device)
        self.round = torch.zeros_like(self.start)
        self.uncommitted = torch.zeros_like(self.start, dtype=torch.bool)
        self.active = torch.ones_like(self.uncommitted)
        self.end = self.cap.clone()  # of the response: the cap, until a stop is found
        self.before: torch.Tensor | None = None  # [B, S, V] log-probabilities of the last round, where klass asks

    def run(self) -> list[torch.Tensor]:
        """The responses, one tensor a row."""
        whole = int(self.start.max())
        if whole > 0:  # the prompts' whole blocks are finished text; the rest of a prompt waits in the current block
            window = self.columns[:whole].expand(len(self.ids), -1)
            copy = torch.where(window < self.start[:, None], CLEAN, NOTHING)
            self.forward(window, copy, window, copy)
        while bool(self.active.any()):
            self.one_round()
        ends = zip(self.ids, self.length.tolist(), self.end.tolist(), strict=True)
        return [row[begin:end] for row, begin, end in ends]

    def one_round(self) -> None:
        """Fixes some tokens of every row's block; a row whose block is complete goes on to the next one."""
        block = self.start[:, None] + torch.arange(self.size, device=self.start.device)
        masked = self.masked.gather(1, block) & self.active[:, None]
        logits = self.block_logits(block)
        token = self.tokens(self.scores(logits), block)
        committed = self.chosen(logits.log_softmax(-1), token, masked)
        self.ids.scatter_(1, block, torch.where(committed, token, self.ids.gather(1, block)))
        self.masked.scatter_(1, block, self.masked.gather(1, block) & ~committed)
        self.round += 1
        complete = (masked == committed).all(-1) & self.active
        behind = self.start + self.size
        inside = (block >= self.length[:, None]) & (block < self.cap[:, None]) & complete[:, None]
        stop = self.stops_text(block) & inside
        stopped = stop.any(-1)
        self.end = torch.where(stopped, self.start + stop.int().argmax(-1) + 1, self.end)
        self.active &= ~(complete & (stopped | (behind >= self.cap)))
        onwards = complete & self.active
        self.start = torch.where(onwards, behind, torch.where(self.active, self.start, 0))
        self.round = torch.where(onwards, 0, self.round)
        self.uncommitted |= onwards

    def block_logits(self, block: torch.Tensor) -> torch.Tensor:
        """[B, S, V]. Where a block was just finished, its keys and values as finished text are computed along."""
        lead = self.size if bool(self.uncommitted.any()) else self.shift
        begin = (self.start - lead).clamp(min=0)
        window = begin[:, None] + torch.arange(lead + self.size, device=begin.device)
        keys = self.columns[: int(self.start.max()) + self.size].expand(len(block), -1)
        hidden = self.forward(window, self.copy(window), keys, self.copy(keys))
        self.uncommitted[:] = False
        predictor = (block - self.shift - begin[:, None]).clamp(min=0)
        hidden = hidden.gather(1, predictor[..., None].expand(-1, -1, hidden.shape[-1]))
        config = self.model.config
        logits = self.model.get_output_embeddings()(hidden).float()
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = cap * (logits / cap).tanh()
        logits[..., self.mask_id] = NEVER_SAMPLED
        return logits

    def copy(self, position: torch.Tensor) -> torch.Tensor:
        """What stands at `position` [B, n]."""
        start = self.start[:, None]
        inside = torch.where(position < start + self.size, NOISED, NOTHING)
        return torch.where(position < start, CLEAN, inside)

    def forward(self, window: torch.Tensor, copy: torch.Tensor, keys: torch.Tensor, key_copy: torch.Tensor) -> Any:
        """Final hidden states [B, W, D] of the tokens at the positions `window`."""
        config = self.model.config
        limit = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None) or ["full_attention" if limit is None else "sliding_attention"]
        q_pos, k_pos, q_copy, k_copy = window[:, :, None], keys[:, None], copy[:, :, None], key_copy[:, None]
        q_block, k_block = q_pos // self.size, k_pos // self.size
        earlier = (k_pos <= q_pos) if self.causal else (k_block <= q_block)
        finished = (k_copy == CLEAN) & torch.where(q_copy == CLEAN, earlier, k_block < q_block) & (q_copy != NOTHING)
        visible = finished | ((q_copy == NOISED) & (k_copy == NOISED) & (q_block == k_block))
        visible = visible | ((q_copy == NOTHING) & (k_copy == NOTHING) & (q_pos == k_pos))
        masks = {}
        for kind in set(kinds):
            seen = visible & (q_pos - k_pos < limit) if kind == "sliding_attention" and limit else visible
            masks[kind] = self.as_attention_expects(seen[:, None])
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        self.cache.prepare(window, copy != NOTHING, keys.shape[1])
        ids = self.ids.gather(1, window)
        known = inspect.signature(self.model.forward).parameters
        cache = {"cache" if "cache" in known else "past_key_values": self.cache}  # renamed in transformers 5.24
        arguments = {"attention_mask": mask, "position_ids": window, "use_cache": True, **cache}
        return self.model.base_model(input_ids=ids, **arguments).last_hidden_state

    def as_attention_expects(self, seen: torch.Tensor) -> torch.Tensor:
        """[B, 1, W, K] bool for SDPA, added to the scores for eager attention."""
        implementation = self.model.config._attn_implementation
        if implementation == "sdpa":
            return seen
        if implementation != "eager":
            raise ValueError(f"block diffusion needs attn_implementation 'sdpa' or 'eager', not {implementation!r}")
        dtype = self.model.dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, S, V] what tokens are chosen by: the logits with repetition penalty and bias."""
        penalty = self.settings["repetition_penalty"]
        if penalty != 1.0:
            present = torch.zeros_like(logits[:, 0], dtype=torch.bool).scatter_(1, self.ids, True)[:, None]
            logits = torch.where(present, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        return logits + self.bias

    def tokens(self, scores: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """[B, S] a token for every position."""
        temperature, *filters = (self.settings[name] for name in ("temperature", "top_k", "top_p", "min_p"))
        if temperature == 0:
            return scores.argmax(-1)
        probability = _filtered(scores / temperature, *filters)
        chance = _uniform(self.seed[:, None], position, self.round[:, None])
        cumulative = probability.to(chance.dtype).cumsum(-1)
        draw = chance * cumulative[..., -1]
        return torch.searchsorted(cumulative, draw[..., None], right=True)[..., 0].clamp(max=scores.shape[-1] - 1)

    def chosen(self, log_probability: torch.Tensor, token: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """[B, S] bool, what to fix in this round: at least one masked token of each row that has one.

        `log_probability` [B, S, V] is the model's own: at temperature 1, without filter, penalty or bias.
        """
        kind, rule = self.kind, self.rule
        if kind == "sequential":
            return masked & (masked.cumsum(-1) <= rule["tokens_per_round"])
        confidence = log_probability.gather(-1, token[..., None])[..., 0].exp().masked_fill(~masked, -1.0)
        rank = confidence.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        best = masked & (rank < rule.get("tokens_per_round", 1))
        if kind == "static":
            return best
        if kind == "dynamic":
            return best | (masked & (confidence > rule["threshold"]))
        if kind == "prefix":
            sure = (confidence > rule["threshold"]) | ~masked
            return masked & (sure.cumprod(-1).bool() | (masked.cumsum(-1) <= 1))
        if kind == "factor":
            return best | (masked & ((rank + 2) * (1 - confidence) < rule["factor"]))
        if kind == "entropy":
            entropy = (log_probability.exp() * -log_probability).sum(-1).masked_fill(~masked, torch.inf)
            order = (-confidence if rule["by_confidence"] else entropy).argsort(dim=-1, stable=True)
            ranked = entropy.gather(-1, order)
            others = ranked.cumsum(-1) - ranked.cummax(-1).values
            return masked & (others <= rule["bound"]).gather(-1, order.argsort(-1))
        ready = masked & (confidence > rule["threshold"]) & (self.drifts(log_probability) < rule["drift"]).all(-1)
        return torch.where(ready.any(-1, keepdim=True), ready, best)

    def drifts(self, now: torch.Tensor) -> torch.Tensor:
        """[B, S, H] nats: KL(round || round before) of the block's last H rounds; inf where there was none before."""
        if self.before is None:
            self.before = torch.zeros_like(now)
            self.drift = now.new_full((*now.shape[:2], self.rule["history"]), torch.inf)
        newest = (now.exp() * (now - self.before)).sum(-1, keepdim=True)
        first = (self.round == 0)[:, None, None]
        self.drift = torch.cat([self.drift[..., 1:], newest], -1).masked_fill(first, torch.inf)
        self.before = now
        return self.drift

    def stops_text(self, block: torch.Tensor) -> torch.Tensor:
        """[B, S] bool: stop tokens, and those with which a stop string is complete, behind the prompt."""
        stop = torch.isin(self.ids.gather(1, block), self.stops)
        if self.stop_strings is None:
            return stop
        reach = torch.arange(1 - self.stop_strings.maximum_token_len, 1, device=block.device)
        window = block[..., None] + reach
        ids = self.ids[:, None].expand(-1, self.size, -1).gather(-1, window.clamp(min=0))
        ids = ids.masked_fill(window < self.length[:, None, None], NO_TOKEN)
        return stop | self.stop_strings(ids.flatten(0, 1), None).view(stop.shape)


class _Cache(Cache):
    """Keys and values by column; one column more takes what stands at no position."""

    def __init__(self, rows: int, length: int):
        super().__init__(layers=[])
        self.rows, self.length, self.buffers = rows, length, {}

    def prepare(self, position: torch.Tensor, valid: torch.Tensor, visible: int) -> None:
        """Where the next forward pass writes, [B, W], and how many columns it reads."""
        self.written, self.visible = torch.where(valid, position, self.length), visible

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Writes [B, H, W, D]; returns [B, H, K, D] of both."""
        rows = torch.arange(self.rows, device=key_states.device)[:, None]
        seen = []
        for name, states in (("keys", key_states), ("values", value_states)):
            if (layer_idx, name) not in self.buffers:  # zeros: 0 times what was in memory could be NaN
                shape = (self.rows, states.shape[1], self.length + 1, states.shape[3])
                self.buffers[layer_idx, name] = states.new_zeros(shape)
            buffer = self.buffers[layer_idx, name]
            buffer[rows, :, self.written] = states.transpose(1, 2)
            seen.append(buffer[:, :, : self.visible])
        return tuple(seen)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions and masks are always given."""
        return 0


def _parsed(decoding: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind, and each of its settings."""
    given: dict[str, Any] = {"kind": decoding} if isinstance(decoding, str) else decoding
    kind, _, number = given["kind"].partition(":")
    if kind not in DECODINGS:
        raise ValueError(f"unknown decoding {kind!r}; choose {', '.join(DECODINGS)}")
    rule = DECODINGS[kind] | {name: value for name, value in given.items() if name in DECODINGS[kind]}
    if number:
        rule[next(iter(rule))] = float(number)
    for name, value in rule.items():
        least, most = LIMITS.get(name, (0, math.inf))
        if not least <= value <= most:
            raise ValueError(f"decoding {decoding!r}: {name} must lie between {least} and {most}")
    return kind, rule


def _bias(values: dict[Any, float], model: Any) -> torch.Tensor:
    """[V] what is added to each logit; JSON makes strings of token ids."""
    bias = torch.zeros(model.get_output_embeddings().weight.shape[0])
    for token, value in values.items():
        if not 0 <= int(token) < len(bias):
            raise ValueError(f"logit_bias names the token {token}; ids go from 0 to {len(bias) - 1}")
        bias[int(token)] = value
    return bias


def _criteria(strings: str | list[str], tokenizer: Any) -> Any:
    """What finds stop strings, wherever token borders fall; None where there are none."""
    strings = [strings] if isinstance(strings, str) else list(strings)
    if not strings:
        return None
    if tokenizer is None or not all(strings):
        raise ValueError("stop_strings need generate(..., tokenizer=tokenizer), and none of them may be empty")
    return StopStringCriteria(tokenizer, strings)


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _filtered(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Softmax of [B, S, V] without what the filters take out: top-k, then the nucleus, then min-p."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], float("-inf"))
    probability = logits.softmax(-1)
    if top_p < 1.0:
        descending, order = probability.sort(-1, descending=True)
        outside = descending.cumsum(-1) - descending >= top_p  # the token that crosses top_p still belongs
        probability = probability.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
    if min_p > 0.0:
        probability = probability.masked_fill(probability < min_p * probability.amax(-1, keepdim=True), 0.0)
    return probability


def _uniform(seed: torch.Tensor, *counters: torch.Tensor) -> torch.Tensor:
    """float64 (on MPS float32) in [0, 1), a pure function of int64 tensors: the finaliser of SplitMix64."""
    state = _mix(seed)
    for counter in counters:
        state = _mix(state ^ counter)
    if state.device.type == "mps":  # it has no float64
        return _shifted(state, 40).float() * 2.0**-24
    return _shifted(state, 11).double() * 2.0**-53


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x - 7046029254386353131
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: torch's >> on int64 keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
