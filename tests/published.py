"""transformers' models with the settings of the published ESM-2 and ESMFold, in any size."""

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import EsmConfig

M = TypeVar("M", bound=nn.Module)


def esm_config(layers: int, width: int, heads: int, **more: Any) -> EsmConfig:
    """The settings of an ESM-2, and more for an ESMFold."""
    return EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **more,
    )


@torch.no_grad()
def roughen(model: M) -> M:
    """Moves every weight, so that no bias is zero and no norm is the identity."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
