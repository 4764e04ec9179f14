"""Triton kernels of `resample/gpu.py`.

Weights are computed where they are used, from coordinates and lengths: they are the weights of `resample.axis_weights`.
Sums are in float32. Tensors are dense, row by row. Offsets into a batch are 64 bits wide: it may hold more than 2**31
values.

Names: B images, N tokens, H x W source grid, C channels, y and x rows and columns of a target grid. A program has a
block of channels.

Compile-time parameters that several kernels share: CUBIC, ANTIALIAS and ALIGNED say which resize is meant, FILL whether
padding reads what its coordinate says, PRECISION how float32 products are made, in Triton's words.
"""

# mypy: ignore-errors
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

Kernel = Any
"""A function of `triton.jit`."""


@triton.jit
def examine(
    coord_ptr, lengths_ptr, plan_ptr, weights_ptr, N, H, W, S,
    CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr, FILL: tl.constexpr, WEIGHTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """plan[b] = height and width of an image's grid, and 1 where its tokens go row by row through it, else 0.

    With FILL padding counts too: it has to hold the coordinate (0, 0). With WEIGHTS such an image's weights are written
    to weights[b, N + 1, S]: those of its rows, then those of its columns.
    """
    b = tl.program_id(0).to(tl.int64)
    coord_ptr += b * N * 2
    last_y = tl.zeros((BLOCK_N,), tl.int32)
    last_x = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        last_y = tl.maximum(last_y, tl.load(coord_ptr + n * 2, mask=n < N, other=0).to(tl.int32))
        last_x = tl.maximum(last_x, tl.load(coord_ptr + n * 2 + 1, mask=n < N, other=0).to(tl.int32))
    height = tl.max(last_y, axis=0) + 1
    width = tl.max(last_x, axis=0) + 1
    strays = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        y = tl.load(coord_ptr + n * 2, mask=n < N, other=0).to(tl.int32)
        x = tl.load(coord_ptr + n * 2 + 1, mask=n < N, other=0).to(tl.int32)
        is_inside = n < height * width
        strays += (is_inside & (n < N) & (y * width + x != n)).to(tl.int32)
        if FILL:
            strays += (~is_inside & (n < N) & (y + x != 0)).to(tl.int32)
    in_order = (tl.sum(strays, axis=0) == 0).to(tl.int32)
    tl.store(plan_ptr + b * 3, height)
    tl.store(plan_ptr + b * 3 + 1, width)
    tl.store(plan_ptr + b * 3 + 2, in_order)
    if WEIGHTS and in_order != 0:
        weights_ptr += b * (N + 1) * S
        i, j = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_W)
        row_length, column_length = tl.load(lengths_ptr + b * 2), tl.load(lengths_ptr + b * 2 + 1)
        for start in range(0, height, BLOCK_P):
            y = start + tl.arange(0, BLOCK_P)
            rows = _weights(y, row_length, i, H, CUBIC, ANTIALIAS, ALIGNED)
            kept = (y < height)[:, None] & (i < H)[None, :]
            tl.store(weights_ptr + y[:, None] * S + i[None, :], rows, mask=kept)
        for start in range(0, width, BLOCK_P):
            x = start + tl.arange(0, BLOCK_P)
            columns = _weights(x, column_length, j, W, CUBIC, ANTIALIAS, ALIGNED)
            kept = (x < width)[:, None] & (j < W)[None, :]
            tl.store(weights_ptr + (height + x)[:, None] * S + j[None, :], columns, mask=kept)


