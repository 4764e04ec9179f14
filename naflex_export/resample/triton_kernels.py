"""Triton kernels of `resample/gpu.py`.

Sums are in float32, without TF32. Tensors are dense, row by row. Offsets into a batch are 64 bits
wide: it may hold more than 2**31 values.

Names: R tokens, H x W source grid, C channels, T taps. A program has a block of tokens and a block of channels.
"""

# mypy: ignore-errors
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

Kernel = Any
"""A function of `triton.jit`."""


@triton.jit
def add_products(
    x_ptr, rows_ptr, columns_ptr, grid_ptr, R, H, W, C,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """x[r, c] += sum over h, w of rows[h, r] * columns[r, w] * grid[h, w, c]; rows that no token reads are skipped."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    some = False
    for h in range(H):
        row = tl.load(rows_ptr + r, mask=r < R, other=0.0)
        rows_ptr += R
        if tl.max(tl.abs(row), axis=0) > 0:
            some = True
            for start in range(0, W, BLOCK_W):
                w = start + tl.arange(0, BLOCK_W)
                column = tl.load(
                    columns_ptr + r[:, None] * W + w[None, :], mask=(r < R)[:, None] & (w < W)[None, :], other=0.0
                )
                cells = tl.load(
                    grid_ptr + (h * W + w)[:, None] * C + c[None, :],
                    mask=(w < W)[:, None] & (c < C)[None, :],
                    other=0.0,
                )
                total += tl.dot(column * row[:, None], cells, input_precision="ieee")
    if some:
        _add(x_ptr + r[:, None] * C + c[None, :], total, (r < R)[:, None] & (c < C)[None, :])


@triton.jit
def gradient_of_products(
    partial_ptr, grad_ptr, rows_ptr, columns_ptr, R, H, W, C, PART,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """partial[p, h, w, c] = sum over the p-th PART tokens r of rows[h, r] * columns[r, w] * grad[r, c]."""
    num_blocks = tl.cdiv(W, BLOCK_W)
    h = tl.program_id(0) // num_blocks
    w = tl.program_id(0) % num_blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(2).to(tl.int64)
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    end = tl.minimum((part + 1) * PART, R)
    for start in range(part * PART, end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        row = tl.load(rows_ptr + h.to(tl.int64) * R + r, mask=r < end, other=0.0)
        if tl.max(tl.abs(row), axis=0) > 0:
            column = tl.load(
                columns_ptr + r[None, :] * W + w[:, None], mask=(r < end)[None, :] & (w < W)[:, None], other=0.0
            )
            grad = tl.load(
                grad_ptr + r[:, None] * C + c[None, :], mask=(r < end)[:, None] & (c < C)[None, :], other=0.0
            )
            total += tl.dot(column * row[None, :], grad.to(tl.float32), input_precision="ieee")
    cell = (part * H + h) * W + w
    tl.store(partial_ptr + cell[:, None] * C + c[None, :], total, mask=(w < W)[:, None] & (c < C)[None, :])


@triton.jit
def add_taps(
    x_ptr, cell_ptr, weight_ptr, grid_ptr, R, C,
    TAPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x[r, c] += sum over taps t of weight[r, t] * grid[cell[r, t], c]."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    reads = tl.zeros((BLOCK_R,), tl.int1)
    for t in range(TAPS):
        cell = tl.load(cell_ptr + r * TAPS + t, mask=r < R, other=0).to(tl.int64)
        weight = tl.load(weight_ptr + r * TAPS + t, mask=r < R, other=0.0)
        cells = tl.load(
            grid_ptr + cell[:, None] * C + c[None, :], mask=(weight != 0)[:, None] & (c < C)[None, :], other=0.0
        )
        total += weight[:, None] * cells
        reads |= weight != 0
    _add(x_ptr + r[:, None] * C + c[None, :], total, reads[:, None] & (c < C)[None, :])


@triton.jit
def gradient_of_taps(
    grad_ptr, cell_ptr, weight_ptr, total_ptr, R, C,
    TAPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """total[cell[r, t], c] += weight[r, t] * grad[r, c], for all tokens r and taps t."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    grad = tl.load(grad_ptr + r[:, None] * C + c[None, :], mask=(r < R)[:, None] & (c < C)[None, :], other=0.0)
    grad = grad.to(tl.float32)
    for t in range(TAPS):
        cell = tl.load(cell_ptr + r * TAPS + t, mask=r < R, other=0).to(tl.int64)
        weight = tl.load(weight_ptr + r * TAPS + t, mask=r < R, other=0.0)
        tl.atomic_add(
            total_ptr + cell[:, None] * C + c[None, :],
            weight[:, None] * grad,
            mask=(weight != 0)[:, None] & (c < C)[None, :],
        )


@triton.jit
def _add(x_ptr, total, mask):
    """Add float32 sums, rounded to x's dtype, as torch adds a tensor of that dtype."""
    x = tl.load(x_ptr, mask=mask, other=0.0)
    rounded = total.to(x.dtype)
    if x.dtype == tl.float64:
        tl.store(x_ptr, x + rounded, mask=mask)
    else:
        tl.store(x_ptr, (x.to(tl.float32) + rounded.to(tl.float32)).to(x.dtype), mask=mask)
