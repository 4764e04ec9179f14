"""What a Runner refuses at run time, for the torch.compile and AOTInductor artifacts too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import tiny
import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.exporter import export
from naflex_export.grid import Grid
from naflex_export.serving.load import load
from naflex_export.serving.onnx_session import left_to_cpu

BUCKETS = [nx.Bucket(16, (1, 2, 8)), nx.Bucket(24, (1, 2, 2))]
Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives a target's artifact, which is made once."""

    @functools.cache
    def made(target: str) -> Path:
        folder = tmp_path_factory.mktemp(target) / "a"
        return export(tiny.shallow(), target, folder, BUCKETS, outputs=("features", "tokens")).path

    return made


@pytest.fixture(scope="module", params=["compile", "aot", "onnx"])
def runner(request: pytest.FixtureRequest, path_of: Callable[[str], Path]) -> nx.Runner:
    return load(path_of(request.param))


@pytest.fixture(scope="module")
def checker(path_of: Callable[[str], Path]) -> nx.Runner:
    return load(path_of("onnx"), device="cpu")


def inputs(*grids: Grid, tokens: int = 16) -> Inputs:
    batch = noise_batch("runner", grids or (Grid(3, 4), Grid(2, 2)), tokens, 48)
    return batch.patches, batch.patch_coord, batch.patch_valid


GIVEN = {
    "mixed": inputs(),
    "one-token": inputs(Grid(1, 1), tokens=1),
    "batch-1": inputs(Grid(4, 4)),
    "five-of-one-token": inputs(*[Grid(1, 1)] * 5, tokens=1),
    "as-many-images-as-tokens": inputs(Grid(2, 2), Grid(1, 3), Grid(4, 1), Grid(1, 1), tokens=4),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_returns_what_eager_returns(runner: nx.Runner, given: Inputs) -> None:
    found, model = runner(*given), tiny.shallow()
    assert isinstance(found, dict)
    with torch.no_grad():
        features, tokens = model(*given), model.forward_features(*given)["patches"]
    assert found["features"].shape == features.shape and found["tokens"].shape == tokens.shape
    assert (found["features"] - features).abs().max() <= 1e-5 * features.abs().max()
    assert (found["tokens"] - tokens)[given[2]].abs().max() <= 1e-5 * tokens.abs().max()


def without_prefix(valid: Tensor) -> Tensor:
    valid = valid.clone()
    valid[1, 0] = False
    return valid


def moved(coord: Tensor, index: tuple[int, int, int], value: int) -> Tensor:
    coord = coord.clone()
    coord[index] = value
    return coord


P, C, V = inputs()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((P, C), r"got 2 inputs: expected 3, patches, patch_coord, patch_valid"),
        ((P.numpy(), C, V), "patches is a numpy array and patch_coord a torch tensor: expected all of one kind"),
        ((P.half(), C, V), r"patches is float16: expected float32; cast it with .to\(torch.float32\)"),
        ((P, C.int(), V), "patch_coord is int32: expected int64"),
        ((P, C, V.float()), "patch_valid is float32: expected bool"),
        ((P[0], C, V), r"patches has shape \[16, 48\]: expected 3 axes"),
        ((P[..., :40], C, V), r"patches has shape \[2, 16, 40\]: expected 48"),
        ((P, C[:1], V), r"patch_coord has shape \[1, 16, 2\]: expected batch=2"),
        ((P, C, V[:, :12]), r"patch_valid has shape \[2, 12\]: expected tokens=16"),
        ((P[:0], C[:0], V[:0]), r"patches has shape \[0, 16, 48\]"),
        (inputs(Grid(5, 5), tokens=25), r"25 tokens are more than any bucket takes .*larger --bucket"),
        (inputs(*[Grid(2, 2)] * 9), r"a batch of 9 with 16 tokens fits no bucket .*split the batch"),
        (inputs(*[Grid(4, 6)] * 3, tokens=24), r"a batch of 3 with 24 tokens fits no bucket"),
        ((P, C, without_prefix(V)), r"patch_valid of image 1 has gaps: valid tokens must come first"),
        ((P, C.flip(-1), V), r"patch_coord of image 0 does not go row by row"),
        ((P, moved(C, (1, 2, 0), 3), V), r"patch_coord of image 1 does not go row by row"),
        ((P, moved(C, (1, 15, 1), 9), V), r"patch_coord of image 1 does not go row by row"),
        ((P, moved(C, (1, 15, 1), 1), V), r"patch_coord of image 1 does not go row by row"),
        ((P, moved(C, (1, 4, 0), 1), V), r"patch_coord of image 1 does not go row by row"),
        ((P, torch.full_like(C, -1), V), r"patch_coord of image 0 does not go row by row"),
        ((P, moved(C, (0, 0, 0), -1), V), r"patch_coord of image 0 does not go row by row"),
    ],
)
def test_inputs_outside_the_artifact_are_refused(checker: nx.Runner, given: Inputs, message: str) -> None:
    with pytest.raises(nx.InputError, match=message):
        checker(*given)


def test_a_grid_beyond_the_bucket_is_refused(checker: nx.Runner) -> None:
    """A grid of 4 x 10 whose tokens were cut at 24: eager would go on with part of an image."""
    patches, coord, valid = (tensor[:, :24] for tensor in inputs(Grid(4, 10), tokens=40))
    coord = coord.clone()
    with pytest.raises(nx.InputError, match=r"image 0 has a grid of 3x10 = 30 patches, more than the 24 tokens"):
        checker(patches, coord, valid)


def test_checks_of_values_can_be_left_out(path_of: Callable[[str], Path]) -> None:
    trusting = load(path_of("onnx"), device="cpu", check_inputs=False)
    trusting(P, C, without_prefix(V))
    with pytest.raises(nx.InputError, match="patches is float16"):
        trusting(P.half(), C, V)


def test_only_what_computes_sizes_may_run_beside_a_gpu() -> None:
    """A session on a CPU stands in for one for a GPU that leaves all its nodes to the CPU."""
    sizes, product = [helper.make_node("Shape", ["x"], ["size"])], [helper.make_node("MatMul", ["x", "x"], ["y"])]
    assert left_to_cpu(session_of(sizes, "size", TensorProto.INT64, [2])) == []
    assert left_to_cpu(session_of([*sizes, *product], "y", TensorProto.FLOAT, ["n", "n"])) == ["MatMul ''"]


def session_of(nodes: list[NodeProto], output: str, dtype: int, shape: list[int | str]) -> onnxruntime.InferenceSession:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "n"])]
    outputs = [helper.make_tensor_value_info(output, dtype, shape)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
