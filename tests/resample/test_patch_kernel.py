"""Resampled patch projections against timm's own, and against timm's formula in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import tiny
import torch
from timm.layers.patch_embed import PatchEmbedInterpolator, _compute_resize_matrix, resample_patch_embed
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.grid import Grid
from naflex_export.models.timm_patch_size import VectorizedPatchInterpolator
from naflex_export.resample.patch_kernel import axis_pinv, resample_kernel, resample_weight
from naflex_export.resample.weights import Resampling, resampling_matrix

SIZES = [(4, 2), (4, 6), (14, 16), (16, 1), (16, 8), (16, 12), (16, 15), (16, 32), (32, 8), (32, 16), (32, 31)]
HOWS = [
    pytest.param(Resampling(mode, antialias), id=f"{mode}{'-aa' * antialias}")
    for mode in ("bicubic", "bilinear")
    for antialias in (True, False)
]
CPU = torch.device("cpu")


def share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_timm_in_float64(kernel_ECHW: Tensor, target: tuple[int, int], resampling: Resampling) -> Tensor:
    """Timm's formula, its two functions called with float64: what its float32 rounds."""
    base = (kernel_ECHW.shape[2], kernel_ECHW.shape[3])
    resize = _compute_resize_matrix(base, target, resampling.mode, resampling.antialias, CPU, torch.float64)
    return (kernel_ECHW.double().flatten(2) @ torch.linalg.pinv(resize)).unflatten(2, target)


@pytest.mark.parametrize("resampling", HOWS)
@pytest.mark.parametrize(("base", "target"), SIZES, ids=[f"p{base}-to-p{target}" for base, target in SIZES])
def test_kernel_equals_timms(base: int, target: int, resampling: Resampling) -> None:
    """To 1e-6 of timm's formula. timm itself rounds its matrix before inverting it, and is up to 6e-6 from it."""
    kernel = noise(24, 3, base, base)
    exact = by_timm_in_float64(kernel, (target, target), resampling)
    timms = resample_patch_embed(kernel, [target, target], resampling.mode, resampling.antialias)
    found = resample_kernel(kernel, (target, target), resampling)
    assert found.dtype == torch.float32
    assert share(found, exact) <= 1e-6
    assert share(found, timms) <= 1e-6 + share(timms, exact)
    assert share(timms, exact) <= 1e-5  # and the yardstick is one


def test_an_oblong_kernel_and_its_transpose() -> None:
    """Each axis by its own matrix; a width of 1 too, where torch's antialiased resize on a CPU is wrong."""
    kernel = noise(5, 3, 8, 6)
    assert share(resample_kernel(kernel, (4, 9)), by_timm_in_float64(kernel, (4, 9), Resampling())) <= 1e-6
    narrow, flat = resample_kernel(kernel, (4, 1)), resample_kernel(kernel.mT, (1, 4))
    assert share(narrow, flat.mT) <= 1e-6
    square = noise(5, 3, 16, 16)
    assert share(resample_kernel(square, (4, 1)), by_timm_in_float64(square.mT, (1, 4), Resampling()).mT) <= 1e-6


def test_the_axes_make_the_pseudo_inverse_of_the_whole() -> None:
    rows, columns = (resampling_matrix(source, target, dtype=torch.float64) for source, target in ((6, 4), (5, 9)))
    whole = torch.linalg.pinv(torch.kron(rows, columns))
    found = torch.kron(axis_pinv(6, 4, Resampling(), CPU), axis_pinv(5, 9, Resampling(), CPU))
    assert share(found, whole) <= 1e-6


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels-last", "channels-first"])
def test_weight_layouts_equal_timms_interpolator(channels_last: bool) -> None:
    weight = noise(24, 8 * 8 * 3)
    timms = PatchEmbedInterpolator((8, 8), 3, 24, channels_last=channels_last)
    expected = timms.resample_linear_weight(weight, (6, 6))
    found = resample_weight(weight, (8, 8), (6, 6), channels_last=channels_last)
    assert found.is_contiguous() and share(found, expected) <= 2e-6
    assert share(resample_weight(weight, (8, 8), (6, 6), channels_last=not channels_last), expected) > 1e-1


