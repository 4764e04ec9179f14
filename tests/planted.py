"""Tiny models in whose float16 form one place overflows, and whose weights float16 holds; in float32 they are sound.

What reads the large values is made as much smaller, so that nothing of them is left in what the model gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
import torch
from torch import nn


def qkv(model: Any) -> None:
    """Values of two channels of an attention."""
    attention = model.blocks[1].attn
    attention.qkv.weight[64:66] *= 1e4
    attention.qkv.bias[64:66] = torch.tensor([6e4, -6e4])
    attention.proj.weight[:, :2] *= 1e-4


def scores(model: Any) -> None:
    """Products of queries and keys, all moved by as much, which no softmax can tell."""
    attention = model.blocks[1].attn
    query, key, _ = attention.qkv.bias.view(3, attention.num_heads, -1)
    query[:, 0] = key[:, 0] = 1000.0


def attention_output(model: Any) -> None:
    model.blocks[0].attn.proj.weight[0] *= 1e5
    model.blocks[0].attn.proj.weight[1] = -model.blocks[0].attn.proj.weight[0]


def mlp(model: Any) -> None:
    _hidden(model.blocks[1].mlp)


def pooled_mlp(model: Any) -> None:
    _hidden(model.attn_pool.mlp)


def _hidden(module: Any) -> None:
    module.fc1.weight *= 5e4
    module.fc2.weight *= 2e-5


def pooled_values(model: Any) -> None:
    model.attn_pool.kv.weight[32:] *= 2e4
    model.attn_pool.proj.weight *= 5e-5


def norm_in_block(model: Any) -> None:
    _norm(model.blocks[1].norm2, model.blocks[1].mlp.fc1)


def first_norm(model: Any) -> None:
    _norm(model.blocks[0].norm1, model.blocks[0].attn.qkv)


def last_norm(model: Any) -> None:
    _norm(model.norm, model.attn_pool.kv)


def _norm(norm: Any, reader: Any) -> None:
    size = 5e4 / float(norm.weight[3])
    norm.weight[3] *= size
    norm.bias[3] *= min(1.0, abs(6e4 / size / float(norm.bias[3]))) * size
    reader.weight[:, 3] /= size


def positions(model: Any) -> None:
    """The sum of a projected patch and its position."""
    model.embeds.pos_embed[..., 0] += 6e4
    model.embeds.pos_embed[..., 1] -= 6e4
    _patches(model, 1.2e5)


def patches(model: Any) -> None:
    model.embeds.proj.weight[:2] *= 1e3
    model.embeds.proj.weight[1] = -model.embeds.proj.weight[0]
    _patches(model, 6e4)


def _patches(model: Any, reached: float) -> None:
    model.embeds.proj.bias[:2] = torch.tensor([6.5e4, -6.5e4])
    for block in model.blocks:
        tiny.make_up(block.norm1, reached)
        tiny.make_up(block.norm2, reached)
    tiny.make_up(model.norm, reached)


def layer_scale(model: Any) -> None:
    for block in model.blocks:
        block.attn.proj.weight[:2] *= 20.0
        block.ls1.gamma[:2] = torch.tensor([6e4, -6e4])


def norm_of_siglip2(model: Any) -> None:
    block = model.encoder.layers[1]
    _norm(block.layer_norm2, block.mlp.fc1)


def probe_of_siglip2(model: Any) -> None:
    """A weight of the pooling head's own, which what it holds reads."""
    model.head.probe *= 1e5


IN_SIGLIP = (
    *(qkv, scores, attention_output, mlp, pooled_mlp, pooled_values),
    *(norm_in_block, first_norm, last_norm, positions, patches),
)
"""All but the residual stream itself, which `tiny.with_large_residual` has."""

IN_SIGLIP2 = (norm_of_siglip2, probe_of_siglip2)

Plant = Callable[[Any], None]


def with_overflow(plant: Plant) -> nn.Module:
    """Return a tiny model with an overflow in one place."""
    model = tiny.siglip() if plant in IN_SIGLIP else tiny.siglip2() if plant in IN_SIGLIP2 else tiny.classifier()
    with torch.no_grad():
        plant(model)
    return model


def in_stream_and_block(depth: int) -> nn.Module:
    """Return a model whose first two blocks make its stream too large, and whose last one overflows inside."""
    model: Any = tiny.with_large_residual(40_000.0, (0, 1), depth)
    with torch.no_grad():
        model.blocks[-1].mlp.fc1.weight.mul_(4e4)
        model.blocks[-1].mlp.fc2.weight.mul_(1e-4)
    return model
