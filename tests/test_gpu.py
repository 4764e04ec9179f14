"""What only a GPU can show: no waiting for it, replay as a CUDA graph, each backend judged on it, its memory.

Skipped where there is no GPU. With NAFLEX_GPU_TESTS_ON=cpu the same lines run on a CPU, but for those of CUDA itself,
so that they are not broken when a GPU comes; `tools/gpu_suite.sh` does either.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from tower_tiny import TOWERS

import naflex_export as nx
from naflex_export.batch import Batch, noise_batch
from naflex_export.bench.timing import peak_memory
from naflex_export.bench.workloads import workload
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.precision import FLOAT32
from naflex_export.resample import add as add_resampled
from naflex_export.resample.weights import Resampling
from naflex_export.serving.gpu import Gpu
from naflex_export.targets import target_named

DEVICE = torch.device(os.environ.get("NAFLEX_GPU_TESTS_ON", "cuda"))
ON_GPU = DEVICE.type == "cuda"
BUCKET = nx.Bucket(16, (1, 4, 4))
MIB = 2**20
DTYPES = ["float32", "float16", "bfloat16"]
each_dtype = pytest.mark.parametrize("dtype", [getattr(torch, name) for name in DTYPES], ids=DTYPES)
ERRORS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 0.05}
"""Of features, as a share of the largest; the gate's own limits are for whole reports."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture
def model(siglip: nn.Module) -> nn.Module:
    return copy.deepcopy(siglip).to(DEVICE)


@pytest.fixture
def batches() -> list[Batch]:
    """Four batches of 4 images and 16 tokens, of different grids."""
    return [workload("different", 4, 16, 48, seed) for seed in range(4)]