def test_own_size_gives_the_weight_itself() -> None:
    kernel = noise(4, 3, 8, 8)
    assert resample_kernel(kernel, (8, 8)) is kernel
    weight = noise(4, 192)
    assert torch.equal(resample_weight(weight, (8, 8), (8, 8)), weight)


def resized(kernel: Tensor, target: tuple[int, int]) -> Tensor:
    return nn.functional.interpolate(kernel, target, mode="bicubic", antialias=True)


def transposed(kernel: Tensor, target: tuple[int, int]) -> Tensor:
    rows, columns = (resampling_matrix(kernel.shape[2 + axis], target[axis]) for axis in (0, 1))
    return rows @ kernel @ columns.mT


def without_antialias(kernel: Tensor, target: tuple[int, int]) -> Tensor:
    return resample_kernel(kernel, target, Resampling(antialias=False))


def axes_swapped(kernel: Tensor, target: tuple[int, int]) -> Tensor:
    return resample_kernel(kernel, target).mT


@pytest.mark.parametrize("wrong", [resized, transposed, without_antialias, axes_swapped], ids=lambda f: f.__name__)
def test_a_wrong_resampling_would_be_seen(wrong: Callable[[Tensor, tuple[int, int]], Tensor]) -> None:
    kernel = noise(8, 3, 16, 16)
    assert share(wrong(kernel, (8, 8)), resample_patch_embed(kernel, [8, 8])) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_resample_in_float32_and_cast(dtype: torch.dtype) -> None:
    kernel = noise(8, 3, 16, 16).to(dtype)
    found, expected = resample_kernel(kernel, (8, 8)), resample_patch_embed(kernel, [8, 8])
    assert found.dtype == expected.dtype == dtype
    assert share(found, expected) <= (2e-6 if dtype == torch.float64 else torch.finfo(dtype).eps)


def test_a_matrix_made_in_inference_mode_serves_training() -> None:
    kernel = noise(2, 3, 5, 5).requires_grad_()
    with torch.inference_mode():
        resample_kernel(kernel, (3, 3))
    resample_kernel(kernel, (3, 3)).sum().backward()
    assert kernel.grad is not None and kernel.grad.abs().sum() > 0


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(nx.RequestError, match="cannot resample 8 samples to 0: expected both lengths to be at least 1"):
        resample_kernel(noise(2, 3, 8, 8), (0, 4))
    with pytest.raises(
        nx.RequestError, match="a weight of 190 values a patch is none of 8x8 patches: expected a multi"
    ):
        resample_weight(noise(2, 190), (8, 8), (4, 4))


# The vectorized model, fed with 5-D patches


def flexible(**options: object) -> nn.Module:
    return tiny.naflexvit(enable_patch_interpolator=True, **options)


def inputs(size: tuple[int, int], channels_last: bool = True, grids: tuple[Grid, ...] = ()) -> tuple[Tensor, ...]:
    height, width = size
    batch = noise_batch("flexi", grids or (Grid(3, 7), Grid(1, 11), Grid(5, 4)), 23, height * width * 3)
    shape = (height, width, 3) if channels_last else (3, height, width)
    return batch.patches.unflatten(2, shape), batch.patch_coord, batch.patch_valid


OPTIONS = [
    pytest.param({}, id="bicubic"),
    pytest.param({"pos_embed_interp_mode": "bilinear"}, id="bilinear"),
    pytest.param({"patchify_channels_last": False}, id="channels-first"),
    pytest.param({"pos_embed_antialias": False}, id="no-antialias-of-the-grid"),
]
PATCHES = [(4, 4), (2, 2), (7, 7), (6, 3)]


