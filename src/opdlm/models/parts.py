"""The two ends of a decoder, with their types."""

from torch import nn
from transformers import PreTrainedModel


def input_embedding(model: PreTrainedModel) -> nn.Embedding:
    """The token embedding; its rows may be more than the tokenizer has tokens."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding


def lm_head(model: PreTrainedModel) -> nn.Module:
    """The module that turns final hidden states into raw logits."""
    head = model.get_output_embeddings()
    assert head is not None
    return head