def on_device(batch: Batch, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return batch.patches.to(DEVICE, dtype), batch.patch_coord.to(DEVICE), batch.patch_valid.to(DEVICE)


def packed_on_device(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    return nx.pack(on_device(batch, dtype))


def expected(model: nn.Module, batch: Batch) -> Tensor:
    """Return the features of the untouched model, in float32 on a CPU."""
    with torch.no_grad():
        (features,) = adapter_of(copy.deepcopy(model).cpu().float()).encoder(("features",))(
            batch.patches, batch.patch_coord, batch.patch_valid
        )
    return features


def assert_close(found: Tensor, model: nn.Module, batch: Batch) -> None:
    """Compare with the untouched model, as exactly as the dtype allows."""
    wanted = expected(model, batch)
    assert (found.float().cpu() - wanted).abs().max() <= ERRORS[found.dtype] * wanted.abs().max()


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Let torch raise at anything that waits for the GPU."""
    try:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("default")


def captured(call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Return a call's output and what replays the call into it: a CUDA graph of it."""
    if not ON_GPU:
        output = call()
        return output, lambda: output.copy_(call())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return output, graph.replay


@torch.no_grad()
@each_dtype
def test_the_compiled_forward_never_waits(dtype: torch.dtype, model: nn.Module, batches: list[Batch]) -> None:
    compiled = nx.compile(model.to(dtype))
    compiled(*on_device(batches[0], dtype))
    others = [on_device(batch, dtype) for batch in batches[1:]]
    with waiting_is_an_error():
        found = [compiled(*inputs) for inputs in others]
    for features, batch in zip(found, batches[1:], strict=True):
        assert_close(features, tiny.siglip(), batch)


@torch.no_grad()
@each_dtype
def test_the_compiled_forward_of_packs_never_waits(dtype: torch.dtype, model: nn.Module, batches: list[Batch]) -> None:
    """In 16 bits attention is `varlen_attn`, in float32 it is gathered."""
    compiled = nx.compile(model.to(dtype), packed=True)
    packs = [packed_on_device(batch, dtype) for batch in batches]
    compiled(packs[0])
    compiled(packs[1])  # its sizes differ: from here on the graph is open
    with waiting_is_an_error():
        found = [compiled(pack) for pack in packs]
    for features, batch in zip(found, batches, strict=True):
        assert_close(features, tiny.siglip(), batch)


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@each_dtype
def test_the_vectorized_forward_never_waits(
    dtype: torch.dtype, packed: bool, model: nn.Module, batches: list[Batch]
) -> None:
    fast = nx.vectorize(model.to(dtype), packed=packed)
    inputs = (packed_on_device(batches[0], dtype),) if packed else on_device(batches[0], dtype)
    with waiting_is_an_error():
        found = fast(*inputs)
    assert_close(found, tiny.siglip(), batches[0])


@pytest.mark.skipif(not ON_GPU, reason="a CPU is never waited for")
def test_the_loop_does_wait(model: nn.Module, batches: list[Batch]) -> None:
    """The check above can fail: timm's own forward reads sizes on the host."""
    inputs = on_device(batches[0])
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        model(*inputs)


@torch.no_grad()
@each_dtype
def test_a_cuda_graph_of_the_compiled_forward_serves_other_grids(
    dtype: torch.dtype, model: nn.Module, batches: list[Batch]
) -> None:
    compiled = nx.compile(model.to(dtype))
    static = on_device(batches[0], dtype)
    output, replay = captured(lambda: compiled(*static))
    for batch in batches:
        for held, new in zip(static, on_device(batch, dtype), strict=True):
            held.copy_(new)
        replay()
        assert_close(output, tiny.siglip(), batch)


@torch.no_grad()
@each_dtype
def test_a_cuda_graph_of_packs_serves_other_grids_of_as_many_tokens(dtype: torch.dtype, model: nn.Module) -> None:
    """The images change places and turn: no grid, start or length is what it was when the graph was captured."""
    grids = [Grid(2, 7), Grid(1, 3), Grid(4, 4), Grid(5, 1)]
    others = [[Grid(width, height) for height, width in (grids[i:] + grids[:i])] for i in range(1, len(grids))]
    batches = [noise_batch(f"turned {i}", each, 16, 48) for i, each in enumerate([grids, *others])]
    compiled = nx.compile(model.to(dtype), packed=True)
    static = packed_on_device(batches[0], dtype)
    output, replay = captured(lambda: compiled(static))
    for batch in batches:
        for name, new in packed_on_device(batch, dtype).items():
            static[name].copy_(new)
        replay()
        assert_close(output, tiny.siglip(), batch)


@torch.no_grad()
def test_reduce_overhead_is_as_exact(model: nn.Module, batches: list[Batch]) -> None:
    compiled = nx.compile(model, mode="reduce-overhead")
    for batch in [*batches, *batches]:
        assert_close(compiled(*on_device(batch)).clone(), tiny.siglip(), batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ["loader", "shuffled"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"side": 32},
        {"side": 40},
        {"side": 16, "mode": "bilinear", "antialias": False},
        {"side": 128, "antialias": False},
    ],
    ids=["rows", "rows-of-32", "tokens", "whole", "few-cells"],
)
@pytest.mark.parametrize("fill", [False, True], ids=["zeros", "filled"])
def test_kernels_give_what_the_matmul_gives(
    *,
    options: dict[str, Any],
    fill: bool,
    order: str,
    dtype: torch.dtype,
    batches: list[Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values and gradients, and nothing waits. On a CPU: of the evaluation for it."""
    side, resampling = (
        options.get("side", 16),
        Resampling(options.get("mode", "bicubic"), options.get("antialias", True)),
    )
    found = []
    for kernels in (False, True):
        monkeypatch.setattr(add_resampled, "KERNELS_ON_GPU", kernels)
        draw = torch.Generator().manual_seed(0)
        grid = torch.randn(side, side, 96, generator=draw).to(DEVICE).requires_grad_()
        coord = batches[0].patch_coord
        if order == "shuffled":
            coord = torch.stack([image[torch.randperm(len(image), generator=draw)] for image in coord])
        coord = coord.to(DEVICE)
        tokens, flow = (torch.randn(*coord.shape[:2], 96, generator=draw).to(DEVICE, dtype) for _ in range(2))
        with waiting_is_an_error():
            out = add_resampled.add_resampled(tokens, grid, coord, resampling, fill_padding=fill)
            out.backward(flow)
        assert grid.grad is not None
        found.append((out.detach().float(), grid.grad))
    (value, gradient), (by_kernels, their_gradient) = found
    # in bfloat16: one step of the sum's rounding, and three products of bfloat16 parts for one of float32
    of_value, of_gradient = (1e-6, 2e-6) if dtype is torch.float32 else (2**-7, 1e-5)
    assert (by_kernels - value).abs().max() <= of_value * value.abs().max()
    assert (their_gradient - gradient).abs().max() <= of_gradient * gradient.abs().max()


def backend_or_skip(target: str) -> None:
    """Skip, by name, a test of a target that cannot run on the device."""
    if target == "trt":
        if not any(map(importlib.util.find_spec, ("tensorrt", "tensorrt_rtx"))):
            pytest.skip("neither tensorrt nor tensorrt-rtx is installed")
        if ON_GPU and (why := target_named(target).cannot_run(FLOAT32)):
            pytest.skip(f"no engine runs here: {why}")
    if target == "onnx" and ON_GPU:
        runtime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in runtime.get_available_providers():
            pytest.skip("this onnxruntime has no CUDA provider: onnxruntime-gpu is not installed")


def assert_judged_here(artifact: nx.Artifact) -> None:
    """Check that the artifact itself passed, and on the GPU where there is one."""
    assert artifact.report.passed
    if ON_GPU:
        assert artifact.report.judged == f"the artifact, on {nx.load(artifact.path).device}"
    print(f"{artifact.manifest.target} {artifact.manifest.dtype}: {artifact.report.worst}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("target", ["compile", "aot", "onnx", "trt"])
def test_artifacts_are_judged_on_the_gpu(
    target: str, packed: bool, dtype: str, model: nn.Module, tmp_path: Path
) -> None:
    backend_or_skip(target)
    artifact = nx.export(
        model, target, tmp_path / "a", [BUCKET], dtype, effort="quick", packed=packed, require_run=ON_GPU
    )
    assert {result.output for result in artifact.report.results} == {"features"}
    assert artifact.manifest.packed == packed
    assert_judged_here(artifact)


@pytest.mark.filterwarnings("ignore:the model is a vision tower, whose patches its own processor makes of photos")
@pytest.mark.parametrize("family", TOWERS)
@pytest.mark.parametrize(
    ("target", "dtype"),
    [("compile", "bfloat16"), ("aot", "float32"), ("onnx", "float16"), ("onnx", "bfloat16"), ("trt", "float16")],
)
def test_artifacts_of_towers_are_judged_on_the_gpu(target: str, dtype: str, family: str, tmp_path: Path) -> None:
    """In float32 no product may be of TF32, as torch's convolutions are there by default."""
    backend_or_skip(target)
    model = TOWERS[family]().to(DEVICE)
    artifact = nx.export(model, target, tmp_path / "a", [BUCKET], dtype, effort="quick", require_run=ON_GPU)
    assert artifact.manifest.packed
    assert_judged_here(artifact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_packs_are_those_of_padded_batches(
    dtype: torch.dtype, model: nn.Module, batches: list[Batch]
) -> None:
    padded, packed = copy.deepcopy(model).to(dtype), nx.vectorize(copy.deepcopy(model).to(dtype), packed=True)
    patches, coord, valid = on_device(batches[0])
    inputs = patches.to(dtype), coord, valid
    for made, given in ((padded, inputs), (packed, (nx.pack(inputs),))):
        made(*given).float().square().sum().backward()
    theirs = {name: parameter.grad for name, parameter in padded.named_parameters() if parameter.grad is not None}
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    bound = (1e-4 if dtype is torch.float32 else 0.05) * scale
    for name, parameter in packed.named_parameters():
        if name in theirs:
            assert parameter.grad is not None
            assert float((parameter.grad - theirs[name]).abs().max()) < bound, name


OTHER_MODELS = {
    "averaged": tiny.classifier,
    "rotary": lambda: tiny.naflexvit(pos_embed="none", rope_type="axial"),
    "128x128": lambda: tiny.naflexvit(pos_embed_grid_size=(128, 128), pos_embed_antialias=False),
    "factorized": lambda: tiny.naflexvit(pos_embed="factorized"),
    "siglip2": tiny.siglip2,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_onnx_runtime_has_a_kernel_for_all_that_models_do(kind: str, dtype: str, tmp_path: Path) -> None:
    """Its CUDA provider lacks some operators in some dtypes: what it leaves to the CPU is refused."""
    backend_or_skip("onnx")
    model = OTHER_MODELS[kind]().to(DEVICE)
    assert_judged_here(nx.export(model, "onnx", tmp_path / "a", [BUCKET], dtype, effort="quick", require_run=ON_GPU))


@pytest.mark.skipif(not ON_GPU, reason="a CPU has no streams")
def test_what_a_stream_is_given_is_captured_and_replayed() -> None:
    """All that a captured engine asks of torch, with a product in the engine's place."""
    gpu = Gpu(torch.empty(0, device=DEVICE).device)
    stream, held, made = gpu.new_stream(), gpu.zeros((512, 512), torch.float32), gpu.zeros((512, 512), torch.float32)

    def work() -> None:
        with torch.cuda.stream(stream):
            torch.mul(held, 2, out=made)

    stream.wait_stream(gpu.callers_stream())
    graph = gpu.captured(work, stream)
    for value in (1.0, 3.0):
        given = torch.full((512, 512), value, device=DEVICE)
        stream.wait_stream(gpu.callers_stream())
        gpu.copy(given, held, stream)
        gpu.replay(graph, stream)
        gpu.callers_stream().wait_stream(stream)
        assert torch.equal(made, 2 * given)
    with pytest.raises(RuntimeError):  # and the stream leaves capture: what comes after it works
        gpu.captured(stream.synchronize, stream)
    gpu.replay(graph, stream)
    stream.synchronize()


def test_memory_of_a_call_is_its_peak() -> None:
    def hold(mebibytes: int) -> Tensor:
        return torch.empty(mebibytes * MIB, dtype=torch.uint8, device=DEVICE).fill_(1)

    def one_after_the_other() -> None:
        hold(40)
        hold(30)

    assert peak_memory(one_after_the_other, DEVICE) == pytest.approx(40 * MIB, abs=2 * MIB)
    assert peak_memory(lambda: (hold(40), hold(30)), DEVICE, foreign=True) == pytest.approx(70 * MIB, abs=24 * MIB)