@pytest.mark.parametrize("size", PATCHES, ids=lambda size: f"p{size[0]}x{size[1]}")
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_and_gradients_equal_eager(options: dict[str, object], size: tuple[int, int]) -> None:
    eager = flexible(**options).train()
    fast = nx.vectorize(copy.deepcopy(eager))
    given = inputs(size, eager.embeds.channels_last)
    assert share(fast.embeds(*given[:2])[0], eager.embeds(*given[:2])[0]) <= 1e-6
    weight = noise(32, seed=5)
    outputs = [model(*given) for model in (eager, fast)]
    assert share(outputs[1], outputs[0]) <= 1e-5
    for output in outputs:
        (output * weight).sum().backward()
    for (name, expected), found in zip(eager.named_parameters(), fast.parameters(), strict=True):
        if not name.endswith(("kv.bias", "qkv.bias")):  # a bias on the keys cancels in the softmax: rounding noise
            assert share(found.grad, expected.grad) <= 1e-5, name


def test_flat_patches_and_images_keep_working() -> None:
    eager = flexible()
    fast = nx.vectorize(eager)
    patches, coord, valid = inputs((4, 4))
    images = noise(2, 3, 20, 36)
    with torch.no_grad():
        assert share(fast(patches.flatten(2), coord, valid), eager(patches, coord, valid)) <= 1e-5
        assert torch.equal(fast(images), eager(images))


def test_state_and_original_stay_as_they_were() -> None:
    eager = flexible()
    fast = nx.vectorize(eager)
    given = inputs((6, 6))
    with torch.no_grad():
        expected, _ = fast.embeds(*given[:2])
        eager.embeds(*given[:2])
        assert type(eager.embeds.patch_interpolator) is PatchEmbedInterpolator
        assert type(fast.embeds.patch_interpolator) is VectorizedPatchInterpolator
        assert list(fast.state_dict()) == list(eager.state_dict()) == list(tiny.siglip().state_dict())
        again = copy.deepcopy(fast)
        assert torch.equal(again.embeds(*given[:2])[0], expected)
        assert torch.equal(again.to(torch.float64).to(torch.float32).embeds(*given[:2])[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_equals_eager(dtype: torch.dtype) -> None:
    """Matrices are not rounded with the model: a model that was half before and is float32 again gives the same."""
    eager = flexible().to(dtype)
    fast = nx.vectorize(eager)
    patches, coord, _ = inputs((6, 6))
    with torch.no_grad():
        expected, found = (model.embeds(patches.to(dtype), coord)[0] for model in (eager, fast))
    assert found.dtype == expected.dtype == dtype
    assert share(found, expected) <= torch.finfo(dtype).eps


def test_autocast_is_no_further_from_float32_than_eager() -> None:
    """Eager's resampling rounds to bfloat16 under autocast; ours stays in float32, and the projection casts."""
    eager = flexible()
    fast = nx.vectorize(eager)
    patches, coord, _ = inputs((6, 6))
    with torch.no_grad():
        reference, _ = eager.embeds(patches, coord)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, _ = eager.embeds(patches, coord)
            found, _ = fast.embeds(patches, coord)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert share(found, reference) <= share(expected, reference)


@pytest.mark.full
def test_one_compiled_graph_serves_all_other_sizes() -> None:
    eager = flexible()
    compiled = nx.compile(eager, backend="aot_eager")
    with torch.no_grad():
        assert share(compiled(*inputs((6, 6))), eager(*inputs((6, 6)))) <= 1e-5
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in (2, 5, 8, 9):
                given = inputs((size, size))
                assert share(compiled(*given), eager(*given)) <= 1e-5
        for size in ((4, 4), (6, 3), (3, 6)):  # the model's own, and sides that are symbols of their own
            assert share(compiled(*inputs(size)), eager(*inputs(size))) <= 1e-5


@pytest.mark.full
def test_compiled_gradients_equal_eager() -> None:
    eager = flexible().train()
    compiled = nx.compile(copy.deepcopy(eager), backend="aot_eager")
    for model in (eager, compiled):
        model(*inputs((6, 6))).sum().backward()
    expected = eager.embeds.proj.weight.grad
    assert share(compiled.model.embeds.proj.weight.grad, expected) <= 1e-5


def test_prewarming_makes_the_matrices() -> None:
    from naflex_export.resample.patch_kernel import _kept

    fast = nx.vectorize(flexible())
    _kept.clear()
    fast.prewarm_patch_interpolator([8, (6, 2)])
    assert {(source, target) for source, target, *_ in _kept} == {(4, 8), (4, 6), (4, 2)}
