"""Block-diffusion decoding for this checkpoint, with torch and transformers alone (written by opdlm).

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    tokens = model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=64)

The weights and the forward pass are those of the model class that config.json names; only `generate` is new. It writes
blocks of S tokens: all positions of a block start as mask tokens, and each round one forward pass proposes a token for
every masked position and fixes those that it is sure of. opdlm's own sampler yields the same tokens.

Shape letters: B rows, S block size, W query window, K columns of the cache, V vocabulary. Column = position id. Copies:
0 finished text, 1 the current block, -1 nothing.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Cache

CLEAN, NOISED, NOTHING = 0, 1, -1
NEVER_SAMPLED = -1e30


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
        self: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        decoding: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        **unsupported: Any,
    ) -> torch.Tensor:
        """Continues every row. What is not given comes from "block_diffusion" in generation_config.json.

        Args:
            input_ids: [B, T]; padding on either side, marked by 0 in `attention_mask` [B, T].
            max_new_tokens: most tokens written after the prompt.
            decoding: "dynamic[:THRESHOLD]", "static[:N]" or "sequential[:N]" (N tokens a round).
            temperature: 0 takes the most probable token; else tokens are drawn.
            top_k, top_p: filters of the drawn distribution; 0 and 1.0 are off.
            seed: row i draws from seed + i, whatever else is in the batch.

        Returns:
            [B, T + n]: the input, then the new tokens up to and including the first stop token, then padding.
        """
        if unsupported:
            raise ValueError(f"generate() of a block-diffusion model does not take {', '.join(sorted(unsupported))}")
        given = {"max_new_tokens": max_new_tokens, "decoding": decoding, "temperature": temperature}
        given |= {"top_k": top_k, "top_p": top_p, "seed": seed}
        settings = dict(getattr(self.generation_config, "block_diffusion", None) or {})
        settings |= {name: value for name, value in given.items() if value is not None}
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [row[mask.bool()] for row, mask in zip(input_ids, valid, strict=True)]
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("every row needs at least one token that the attention mask does not hide")
        responses = _Decoder(self, prompts, settings).run()
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

    def __init__(self, model: Any, prompts: list[torch.Tensor], settings: dict[str, Any]):
        entry = model.config.block_diffusion
        self.model, self.settings = model, settings
        self.size, self.mask_id = entry["block_size"], entry["mask_token_id"]
        self.shift = int(entry["prediction"] == "shifted")  # the output at i - 1 predicts token i
        self.causal = entry["context"] == "causal"
        self.kind, self.amount = _parsed(settings.get("decoding", "dynamic"))
        device = prompts[0].device
        self.stops = torch.tensor(_as_list(model.generation_config.eos_token_id), device=device)
        self.length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.cap = self.length + settings.get("max_new_tokens", 256)
        width = -(-int(self.cap.max()) // self.size) * self.size + self.size
        self.cache = _Cache(len(prompts), width)
        self.columns = torch.arange(width, device=device)
        self.ids = torch.full((len(prompts), width), self.mask_id, device=device)
        for row, prompt in enumerate(prompts):
            self.ids[row, : len(prompt)] = prompt
        self.masked = self.columns >= self.length[:, None]
        self.start = self.length // self.size * self.size
        self.seed = settings.get("seed", 0) + torch.arange(len(prompts), device=device)
        self.round = torch.zeros_like(self.start)
        self.uncommitted = torch.zeros_like(self.start, dtype=torch.bool)
        self.active = torch.ones_like(self.uncommitted)
        self.end = self.cap.clone()  # of the response: the cap, until a stop token is found

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
        token, confidence = self.candidates(self.block_logits(block), block)
        committed = masked & self.chosen(confidence, masked)
        self.ids.scatter_(1, block, torch.where(committed, token, self.ids.gather(1, block)))
        self.masked.scatter_(1, block, self.masked.gather(1, block) & ~committed)
        self.round += 1
        complete = (masked == committed).all(-1) & self.active
        behind = self.start + self.size
        first = torch.where(complete, torch.maximum(self.start, self.length), self.cap)[:, None]
        inside = (self.columns >= first) & (self.columns < torch.minimum(behind, self.cap)[:, None])
        stop = torch.isin(self.ids, self.stops) & inside
        stopped = stop.any(-1)
        self.end = torch.where(stopped, stop.int().argmax(-1) + 1, self.end)
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
        arguments = {"attention_mask": mask, "position_ids": window, "past_key_values": self.cache, "use_cache": True}
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

    def candidates(self, logits: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, S] each: a token for every position, the model's own probability for it (temperature 1, no filter)."""
        log_probability = logits.log_softmax(-1)
        temperature = self.settings.get("temperature", 0.0)
        if temperature == 0:
            confidence, token = log_probability.max(-1)
            return token, confidence.exp()
        probability = _filtered(logits / temperature, self.settings.get("top_k", 0), self.settings.get("top_p", 1.0))
        chance = _uniform(self.seed[:, None], position, self.round[:, None])
        cumulative = probability.to(chance.dtype).cumsum(-1)
        draw = chance * cumulative[..., -1]
        token = torch.searchsorted(cumulative, draw[..., None], right=True).clamp(max=logits.shape[-1] - 1)
        return token[..., 0], log_probability.gather(-1, token)[..., 0].exp()

    def chosen(self, confidence: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """[B, S] bool, what to fix in this round: at least one masked token of each row that has one."""
        if self.kind == "sequential":
            return masked & (masked.cumsum(-1) <= self.amount)
        order = confidence.masked_fill(~masked, -1.0).argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(dim=-1)
        if self.kind == "static":
            return masked & (rank < self.amount)
        return masked & ((confidence > self.amount) | (rank < 1))


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


def _parsed(decoding: str | dict[str, Any]) -> tuple[str, float]:
    """("dynamic", threshold) or ("static" | "sequential", tokens a round)."""
    if isinstance(decoding, dict):  # as in generation_config.json
        kind, amount = decoding["kind"], decoding.get("threshold", decoding.get("tokens_per_round"))
    else:
        kind, _, amount = decoding.partition(":")
    if kind not in ("dynamic", "static", "sequential"):
        raise ValueError(f"unknown decoding {kind!r}; choose dynamic, static or sequential")
    number = float((0.9 if kind == "dynamic" else 1) if amount in (None, "") else amount)
    if not (0 <= number <= 1 if kind == "dynamic" else number >= 1):
        raise ValueError(f"decoding {decoding!r}: a threshold lies between 0 and 1, tokens a round are at least 1")
    return kind, number


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _filtered(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Softmax of [B, S, V] with all but the top-k, then all but the nucleus, set to zero."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], float("-inf"))
    probability = logits.softmax(-1)
    if top_p < 1.0:
        descending, order = probability.sort(-1, descending=True)
        outside = descending.cumsum(-1) - descending >= top_p  # the token that crosses top_p still belongs
        probability = probability.masked_fill(outside.gather(-1, order.argsort(-1)), 0.0)
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
