"""Which architectures are refused, before any weight is read, and in words that help."""

import pytest
import transformers

from opdlm.errors import UnsupportedModelError
from opdlm.models.verdict import check_convertible, sliding_windows
from support import ARCHITECTURES, WINDOW, tiny_config

REFUSED = [
    ("T5Config", {}, "encoder-decoder"),
    ("BartConfig", {}, "encoder-decoder"),
    ("MambaConfig", {}, "state-space or linear-attention"),
    ("Mamba2Config", {}, "state-space or linear-attention"),
    ("RwkvConfig", {}, "state-space or linear-attention"),
    ("JambaConfig", {}, "state-space or linear-attention"),
    ("Qwen3NextConfig", {}, "state-space or linear-attention"),
    ("Lfm2Config", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "layers of kind conv"),
    ("BloomConfig", {}, "no position_ids"),
    ("MptConfig", {}, "no position_ids"),
    ("FalconConfig", {"alibi": True}, "ALiBi"),
    ("Gemma3Config", {}, "text model alone"),
    ("Llama4TextConfig", {}, "chunked_attention"),
    ("ViTConfig", {}, "no causal language model"),
    ("BertConfig", {"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
    ("BertConfig", {}, "encoder such as BERT"),
    ("RobertaConfig", {"architectures": ["RobertaForCausalLM"]}, "encoder such as BERT"),
    ("XLMConfig", {}, "encoder such as BERT"),
]


@pytest.mark.parametrize(("config", "settings", "reason"), REFUSED, ids=[f"{row[0]}-{row[2]}" for row in REFUSED])
def test_refused(config: str, settings: dict[str, object], reason: str) -> None:
    """Else the user would learn it from a shape error, or not at all: from a model that cannot be trained."""
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        check_convertible(getattr(transformers, config)(**settings))
    assert "\n" not in str(caught.value)
    assert "choose" in str(caught.value) or "use" in str(caught.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_accepted(name: str) -> None:
    """Else a supported architecture would be turned away by a rule meant for another."""
    config = tiny_config(name)
    config.architectures = ["SomethingForCausalLM"]
    check_convertible(config)


def test_windows() -> None:
    """Else layers would get the mask of another kind of layer."""
    assert sliding_windows(tiny_config("llama")) == {"full_attention": None}
    assert sliding_windows(tiny_config("mistral")) == {"sliding_attention": WINDOW}
    assert sliding_windows(tiny_config("gemma3")) == {"full_attention": None, "sliding_attention": WINDOW}
    assert sliding_windows(tiny_config("qwen2", sliding_window=5)) == {"full_attention": None}  # it is switched off
