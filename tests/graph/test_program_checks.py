"""Checks of an ExportedProgram: each names what is wrong, and a true one passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import naflex_export as nx
from naflex_export.graph import checks as graph_checks
from naflex_export.graph.checks import check_program
from naflex_export.graph.program import Program
from naflex_export.graph.trace import EXAMPLE, EXAMPLE_TOKENS, capture
from naflex_export.precision import Precision
from naflex_export.resample import patch_kernel as patch_resample

OPEN = ({0: "batch", 1: "tokens"},) * 3
Step = Callable[["Encoder", Tensor, Tensor, Tensor], Tensor]


def mask(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    return x * valid.unsqueeze(-1).to(x.dtype)


class Encoder(nn.Module):
    """A projection, a position from coordinates, a norm, a step that masks, and a sum over tokens."""

    def __init__(self, step: Step = mask) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.grid = nn.Parameter(torch.randn(2, 4))
        self.latent = nn.Parameter(torch.randn(1, 4))
        self.step = step

    def forward(self, patches: Tensor, coord: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        position = coord.float() @ self.grid.float()
        x = self.norm(self.proj(patches) + position.to(patches.dtype))
        x = self.step(self, x, coord, valid)
        x = x.reshape(x.shape[0], x.shape[1], 2, 2).flatten(2)
        return x.sum(1) + self.latent.expand(x.shape[0], -1), x


def captured(encoder: nn.Module, dtype: str = "float32") -> Program:
    kind, size = getattr(torch, dtype), (len(EXAMPLE), EXAMPLE_TOKENS)
    example = {
        "patches": torch.zeros(*size, 4, dtype=kind),
        "coord": torch.zeros(*size, 2, dtype=torch.int64),
        "valid": torch.ones(*size, dtype=torch.bool),
    }
    outputs, buckets = ("features", "tokens"), [nx.Bucket(16)]
    return capture(
        encoder.eval(), example, open_dims=OPEN, buckets=buckets, precision=Precision(dtype), outputs=outputs
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_true_program_passes(dtype: str) -> None:
    assert [spec.dtype for spec in captured(Encoder().to(getattr(torch, dtype)), dtype).outputs] == [dtype] * 2


def mask_in_place(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    x = x.clone()
    x[..., :2].mul_(valid.unsqueeze(-1))
    return x


def test_a_mask_that_changes_a_view_in_place_has_an_effect() -> None:
    assert captured(Encoder(mask_in_place)).precision.dtype == "float32"


def upsample(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    grid = nn.functional.interpolate(encoder.grid[None, None], size=(3, 4), mode="bicubic", antialias=True)
    return mask(encoder, x, coord, valid) + grid.sum()


def grid_sample(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    grid = encoder.grid.expand(x.shape[0], 1, -1, -1)
    read = nn.functional.grid_sample(grid, coord.float().unsqueeze(2), align_corners=False)
    return mask(encoder, x, coord, valid) + read.squeeze(1)


def boolean_index(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    return x + x[valid].sum()


def item(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    return x * valid.sum().item()


def branch(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    return torch.cond(valid.all(), lambda x: x.clone(), lambda x: x * 2, (x,))


def other_mode(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x * 2
    return mask(encoder, x, coord, valid)


def own_operator(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    return mask(encoder, x @ patch_resample._axis_pinv_op(4, 4, "bicubic", True, x.device), coord, valid)


def no_mask(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
    return x + torch.zeros_like(valid, dtype=x.dtype).unsqueeze(-1).expand_as(x)


HERE = "from the encoder's own forward: "


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (upsample, f"aten._upsample_bicubic2d_aa.* {HERE}it resizes, .*; read the learned grid with resample_at"),
        (grid_sample, f"aten.grid_sampler.* {HERE}it resizes, .*; read the learned grid with resample_at"),
        (boolean_index, f"{HERE}the shape of its result depends on values; select with torch.where"),
        (item, f"aten.item.* {HERE}it reads a value on the host; compute with the tensor in place of .item"),
        (branch, f"cond node .* {HERE}it loops, branches or .*; write one expression for the whole batch"),
        (other_mode, f"set_grad_enabled.* {HERE}it loops, branches or holds a graph of its own"),
        (own_operator, f"axis_pinv.* {HERE}it is an operator of 'naflex_export', which only that library can run"),
        (no_mask, "input 'valid' has no effect on output 'features', 'tokens': no node reads what it holds"),
    ],
)
def test_a_wrong_program_is_named(step: Step, message: str) -> None:
    with pytest.raises(nx.BuildError, match=message):
        captured(Encoder(step))


def test_a_layer_of_a_program_in_another_dtype_is_named() -> None:
    """A norm left in float32 by a cast that missed it."""

    def wide(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        return mask(encoder, nn.functional.layer_norm(x.float(), (4,)).to(x.dtype), coord, valid)

    named = f"aten.layer_norm.default node .* {HERE}it computes with 'to.*' in float32, and float16 was asked for"
    with pytest.raises(nx.BuildError, match=named):
        captured(Encoder(wide).half(), "float16")


def test_dimensions_fixed_by_the_model_are_named() -> None:
    def one_for_all(encoder: Encoder, x: Tensor, coord: Tensor, valid: Tensor) -> Tensor:
        return mask(encoder, x, coord, valid).sum(0, keepdim=True)

    with pytest.raises(
        nx.BuildError, match="output 'tokens' has shape .1, 'tokens', 4.: dimension 0 was to be 'batch'"
    ):
        captured(Encoder(one_for_all))


def test_an_input_fixed_by_torch_is_named() -> None:
    program = captured(Encoder())
    patches, *others = program.inputs
    fixed = dataclasses.replace(program, inputs=(dataclasses.replace(patches, shape=(3, "tokens", 4)), *others))
    (problem,) = check_program(fixed, OPEN)
    assert problem.startswith("input 'patches' has shape [3, 'tokens', 4]: dimension 0 was to be 'batch', of any size")


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("reshape", [3, 11, 2, 2], "it fails for 5 images of 13 tokens (shape '[3, 11, 2, 2]' is invalid"),
        ("expand", [3, -1], "for 5 images of 13 tokens it makes [3, 4], and the graph says [5, 4]"),
    ],
)
def test_a_size_fixed_in_a_program_is_named(op: str, arguments: list[int], message: str) -> None:
    program = captured(Encoder())
    wrong = next(one for one in program.exported.graph.nodes if one.op == "call_function" and op in str(one.target))
    assert isinstance(wrong, fx.Node)
    wrong.args = (wrong.args[0], arguments)
    (problem,) = check_program(program, OPEN)
    assert problem.startswith(f"aten.{op}.default node {op!r} from the encoder's own forward: {message}")
    assert "a size of the example it was traced with is fixed in the graph: look in the module" in problem


def test_layers_are_told_from_other_operators() -> None:
    assert graph_checks.LAYER_OPS.fullmatch("aten.linear.default")
    assert not graph_checks.LAYER_OPS.fullmatch("aten.mul.Tensor")
