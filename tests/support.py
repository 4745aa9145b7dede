"""Tiny random models and a tiny tokenizer, built in code: no test reads a model from disk or from the hub."""

from functools import cache, partial

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "olmo2", "smollm3", "phi3", "gpt_neox")
VOCABULARY = 97
MASK = VOCABULARY - 1
WINDOW = 7

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # large enough that attention matters in a random model
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
            "final_logit_softcapping": 5.0,
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
    "phi3": ("Phi3Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
}


def tiny_config(name: str, **changes: object) -> transformers.PreTrainedConfig:
    """The config of `tiny_model`."""
    class_name, own = _OWN[name]
    settings = {**_COMMON, **own, **changes}
    if name == "gpt_neox":
        del settings["num_key_value_heads"]
    return getattr(transformers, class_name)(**settings)


def tiny_model(name: str = "llama", seed: int = 0, attention: str = "sdpa", **changes: object) -> PreTrainedModel:
    """A random decoder of one of ARCHITECTURES: float32, eval mode, 3 layers, hidden size 32, 97 tokens, MASK the last.

    `changes` go into its config; `attention` is the attention implementation.
    """
    config = tiny_config(name, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
    return model.eval()


assert_close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-5)
"""Equal up to the rounding of float32 in a tiny model."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@cache
def _characters() -> dict[str, int]:
    """0 padding, 1 beginning, 2 end, then characters up to 95; row 96 of the tiny models is unused."""
    text = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?+-*/=()[]{}<>|'\"_#%&@~^\n"
    specials = ["<pad>", "<s>", "</s>"]
    return {token: index for index, token in enumerate([*specials, *text][: VOCABULARY - 1])}


def tiny_tokenizer(chat: bool = False, mask: bool = False) -> PreTrainedTokenizerFast:
    """One token a character; `mask`: with a mask token (id MASK), `chat`: with a chat template."""
    tokenizer = Tokenizer(models.WordLevel(_characters(), unk_token="#"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="#"
    )
    if mask:
        made.add_special_tokens({"mask_token": "<|mask|>"})
    if chat:
        made.chat_template = CHAT_TEMPLATE
    return made
