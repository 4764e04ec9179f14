"""Wrong candidates for the gate to reject: each a tiny classifier with one fault, and the sentence that says which.

A maker takes the dtype that the candidate claims and returns a callable of the model's three inputs, so that a fault in
low precision comes with that precision's own rounding. `docs/mutants.md` says which check of the gate caught which;
`tools/judge_mutants.py` writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from reference import resize
from timm.models.naflexvit import create_attention_mask
from torch import Tensor, nn
from torch.nn import functional as F

import naflex_export as nx
from naflex_export.grid import Grid
from naflex_export.resample.weights import BICUBIC, axis_weights

Candidate = Callable[[Tensor, Tensor, Tensor], Any]
Maker = Callable[[torch.dtype], Candidate]
Inputs = tuple[Tensor, Tensor, Tensor]

DTYPES = ("float32", "float16", "bfloat16")
CLASSES = 10
REGISTERS = 4


@dataclass(frozen=True)
class Mutant:
    """A wrong candidate.

    Attributes:
        fault: what is wrong, in a sentence.
        make: returns the candidate for a dtype.
        dtypes: in which it must be caught.
        why: why not in the others; empty where there are none.
        outputs: that it gives.
        depends: checks that catch it on some machines and not on others, by how their kernels split a sum.
    """

    fault: str
    make: Maker
    dtypes: tuple[str, ...] = DTYPES
    why: str = ""
    outputs: tuple[str, ...] = ("features",)
    depends: tuple[str, ...] = ()


MUTANTS: dict[str, Mutant] = {}


def mutant(
    dtypes: tuple[str, ...] = DTYPES,
    why: str = "",
    outputs: tuple[str, ...] = ("features",),
    depends: tuple[str, ...] = (),
) -> Callable[[Maker], Maker]:
    """Register a maker under its own name; its docstring is the fault."""

    def register(make: Maker) -> Maker:
        assert make.__doc__
        MUTANTS[make.__name__.replace("_", "-")] = Mutant(make.__doc__, make, dtypes, why, outputs, depends)
        return make

    return register


def true(dtype: torch.dtype, **options: Any) -> Any:
    """Return the classifier that every mutant is made from, in a dtype; with timm's options, another model."""
    return tiny.naflexvit("naflexvit_base_patch16_gap", num_classes=CLASSES, **options).to(dtype)


def fed(dtype: torch.dtype, change: Callable[[Tensor, Tensor, Tensor], Inputs]) -> Candidate:
    """Return the true model fed with changed inputs."""
    model = true(dtype)
    return lambda *inputs: model(*change(*inputs))


def answering(dtype: torch.dtype, change: Callable[[Tensor], Any]) -> Candidate:
    """Return the true model with its output changed."""
    model = true(dtype)
    return lambda *inputs: change(model(*inputs))


# What the model is fed.


@mutant()
def dropped_mask(dtype: torch.dtype) -> Candidate:
    """The mask is dropped: padding is attended to and pooled."""
    return fed(dtype, lambda p, c, v: (p, c, torch.ones_like(v)))


@mutant()
def swapped_height_and_width(dtype: torch.dtype) -> Candidate:
    """Coordinates are read as (x, y)."""
    return fed(dtype, lambda p, c, v: (p, c.flip(-1), v))


@mutant()
def wrong_order_of_coordinates(dtype: torch.dtype) -> Candidate:
    """Patches come column by column, while coordinates go row by row."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        height_B1, width_B1 = (c.amax(dim=1, keepdim=True) + 1).unbind(-1)
        token_N = torch.arange(c.shape[1])
        taken_BN = (token_N % height_B1) * width_B1 + token_N // height_B1
        taken_BN = torch.where(v, taken_BN, token_N)
        return p.gather(1, taken_BN.unsqueeze(-1).expand(p.shape)), c, v

    return fed(dtype, change)


@mutant()
def off_by_one_row(dtype: torch.dtype) -> Candidate:
    """Rows are counted from 1."""
    return fed(dtype, lambda p, c, v: (p, c + torch.tensor([1, 0]), v))


@mutant()
def last_token_dropped(dtype: torch.dtype) -> Candidate:
    """The last token of every image is taken for padding."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        token_N = torch.arange(v.shape[1])
        return p, c, v & ((token_N < v.sum(dim=1, keepdim=True) - 1) | (token_N == 0))

    return fed(dtype, change)


@mutant()
def truncated_input(dtype: torch.dtype) -> Candidate:
    """The last four tokens of the batch are cut off, as by a sequence that is too short."""
    return fed(dtype, lambda p, c, v: (p[:, :-4], c[:, :-4], v[:, :-4]) if v.shape[1] > 4 else (p, c, v))


