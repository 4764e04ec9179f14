"""A port of the tiny SigLIP 2 encoder in numpy, written from a pack's README: no import of the package or of torch.

`Port(weights, fault)` answers right without a fault, and as such ports go wrong with one of `FAULTS`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FAULTS = (
    "no-antialias",
    "align-corners",
    "bicubic",
    "nearest",
    "no-position",
    "height-width-swapped",
    "mask-dropped",
    "bgr",
    "channels-first",
    "not-normalized",
    "other-gelu",
    "norm-eps",
    "first-block-missing",
    "last-token-dropped",
    "padding-in-front",
    "float16-attention",
)
PATCH, HEADS = 4, 2


def triangle(x: Array) -> Array:
    return np.clip(1 - np.abs(x), 0, None)


def cubic(x: Array) -> Array:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def axis(source: int, target: int, fault: str) -> Array:
    """Return the weights [target, source] of a resize along one axis."""
    cells, steps = np.arange(source), np.arange(target)
    if fault == "nearest":
        return (np.floor(steps * source / target)[:, None] == cells).astype(float)
    if fault in ("no-antialias", "align-corners"):
        if fault == "align-corners":
            at = steps * (source - 1) / max(1, target - 1)
        else:
            at = (steps + 0.5) * source / target - 0.5
        at = np.clip(at, 0, source - 1)
        return triangle(at[:, None] - cells)
    width = max(1.0, source / target)
    found = (cubic if fault == "bicubic" else triangle)(
        (cells + 0.5 - (steps[:, None] + 0.5) * source / target) / width
    )
    return found / found.sum(axis=1, keepdims=True)


class Port:
    """The encoder, in float64."""

    def __init__(self, weights: dict[str, Array], fault: str = "") -> None:
        self.w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.fault, self.stages = fault, dict[str, Array]()

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Array, name: str) -> Array:
        eps = 1e-5 if self.fault == "norm-eps" else 1e-6
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def gelu(self, x: Array) -> Array:
        if self.fault == "other-gelu":
            return x * 0.5 * (1 + erf(x / np.sqrt(2)))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def mlp(self, x: Array, name: str) -> Array:
        return self.linear(self.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def attend(self, q: Array, k: Array, v: Array, valid: Array) -> Array:
        q, k, v = (x.reshape(len(x), HEADS, -1).swapaxes(0, 1) for x in (q, k, v))
        if self.fault == "float16-attention":
            return narrow_attention(q, k, v, valid)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        scores = np.where(valid, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out = (scores / scores.sum(-1, keepdims=True)) @ v
        return out.swapaxes(0, 1).reshape(out.shape[1], -1)

    def position(self, height: int, width: int) -> Array:
        grid = self.w["embeds.pos_embed"][0]
        rows, columns = (axis(grid.shape[0], size, self.fault) for size in (height, width))
        return np.einsum("yi,xj,ijc->yxc", rows, columns, grid)

    def pixels(self, patches: Array) -> Array:
        square = patches.reshape(len(patches), PATCH, PATCH, 3)
        if self.fault == "bgr":
            square = square[..., ::-1]
        if self.fault == "channels-first":
            square = square.transpose(0, 3, 1, 2)
        if self.fault == "not-normalized":
            square = square * 0.5 + 0.5
        return square.reshape(patches.shape)

    def with_padding_in_front(self, patches: Array, coord: Array, count: int) -> Array:
        height, width = coord[:count].max(axis=0) + 1
        x = self.linear(np.roll(patches, len(patches) - count, axis=0), "embeds.proj")
        x[: height * width] += self.position(height, width).reshape(height * width, -1)
        return x

    def image(self, patches: Array, coord: Array, valid: Array) -> Array:
        count, tokens = int(valid.sum()), len(patches)
        height, width = coord[:count].max(axis=0) + 1
        x = np.zeros((tokens, self.w["embeds.proj.bias"].size))
        x[:count] = self.linear(self.pixels(patches[:count]), "embeds.proj")
        x[count:] = self.linear(patches[count:], "embeds.proj")
        if self.fault == "height-width-swapped":
            grid = self.position(width, height).swapaxes(0, 1)
            x[:count] += self.position(width, height)[coord[:count, 1], coord[:count, 0]]
            assert grid.shape[:2] == (height, width)
        elif self.fault != "no-position":
            x[:count] += self.position(height, width)[coord[:count, 0], coord[:count, 1]]
        if self.fault == "mask-dropped":
            valid = np.ones_like(valid)
        if self.fault == "last-token-dropped" and count > 1:
            valid = valid & (np.arange(tokens) < count - 1)
        if self.fault == "padding-in-front":
            x, valid = self.with_padding_in_front(patches, coord, count), np.roll(valid, tokens - count)
        self.stages["embeds"] = x
        for block in range(2):
            if block == 0 and self.fault == "first-block-missing":
                continue
            q, k, v = np.split(
                self.linear(self.norm(x, f"blocks.{block}.norm1"), f"blocks.{block}.attn.qkv"), 3, axis=1
            )
            x = x + self.linear(self.attend(q, k, v, valid), f"blocks.{block}.attn.proj")
            x = x + self.mlp(self.norm(x, f"blocks.{block}.norm2"), f"blocks.{block}.mlp")
            self.stages[f"blocks.{block}"] = x
        x = self.norm(x, "norm")
        k, v = np.split(self.linear(x, "attn_pool.kv"), 2, axis=1)
        pooled = self.attend(self.linear(self.w["attn_pool.latent"][0], "attn_pool.q"), k, v, valid)
        pooled = self.linear(pooled, "attn_pool.proj")
        return (pooled + self.mlp(self.norm(pooled, "attn_pool.norm"), "attn_pool.mlp"))[0]

    def __call__(self, patches: Array, patch_coord: Array, patch_valid: Array) -> tuple[Array, dict[str, Array]]:
        """Return the features [B, F] and the stages of a batch."""
        features, stages = [], list[dict[str, Array]]()
        for image in zip(np.asarray(patches, dtype=np.float64), patch_coord, patch_valid, strict=True):
            features.append(self.image(*image))
            stages.append(dict(self.stages))
        return np.stack(features), {name: np.stack([one[name] for one in stages]) for name in stages[0]}


def narrow_attention(q: Array, k: Array, v: Array, valid: NDArray[np.bool_]) -> Array:
    """Return attention [N, C] whose every result is rounded to float16, as a kernel of that dtype does."""
    q, k, v = (x.astype(np.float16).astype(np.float32) for x in (q, k, v))
    scores = (q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])).astype(np.float16)
    scores = np.where(valid, scores.astype(np.float32), -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    share = (scores / scores.sum(-1, keepdims=True)).astype(np.float16).astype(np.float32)
    out = (share @ v).astype(np.float16).astype(np.float64)
    return out.swapaxes(0, 1).reshape(out.shape[1], -1)


def erf(x: Array) -> Array:
    """Return the error function by its series, exact to 1e-12 where it matters here, and 1 beyond."""
    inside = np.clip(np.abs(x), 0, 5.5)
    term = total = inside.copy()
    for n in range(1, 160):
        term = -term * inside**2 / n
        total = total + term / (2 * n + 1)
    return np.sign(x) * np.where(np.abs(x) < 5, 2 / np.sqrt(np.pi) * total, 1.0)