@triton.jit
def add_rows(
    x_ptr, plan_ptr, weights_ptr, lengths_ptr, grid_ptr, N, H, W, S, C,
    CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr, FILL: tl.constexpr, PRECISION: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add the resized grid to an image whose tokens go row by row.

    For each target row the few rows of the source that it reads are summed to a line; its tokens read that line by a
    small product.
    """
    b = tl.program_id(0).to(tl.int64) // SPLIT
    first = tl.program_id(0) % SPLIT
    height, width, in_order = _plan(plan_ptr, b)
    if in_order == 0:
        return
    x_ptr += b * N * C
    weights_ptr += b * (N + 1) * S
    columns_ptr = weights_ptr + height * S
    row_length = tl.load(lengths_ptr + b * 2)
    j, c = tl.arange(0, BLOCK_W), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    cell = j[:, None] * C + c[None, :]
    is_cell = (j < W)[:, None] & (c < C)[None, :]
    x = tl.arange(0, BLOCK_X)
    for turn in range(tl.cdiv(height - first, SPLIT)):
        y = first + turn * SPLIT
        row_ptr = x_ptr + y.to(tl.int64) * width * C
        length = tl.minimum(width, N - y * width)
        token = x[:, None] * C + c[None, :]
        old = tl.load(row_ptr + token, mask=(x < length)[:, None] & (c < C)[None, :], other=0.0)  # used after the sums
        begin, end = _span(y, row_length, H, CUBIC, ANTIALIAS, ALIGNED)
        line = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
        for i in range(begin, end):
            line += tl.load(weights_ptr + y * S + i) * tl.load(grid_ptr + i * W * C + cell, mask=is_cell, other=0.0)
        for start in range(0, length, BLOCK_X):
            kept = (start + x < length)[:, None]
            columns = tl.load(
                columns_ptr + start * S + x[:, None] * S + j[None, :], mask=kept & (j < W)[None, :], other=0.0
            )
            total = tl.dot(columns, line, input_precision=PRECISION)
            tl.store(row_ptr + start * C + token, _sum(old, total), mask=kept & (c < C)[None, :])
            following = (start + BLOCK_X + x < length)[:, None] & (c < C)[None, :]
            old = tl.load(row_ptr + (start + BLOCK_X) * C + token, mask=following, other=0.0)
    if FILL:
        corner = tl.zeros((BLOCK_C,), tl.float32)
        column = tl.load(columns_ptr + j, mask=j < W, other=0.0)
        for i in range(H):
            cells = tl.load(grid_ptr + i * W * C + cell, mask=is_cell, other=0.0)
            corner += tl.load(weights_ptr + i) * tl.sum(column[:, None] * cells, axis=0)
        for start in range(height * width + first * BLOCK_X, N, BLOCK_X * SPLIT):
            n = start + tl.arange(0, BLOCK_X)
            kept = (n < N)[:, None] & (c < C)[None, :]
            at = x_ptr + n.to(tl.int64)[:, None] * C + c[None, :]
            old = tl.load(at, mask=kept, other=0.0)
            tl.store(at, _sum(old, tl.broadcast_to(corner[None, :], (BLOCK_X, BLOCK_C))), mask=kept)


@triton.jit
def gradient_of_rows(
    partial_ptr, grad_ptr, plan_ptr, weights_ptr, lengths_ptr, B, N, H, W, S, C, PARTS,
    CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr, FILL: tl.constexpr, PRECISION: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial[p] = what a part of the images gives to the source's gradient, where tokens go row by row.

    A target row's gradient is summed to a line by a small product, and the line to the rows of the source that the
    target row reads. A program has BLOCK_H rows of the source, and passes over what does not read them.
    """
    part = tl.program_id(0)
    j, c = tl.arange(0, BLOCK_W), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    top = tl.program_id(2) * BLOCK_H
    i = top + tl.arange(0, BLOCK_H)
    x = tl.arange(0, BLOCK_X)
    token = x[:, None] * C + c[None, :]
    total = tl.zeros((BLOCK_H, BLOCK_W, BLOCK_C), tl.float32)
    for step in range(tl.cdiv(B * SPLIT - part, PARTS)):
        unit = part + step * PARTS
        b = (unit // SPLIT).to(tl.int64)
        first = unit % SPLIT
        height, width, in_order = _plan(plan_ptr, b)
        if in_order != 0:
            image_ptr = grad_ptr + b * N * C
            rows_ptr = weights_ptr + b * (N + 1) * S
            columns_ptr = rows_ptr + height * S
            row_length = tl.load(lengths_ptr + b * 2)
            for start in range(0, width, BLOCK_X):
                columns = tl.load(
                    columns_ptr + (start + x)[None, :] * S + j[:, None],
                    mask=(start + x < width)[None, :] & (j < W)[:, None],
                    other=0.0,
                )
                for turn in range(tl.cdiv(height - first, SPLIT)):
                    y = first + turn * SPLIT
                    begin, end = _span(y, row_length, H, CUBIC, ANTIALIAS, ALIGNED)
                    if (begin < top + BLOCK_H) & (end > top):
                        length = tl.minimum(width, N - y * width) - start
                        grad = tl.load(
                            image_ptr + (y.to(tl.int64) * width + start) * C + token,
                            mask=(x < length)[:, None] & (c < C)[None, :],
                            other=0.0,
                        )
                        row = tl.load(rows_ptr + y * S + i, mask=i < H, other=0.0)
                        line = tl.dot(columns, grad.to(tl.float32), input_precision=PRECISION)
                        total += row[:, None, None] * line[None, :, :]
            if FILL:
                flow = tl.zeros((BLOCK_C,), tl.float32)
                for start in range(height * width + first * BLOCK_X, N, BLOCK_X * SPLIT):
                    n = start + tl.arange(0, BLOCK_X)
                    kept = (n < N)[:, None] & (c < C)[None, :]
                    grad = tl.load(image_ptr + n.to(tl.int64)[:, None] * C + c[None, :], mask=kept, other=0.0)
                    flow += tl.sum(grad.to(tl.float32), axis=0)
                row = tl.load(rows_ptr + i, mask=i < H, other=0.0)
                column = tl.load(columns_ptr + j, mask=j < W, other=0.0)
                total += row[:, None, None] * (column[:, None] * flow[None, :])[None, :, :]
    cell = (part.to(tl.int64) * H + i)[:, None, None] * W + j[None, :, None]
    tl.store(
        partial_ptr + cell * C + c[None, None, :],
        total,
        mask=(i < H)[:, None, None] & (j < W)[None, :, None] & (c < C)[None, None, :],
    )


@triton.jit
def add_tokens(
    x_ptr, coord_ptr, plan_ptr, lengths_ptr, grid_ptr, N, H, W, C, ALL,
    CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr, FILL: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add the resized grid to tokens in any order: of images that `add_rows` left alone, or of ALL."""
    b = tl.program_id(0).to(tl.int64)
    height, width, in_order = _plan(plan_ptr, b)
    if (in_order != 0) & (ALL == 0):
        return
    x_ptr += b * N * C
    row_length, column_length = tl.load(lengths_ptr + b * 2), tl.load(lengths_ptr + b * 2 + 1)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    for start in range(0, N, BLOCK_X):
        n = start + tl.arange(0, BLOCK_X)
        y, x, reads = _tokens(coord_ptr + b * N * 2, n, N, height * width, FILL)
        if tl.max(reads.to(tl.int32), axis=0) > 0:
            by_rows = _share(y, row_length, H, CUBIC, ANTIALIAS, ALIGNED)
            by_columns = _share(x, column_length, W, CUBIC, ANTIALIAS, ALIGNED)
            total = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
            for i in range(H):
                row = tl.where(reads, _weight(y, row_length, i, H, CUBIC, ANTIALIAS, ALIGNED) * by_rows, 0.0)
                if tl.max(tl.abs(row), axis=0) > 0:
                    for first in range(0, W, BLOCK_W):
                        j = first + tl.arange(0, BLOCK_W)
                        column = _weight(
                            x[:, None], column_length, j[None, :], W, CUBIC, ANTIALIAS, ALIGNED
                        ) * by_columns[:, None]  # fmt: skip
                        cells = tl.load(
                            grid_ptr + (i * W + j)[:, None] * C + c[None, :],
                            mask=(j < W)[:, None] & (c < C)[None, :],
                            other=0.0,
                        )
                        total += tl.dot(column * row[:, None], cells, input_precision="ieee")
            kept = reads[:, None] & (c < C)[None, :]
            at = x_ptr + n.to(tl.int64)[:, None] * C + c[None, :]
            tl.store(at, _sum(tl.load(at, mask=kept, other=0.0), total), mask=kept)


@triton.jit
def gradient_of_tokens(
    partial_ptr, grad_ptr, coord_ptr, plan_ptr, lengths_ptr, B, N, H, W, C, PARTS, ALL,
    CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr, FILL: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial[p] += what a part of the images gives to the source's gradient, with tokens in any order."""
    num_blocks = tl.cdiv(W, BLOCK_W)
    i = tl.program_id(0) // num_blocks
    j = tl.program_id(0) % num_blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(2)
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    some = False
    for step in range(tl.cdiv(B - part, PARTS)):
        b = (part + step * PARTS).to(tl.int64)
        height, width, in_order = _plan(plan_ptr, b)
        if (in_order == 0) | (ALL != 0):
            some = True
            row_length, column_length = tl.load(lengths_ptr + b * 2), tl.load(lengths_ptr + b * 2 + 1)
            for start in range(0, N, BLOCK_X):
                n = start + tl.arange(0, BLOCK_X)
                y, x, reads = _tokens(coord_ptr + b * N * 2, n, N, height * width, FILL)
                row = tl.where(reads, _weight(y, row_length, i, H, CUBIC, ANTIALIAS, ALIGNED), 0.0)
                if tl.max(tl.abs(row), axis=0) > 0:
                    row *= _share(y, row_length, H, CUBIC, ANTIALIAS, ALIGNED)
                    row *= _share(x, column_length, W, CUBIC, ANTIALIAS, ALIGNED)
                    column = _weight(x[None, :], column_length, j[:, None], W, CUBIC, ANTIALIAS, ALIGNED)
                    grad = tl.load(
                        grad_ptr + (b * N + n)[:, None] * C + c[None, :],
                        mask=reads[:, None] & (c < C)[None, :],
                        other=0.0,
                    )
                    total += tl.dot(column * row[None, :], grad.to(tl.float32), input_precision="ieee")
    if some:
        cell = (part.to(tl.int64) * H + i) * W + j
        at = partial_ptr + cell[:, None] * C + c[None, :]
        kept = (j < W)[:, None] & (c < C)[None, :]
        tl.store(at, tl.load(at, mask=kept, other=0.0) + total, mask=kept)


@triton.jit
def add_cells(
    x_ptr, coord_ptr, plan_ptr, lengths_ptr, grid_ptr, N, H, W, C,
    CUBIC: tl.constexpr, ALIGNED: tl.constexpr, FILL: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add to each token the 4 or 16 cells that it reads without antialias."""
    b = tl.program_id(0).to(tl.int64)
    height, width, _ = _plan(plan_ptr, b)
    n = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    y, x, reads = _tokens(coord_ptr + b * N * 2, n, N, height * width, FILL)
    if tl.max(reads.to(tl.int32), axis=0) == 0:
        return
    kept = reads[:, None] & (c < C)[None, :]
    at = x_ptr + (b * N + n)[:, None] * C + c[None, :]
    old = tl.load(at, mask=kept, other=0.0)
    row_below, row_offset, row_scale = _below(y, tl.load(lengths_ptr + b * 2), H, ALIGNED)
    column_below, column_offset, column_scale = _below(x, tl.load(lengths_ptr + b * 2 + 1), W, ALIGNED)
    radius: tl.constexpr = 2 if CUBIC else 1
    total = tl.zeros((BLOCK_X, BLOCK_C), tl.float32)
    for k in tl.static_range(1 - radius, 1 + radius):
        row = _at_sample(row_offset, row_scale, k, CUBIC)
        i = tl.minimum(tl.maximum(row_below + k, 0), H - 1)
        for m in tl.static_range(1 - radius, 1 + radius):
            weight = row * _at_sample(column_offset, column_scale, m, CUBIC)
            j = tl.minimum(tl.maximum(column_below + m, 0), W - 1)
            cells = tl.load(grid_ptr + (i * W + j).to(tl.int64)[:, None] * C + c[None, :], mask=kept, other=0.0)
            total += weight[:, None] * cells
    tl.store(at, _sum(old, total), mask=kept)


@triton.jit
def gradient_of_cells(
    total_ptr, grad_ptr, coord_ptr, plan_ptr, lengths_ptr, N, H, W, C,
    CUBIC: tl.constexpr, ALIGNED: tl.constexpr, FILL: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add to the source's gradient what each token gives to the cells that it reads; in no fixed order."""
    b = tl.program_id(0).to(tl.int64)
    height, width, _ = _plan(plan_ptr, b)
    n = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    y, x, reads = _tokens(coord_ptr + b * N * 2, n, N, height * width, FILL)
    if tl.max(reads.to(tl.int32), axis=0) == 0:
        return
    kept = reads[:, None] & (c < C)[None, :]
    grad = tl.load(grad_ptr + (b * N + n)[:, None] * C + c[None, :], mask=kept, other=0.0).to(tl.float32)
    row_below, row_offset, row_scale = _below(y, tl.load(lengths_ptr + b * 2), H, ALIGNED)
    column_below, column_offset, column_scale = _below(x, tl.load(lengths_ptr + b * 2 + 1), W, ALIGNED)
    radius: tl.constexpr = 2 if CUBIC else 1
    for k in tl.static_range(1 - radius, 1 + radius):
        row = _at_sample(row_offset, row_scale, k, CUBIC)
        i = tl.minimum(tl.maximum(row_below + k, 0), H - 1)
        for m in tl.static_range(1 - radius, 1 + radius):
            weight = row * _at_sample(column_offset, column_scale, m, CUBIC)
            j = tl.minimum(tl.maximum(column_below + m, 0), W - 1)
            at = total_ptr + (i * W + j).to(tl.int64)[:, None] * C + c[None, :]
            tl.atomic_add(at, weight[:, None] * grad, mask=kept, sem="relaxed")


@triton.jit
def _plan(plan_ptr, b):
    """Return an image's height, its width and whether its tokens go row by row."""
    return tl.load(plan_ptr + b * 3), tl.load(plan_ptr + b * 3 + 1), tl.load(plan_ptr + b * 3 + 2)


@triton.jit
def _tokens(coord_ptr, n, N, size, FILL: tl.constexpr):
    """Return rows and columns of an image's tokens n, and which of them read the grid."""
    reads = n < N
    if not FILL:
        reads &= n < size
    y = tl.load(coord_ptr + n * 2, mask=reads, other=0).to(tl.int32)
    x = tl.load(coord_ptr + n * 2 + 1, mask=reads, other=0).to(tl.int32)
    return y, x, reads


@triton.jit
def _scale(length, S, ALIGNED: tl.constexpr):
    """Return source samples per target sample as a ratio of integers: numerator and denominator."""
    if ALIGNED:
        numerator = tl.where(length > 1, S - 1, 0)
        denominator = tl.maximum(length - 1, 1)
    else:
        numerator = S + length * 0
        denominator = length
    return numerator, denominator


@triton.jit
def _weight(p, length, s, S, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the weight with which target position p reads source sample s, 0 where there is no such sample.

    With ANTIALIAS still to be multiplied by what `_share` gives. Without it, samples beyond the border repeat the
    border sample, so that their weights are added to its.
    """
    numerator, denominator = _scale(length, S, ALIGNED)
    half: tl.constexpr = 0 if ALIGNED and not ANTIALIAS else 1
    offset = (2 * s + half) * denominator - (2 * p + half) * numerator
    if ANTIALIAS:
        weight = _kernel(_ratio(offset, 2 * tl.maximum(numerator, denominator)), CUBIC, True)
    else:
        step = 2 * denominator
        weight = _kernel(_ratio(offset, step), CUBIC, False)
        for beyond in tl.static_range(1, 3 if CUBIC else 2):
            before = _kernel(_ratio(offset - beyond * step, step), CUBIC, False)
            after = _kernel(_ratio(offset + beyond * step, step), CUBIC, False)
            weight += tl.where(s == 0, before, 0.0) + tl.where(s == S - 1, after, 0.0)
    return tl.where(s < S, weight, 0.0)


@triton.jit
def _share(p, length, S, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return what makes the weights of target positions p sum to 1, in the shape of p."""
    share = p * 0.0 + 1.0
    if ANTIALIAS:
        total = p * 0.0
        for s in range(S):
            total += _weight(p, length, s, S, CUBIC, ANTIALIAS, ALIGNED)
        share = share / tl.where(total == 0, 1.0, total)
    return share


@triton.jit
def _weights(p, length, s, S, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the weights [p, s] of all samples s for each target position p."""
    weight = _weight(p[:, None], length, s[None, :], S, CUBIC, ANTIALIAS, ALIGNED)
    if ANTIALIAS:
        total = tl.sum(weight, axis=1)  # 0 only for positions past the end, which nobody reads
        weight = weight / tl.where(total == 0, 1.0, total)[:, None]
    return weight


@triton.jit
def _span(p, length, S, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the first of the samples that target position p reads, and the one after the last; or a few more."""
    numerator, denominator = _scale(length, S, ALIGNED)
    half: tl.constexpr = 0 if ALIGNED and not ANTIALIAS else 1
    radius: tl.constexpr = 2 if CUBIC else 1
    widened = tl.maximum(numerator, denominator) if ANTIALIAS else denominator
    centre = (2 * p + half) * numerator - half * denominator
    begin = (centre - 2 * radius * widened) // (2 * denominator)
    end = (centre + 2 * radius * widened) // (2 * denominator) + 2
    return tl.maximum(begin, 0), tl.minimum(end, S)


@triton.jit
def _below(p, length, S, ALIGNED: tl.constexpr):
    """Return the last sample at or before each target position, its distance times a scale, and the scale."""
    numerator, denominator = _scale(length, S, ALIGNED)
    half: tl.constexpr = 0 if ALIGNED else 1
    ahead = (2 * p + half) * numerator - half * denominator  # the position in samples, times twice the denominator
    scale = 2 * denominator
    below = (ahead + scale) // scale - 1  # ahead may be negative, by less than a sample
    return below, below * scale - ahead, scale


@triton.jit
def _at_sample(offset, scale, k: tl.constexpr, CUBIC: tl.constexpr):
    """Return the weight of the k-th sample after the one of which `_below` gave the distance."""
    return _kernel(_ratio(offset + k * scale, scale), CUBIC, False)


@triton.jit
def _ratio(numerator, denominator):
    """Return a ratio of integers, rounded once."""
    return tl.div_rn(numerator.to(tl.float32), (denominator + numerator * 0).to(tl.float32))


@triton.jit
def _kernel(distance, CUBIC: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Return `Resampling.kernel` of a distance in samples."""
    x = tl.abs(distance)
    if CUBIC:
        a: tl.constexpr = -0.5 if ANTIALIAS else -0.75
        near = 1 - x * x * ((a + 3) - (a + 2) * x)
        beyond = tl.maximum(2 - x, 0.0)
        weight = tl.where(x < 1, near, a * (x - 1) * beyond * beyond)
    else:
        weight = tl.maximum(1 - x, 0.0)
    return weight


@triton.jit
def _sum(old, total):
    """Return old values plus float32 sums, rounded as torch rounds them: to the dtype, then added in it."""
    rounded = total.to(old.dtype)
    if old.dtype == tl.float64:  # noqa: SIM108  # a branch of the compiler's
        added = old + rounded
    else:
        added = (old.to(tl.float32) + rounded.to(tl.float32)).to(old.dtype)
    return added