@mutant()
def baked_batch(dtype: torch.dtype) -> Candidate:
    """The batch size of the example, 3, is baked in: further images get the answers of the first three."""
    model = true(dtype)

    def run(*inputs: Tensor) -> Tensor:
        repeated = torch.arange(len(inputs[0])) % 3
        return model(*(tensor[:3] for tensor in inputs))[repeated]

    return run


@mutant()
def first_image_for_all(dtype: torch.dtype) -> Candidate:
    """A batch size of 1 is baked in: every image gets the first one's answer."""
    return answering(dtype, lambda out: out[:1].expand_as(out))


@mutant()
def swapped_colours(dtype: torch.dtype) -> Candidate:
    """Patches are read as blue, green, red."""
    return fed(dtype, lambda p, c, v: (p.unflatten(-1, (-1, 3)).flip(-1).flatten(-2), c, v))


@mutant()
def transposed_patches(dtype: torch.dtype) -> Candidate:
    """Pixels within a patch are read column by column."""
    return fed(dtype, lambda p, c, v: (p.unflatten(-1, (4, 4, 3)).transpose(-2, -3).flatten(-3), c, v))


# How the position embedding is resized.


def resized(dtype: torch.dtype, embed: Callable[[Tensor, Tensor, list[Grid]], Tensor]) -> Candidate:
    """Return the true model whose embedding of a batch is made by `embed` from the learned grid, coordinates and grids.

    Args:
        dtype: the candidate's.
        embed: takes the grid [H, W, C] in float32, coordinates [B, N, 2] and each image's grid; returns [B, N, C].
    """
    model = true(dtype)

    def add(x: Tensor, patch_coord: Tensor) -> None:
        grids = [Grid(*row) for row in (patch_coord.amax(dim=1) + 1).tolist()]
        x.add_(embed(model.embeds.pos_embed[0].float(), patch_coord, grids).to(x.dtype))

    model.embeds._apply_learned_naflex_pos_embed = add
    return model


def each(grid_HWC: Tensor, sizes: list[Grid], coord: Tensor) -> Tensor:
    """Return the grid resized to a size for each image, read at its coordinates, as far as there are cells."""
    found = [resize(grid_HWC, *size, BICUBIC) for size in sizes]
    rows = [
        flat[c[:, 0].clamp(max=flat.shape[0] - 1), c[:, 1].clamp(max=flat.shape[1] - 1)]
        for flat, c in zip(found, coord, strict=True)
    ]
    return torch.stack(rows)


@mutant()
def off_by_half_a_pixel(dtype: torch.dtype) -> Candidate:
    """The resize puts the centre of a patch on its corner: everything is shifted by half a patch."""

    def embed(grid_HWC: Tensor, coord: Tensor, grids: list[Grid]) -> Tensor:
        position, length = coord.float() - 0.5, torch.tensor(grids).float().unsqueeze(1).expand(coord.shape)
        rows = axis_weights(position[..., 0], length[..., 0], grid_HWC.shape[0], BICUBIC)
        columns = axis_weights(position[..., 1], length[..., 1], grid_HWC.shape[1], BICUBIC)
        return torch.einsum("bnh,bnw,hwc->bnc", rows, columns, grid_HWC)

    return resized(dtype, embed)


@mutant()
def no_antialias(dtype: torch.dtype) -> Candidate:
    """The resize does not antialias, as ONNX's Resize in TensorRT does not."""
    return true(dtype, pos_embed_antialias=False)


@mutant()
def grid_sampled(dtype: torch.dtype) -> Candidate:
    """The embedding is read by `grid_sample`, which does not antialias, instead of resized."""
    return true(dtype, pos_embed_use_grid_sample=True)


@mutant(("float32", "float16"), why="here the two differ by less than twice what bfloat16 rounds")
def bilinear(dtype: torch.dtype) -> Candidate:
    """The resize is bilinear instead of bicubic."""
    return true(dtype, pos_embed_interp_mode="bilinear")


@mutant()
def aligned_corners(dtype: torch.dtype) -> Candidate:
    """The resize aligns corners."""
    return true(dtype, pos_embed_align_corners=True)


