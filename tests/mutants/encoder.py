"""Wrong candidates: what the encoder computes."""

from __future__ import annotations

import torch
from timm.models.naflexvit import create_attention_mask
from torch import Tensor, nn

from mutants.mutant import REGISTERS, Candidate, mutant, true


@mutant()
def weak_mask(dtype: torch.dtype) -> Candidate:
    """The mask takes 4 from the scores of padding, instead of everything."""
    model = true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> Tensor:
        mask = create_attention_mask(v, REGISTERS, dtype=p.dtype).clamp(min=-4)
        encoded = model.forward_features(p, patch_coord=c, patch_valid=v, attn_mask=mask)["patches"]
        return model.forward_head(encoded, patch_valid=v)

    return run


@mutant()
def mean_over_padding(dtype: torch.dtype) -> Candidate:
    """The mean is over padding too."""
    model = true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> Tensor:
        encoded = model.forward_features(p, patch_coord=c, patch_valid=v)["patches"]
        return model.forward_head(encoded, patch_valid=torch.ones_like(v))

    return run


@mutant()
def mean_over_registers(dtype: torch.dtype) -> Candidate:
    """The mean is over register tokens too."""
    model = true(dtype)
    model.pool_include_prefix = True
    return model


@mutant()
def unscaled_attention(dtype: torch.dtype) -> Candidate:
    """Attention scores are not divided by the square root of the head's width."""
    model = true(dtype)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:32].mul_(4)
            block.attn.qkv.bias[:32].mul_(4)
    return model


@mutant()
def missing_block(dtype: torch.dtype) -> Candidate:
    """The last block is left out."""
    model = true(dtype)
    model.blocks[1].forward = lambda x, *masks, **named: x
    return model


@mutant()
def stale_weights(dtype: torch.dtype) -> Candidate:
    """One layer has the weights of an earlier checkpoint."""
    model = true(dtype)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = model.blocks[1].mlp.fc2.weight
        weight.add_(0.3 * weight.std() * torch.randn(weight.shape, generator=draw).to(dtype))
    return model


@mutant(("float32", "float16"), why="bfloat16 has 8 bits itself: the error is close to twice that of rounding")
def weights_of_8_bits(dtype: torch.dtype) -> Candidate:
    """Weights are rounded to 8 bits, a scale for each row."""
    model = true(dtype)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                step = layer.weight.abs().amax(dim=1, keepdim=True) / 127
                layer.weight.copy_((layer.weight / step).round() * step)
    return model