@mutant()
def nearest(dtype: torch.dtype) -> Candidate:
    """The resize takes the nearest cell, as some parsers read `linear`."""

    def embed(grid_HWC: Tensor, coord: Tensor, grids: list[Grid]) -> Tensor:
        size = torch.tensor(grids).unsqueeze(1)
        cell = (coord * torch.tensor(grid_HWC.shape[:2]) + torch.tensor(grid_HWC.shape[:2]) // 2) // size
        return grid_HWC[cell[..., 0].clamp(max=grid_HWC.shape[0] - 1), cell[..., 1].clamp(max=grid_HWC.shape[1] - 1)]

    return resized(dtype, embed)


@mutant()
def aspect_preserving(dtype: torch.dtype) -> Candidate:
    """The embedding is resized to the longer side both ways, and cut."""
    return true(dtype, pos_embed_ar_preserving=True)


@mutant()
def not_resized(dtype: torch.dtype) -> Candidate:
    """The embedding is cut to the image's grid instead of resized."""
    return resized(dtype, lambda grid, coord, grids: grid[coord[..., 0].clamp(max=15), coord[..., 1].clamp(max=15)])


@mutant()
def size_of_neighbour_image(dtype: torch.dtype) -> Candidate:
    """Each image's embedding is resized to the grid of the next image in the batch."""
    return resized(dtype, lambda grid, coord, grids: each(grid, [*grids[1:], grids[0]], coord))


@mutant()
def one_size_for_the_batch(dtype: torch.dtype) -> Candidate:
    """Every embedding is resized to the largest height and width of the batch."""

    def embed(grid_HWC: Tensor, coord: Tensor, grids: list[Grid]) -> Tensor:
        largest = Grid(max(grid.height for grid in grids), max(grid.width for grid in grids))
        return each(grid_HWC, [largest] * len(grids), coord)

    return resized(dtype, embed)


@mutant()
def no_position_embedding(dtype: torch.dtype) -> Candidate:
    """The position embedding is left out."""
    return resized(dtype, lambda grid, coord, grids: torch.zeros(*coord.shape[:2], grid.shape[2]))


# What the encoder computes.


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


# How it rounds.


@mutant(("float32",), why="it is what was asked for", depends=("amount",))
def float16_behind_float32(dtype: torch.dtype) -> Candidate:
    """It computes in float16 and says float32: what a silent fallback looks like."""
    return rounded(dtype, torch.float16)


@mutant(("float32", "float16"), why="it is what was asked for", depends=("amount",))
def bfloat16_behind_another(dtype: torch.dtype) -> Candidate:
    """It computes in bfloat16 and says float32 or float16."""
    return rounded(dtype, torch.bfloat16)


@mutant(("float32",), why="a float16 graph has such weights, and bfloat16 has fewer bits")
def weights_through_float16(dtype: torch.dtype) -> Candidate:
    """Weights went through float16 on their way to a float32 graph."""
    return true(torch.float16).to(dtype)


def rounded(dtype: torch.dtype, narrow: torch.dtype) -> Candidate:
    """Return the true model computing in a narrow dtype, and answering in the one it claims."""
    model = true(narrow)
    return lambda p, c, v: model(p.to(narrow), c, v).to(dtype)


@mutant()
def float16_overflow(dtype: torch.dtype) -> Candidate:
    """A sum within the first block overflows float16: infinities, and after the next norm no numbers."""
    return overflowing(dtype, lambda x: x)


@mutant()
def float16_saturation(dtype: torch.dtype) -> Candidate:
    """The same sum is held at float16's largest number: wrong, and finite."""
    largest = torch.finfo(torch.float16).max
    return overflowing(dtype, lambda x: x.clamp(-largest, largest))


def overflowing(dtype: torch.dtype, held: Callable[[Tensor], Tensor]) -> Candidate:
    """Return the true model whose first block's values pass through float16 at 65536 times their size."""
    model = true(dtype)
    scale = 2.0**16
    model.blocks[0].register_forward_hook(lambda block, inputs, x: (held(scale * x.float()).half() / scale).to(dtype))
    return model


@mutant(("float16", "bfloat16"), why="float32 has no baseline: its limits know how float32 rounds")
def three_times_the_rounding(dtype: torch.dtype) -> Candidate:
    """It is three times as far from the reference as eager in its dtype: within the limits, and no rounding of it."""
    exact, model = true(torch.float32), true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> Tensor:
        expected = exact(p.float(), c, v)
        return (expected + 3 * (model(p, c, v).float() - expected)).to(dtype)

    return run


@mutant(("float32",), why="the two curves differ by less than float16 rounds")
def tanh_for_gelu(dtype: torch.dtype) -> Candidate:
    """GELU is replaced by its approximation through tanh."""
    model = true(dtype)
    for block in model.blocks:
        block.mlp.act = nn.GELU(approximate="tanh")
    return model


# What it answers.


@mutant()
def not_a_number(dtype: torch.dtype) -> Candidate:
    """Every output is NaN."""
    return answering(dtype, lambda out: torch.full_like(out, float("nan")))


@mutant()
def one_image_not_a_number(dtype: torch.dtype) -> Candidate:
    """The outputs of one image are NaN."""

    def change(out: Tensor) -> Tensor:
        return torch.cat([out[:-1], torch.full_like(out[-1:], float("nan"))])

    return answering(dtype, change)


@mutant()
def infinite(dtype: torch.dtype) -> Candidate:
    """Every output is infinite."""
    return answering(dtype, lambda out: out * float("inf"))


@mutant()
def zero(dtype: torch.dtype) -> Candidate:
    """Every output is zero."""
    return answering(dtype, torch.zeros_like)


@mutant()
def always_the_same(dtype: torch.dtype) -> Candidate:
    """The output is that of an empty image, whatever the image."""
    model = true(dtype)
    return lambda p, c, v: model(torch.zeros_like(p), c, v)


@mutant()
def scaled(dtype: torch.dtype) -> Candidate:
    """Outputs are 1.2 times as large."""
    return answering(dtype, lambda out: 1.2 * out)


@mutant()
def shifted(dtype: torch.dtype) -> Candidate:
    """Outputs are 1 higher, as without a bias."""
    return answering(dtype, lambda out: out + 1.0)


@mutant()
def one_spike(dtype: torch.dtype) -> Candidate:
    """One value is off, by a tenth of the largest."""

    def change(out: Tensor) -> Tensor:
        return torch.cat([out[:, :-1], out[:, -1:] + 0.1 * out.abs().max()], dim=1)

    return answering(dtype, change)


@mutant()
def reversed_batch(dtype: torch.dtype) -> Candidate:
    """Answers come in reverse order."""
    return answering(dtype, lambda out: out.flip(0))


@mutant()
def one_image_wrong(dtype: torch.dtype) -> Candidate:
    """The last image of a batch is wrong: what an average would hide."""
    return answering(dtype, lambda out: torch.cat([out[:-1], out[-1:].roll(1, dims=1)]))


@mutant()
def swapped_classes(dtype: torch.dtype) -> Candidate:
    """Two classes are swapped."""
    return answering(dtype, lambda out: out[:, [1, 0, *range(2, CLASSES)]])


@mutant()
def previous_answer(dtype: torch.dtype) -> Candidate:
    """It returns what it computed in the call before, as from a buffer that is read too early."""
    model, kept = true(dtype), []

    def run(*inputs: Tensor) -> Tensor:
        kept.append(model(*inputs))
        before = kept[-2] if len(kept) > 1 else torch.zeros_like(kept[-1])
        return before[torch.arange(len(kept[-1])) % len(before)]

    return run


@mutant()
def wrong_shape(dtype: torch.dtype) -> Candidate:
    """The last class is cut off."""
    return answering(dtype, lambda out: out[:, :-1])


@mutant()
def missing_output(dtype: torch.dtype) -> Candidate:
    """The output has another name."""
    return answering(dtype, lambda out: {"logits": out})


@mutant()
def fails_beyond_its_batch(dtype: torch.dtype) -> Candidate:
    """It raises for more images than 4, and 8 were promised."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        if len(p) > 4:
            raise ValueError(f"got {len(p)} images, expected at most 4")
        return p, c, v

    return fed(dtype, change)


# What the outputs must not depend on, and must.


@mutant()
def padding_leaks(dtype: torch.dtype) -> Candidate:
    """What padding holds is in the outputs. A loader pads with zeros, so no comparison can see it."""
    model = true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> Tensor:
        return model(p, c, v) + 1e-3 * torch.where(v.unsqueeze(-1), 0, p).abs().amax(dim=(1, 2)).unsqueeze(1)

    return run


@mutant()
def mask_from_coordinates(dtype: torch.dtype) -> Candidate:
    """The mask is made from coordinates, and the input is ignored: the same, until a caller masks anything else."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        return p, c, torch.arange(v.shape[1]) < (c.amax(dim=1) + 1).prod(dim=1, keepdim=True)

    return fed(dtype, change)


@mutant()
def fails_on_a_masked_token(dtype: torch.dtype) -> Candidate:
    """It raises where the mask is not what coordinates say, as a graph does that was traced with a check of it."""

    def change(p: Tensor, c: Tensor, v: Tensor) -> Inputs:
        if not torch.equal(v.sum(dim=1), (c.amax(dim=1) + 1).prod(dim=1)):
            raise ValueError("a mask with gaps")
        return p, c, v

    return fed(dtype, change)


@mutant()
def first_image_leaks(dtype: torch.dtype) -> Candidate:
    """Some of the first image is in the outputs of all."""
    return answering(dtype, lambda out: out + 0.05 * out[:1])


@mutant()
def token_count_leaks(dtype: torch.dtype) -> Candidate:
    """Outputs grow with the number of tokens that a batch is padded to."""
    model = true(dtype)
    return lambda p, c, v: model(p, c, v) * (1 + 0.1 * v.shape[1] / 24)


# The tokens, where they are an output too.


def telling(dtype: torch.dtype, change: Callable[[Tensor, Tensor], Tensor]) -> Candidate:
    """Return the true model with both outputs, its tokens [B, registers + N, C] changed; `change` gets validity too."""
    model = true(dtype)

    def run(p: Tensor, c: Tensor, v: Tensor) -> dict[str, Tensor]:
        tokens = model.forward_features(p, patch_coord=c, patch_valid=v)["patches"]
        return {"features": model.forward_head(tokens, patch_valid=v), "tokens": change(tokens, v)}

    return run


BOTH = ("features", "tokens")


@mutant(outputs=BOTH)
def truncated_tokens(dtype: torch.dtype) -> Candidate:
    """The output `tokens` lacks its last one."""
    return telling(dtype, lambda tokens, v: tokens[:, :-1])


@mutant(outputs=BOTH)
def tokens_without_registers(dtype: torch.dtype) -> Candidate:
    """The output `tokens` lacks the register tokens."""
    return telling(dtype, lambda tokens, v: tokens[:, REGISTERS:])


@mutant(outputs=BOTH)
def registers_last(dtype: torch.dtype) -> Candidate:
    """The output `tokens` has the register tokens at its end."""
    return telling(dtype, lambda tokens, v: tokens.roll(-REGISTERS, dims=1))


@mutant(outputs=BOTH)
def last_token_zero(dtype: torch.dtype) -> Candidate:
    """The last valid token of each image is zero in the output `tokens`."""

    def change(tokens: Tensor, v: Tensor) -> Tensor:
        is_last_BN = torch.arange(v.shape[1]) == v.sum(dim=1, keepdim=True) - 1
        return torch.where(F.pad(is_last_BN, (REGISTERS, 0)).unsqueeze(-1), 0, tokens)

    return telling(dtype, change)


# References that would prove nothing, or are none.


@dataclass(frozen=True)
class WrongReference:
    """A reference that the gate must not take: what is wrong, how to make it, the dtype asked for, what the gate says.

    The candidate is the reference itself, in that dtype, so that nothing else can be what fails.
    """

    fault: str
    make: Callable[[], nn.Module]
    says: str
    dtype: str = "float32"


def with_head(value: float, bias: bool) -> nn.Module:
    """Return the classifier with every weight of its head, and every bias if asked to, at a value."""
    model = true(torch.float32)
    nn.init.constant_(model.head.weight, value)
    if bias:
        nn.init.constant_(model.head.bias, value)
    return model


def overflowing_reference() -> nn.Module:
    """Return a classifier that is finite in float32, and not in float16."""
    model = true(torch.float32)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.mul_(3e5)
    return model


WRONG_REFERENCES = {
    "untrained-head": WrongReference(
        "The head's weights are zero, as timm leaves them: logits are its bias.",
        lambda: with_head(0.0, bias=False),
        says="the reference's output proves nothing: it is the same for every image",
    ),
    "zero": WrongReference(
        "The head is zero, bias and all.",
        lambda: with_head(0.0, bias=True),
        says="the reference's output proves nothing: it is zero everywhere: an untrained head, perhaps",
    ),
    "not-a-number": WrongReference(
        "The weights hold NaN, so that every output does.",
        lambda: with_head(float("nan"), bias=False),
        says="the reference's output proves nothing: it holds values that are not finite",
    ),
    "overflows-in-float16": WrongReference(
        "Eager itself overflows in the dtype asked for: no candidate could be right.",
        overflowing_reference,
        says="eager itself is not finite in this dtype: keep the model in float32, or try bfloat16",
        dtype="float16",
    ),
    "vectorized": WrongReference(
        "The reference has been through `vectorize`: a fault there would stand on both sides.",
        lambda: nx.vectorize(true(torch.float32)),
        says="the reference is a vectorized model",
    ),
}
