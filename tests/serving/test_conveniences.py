"""What a Runner does for its callers: a card, a warm-up, arrays, other dtypes and large batches."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
import tiny
import torch

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.exporter import export
from naflex_export.grid import Grid
from naflex_export.serving.card import card

BUCKETS = [nx.Bucket(9, (1, 2, 3))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conveniences") / "a"
    return export(tiny.shallow(), "onnx", folder, BUCKETS, outputs=("features", "tokens"), effort="quick").path


@pytest.fixture
def run(path: Path) -> nx.Runner:
    return nx.load(path, device="cpu")


def given(images: int) -> tuple[torch.Tensor, ...]:
    batch = noise_batch("given", [Grid(3, 3), Grid(2, 4), Grid(1, 5)] * 3, 9, 48)
    return tuple(tensor[:images] for tensor in (batch.patches, batch.patch_coord, batch.patch_valid))


def test_a_runner_shows_what_it_is(run: nx.Runner) -> None:
    lines = repr(run).splitlines()
    assert lines[0].startswith("OnnxRunner: naflexvit") and lines[0].endswith(", onnx in float32, on cpu")
    assert "  in   patches: float32 [batch, tokens, 48]" in lines and any("9:1,2,3" in line for line in lines)
    assert lines[-1].startswith("  gate: passed, on the artifact, on cpu, worst relative L2 ")


def test_what_runs_without_torch_shows_itself_likewise(path: Path, run: nx.Runner) -> None:
    found, expected = repr(nx.load_numpy(path, device="cpu")).splitlines(), repr(run).splitlines()
    assert found == ["NumpyRunner" + expected[0].removeprefix("OnnxRunner"), *expected[1:]]


KEPT = [f"blocks.{number}.mlp.fc2" for number in range(8)]
SOURCE = {"model": "naflexvit_so400m_patch16_siglip.v2_webli", "weights": "/home/her/runs of november/best.pth.tar"}


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"build": {"quantized": {"to": "int8", "keep_unquantized": KEPT}}}, "       blocks."),
        (
            {"kind": "patch sizes", "build": {"entry_points": {str(n): f"patch{n}" for n in range(4, 40)}}},
            "  patch sizes: 4",
        ),
        ({"model": {"source": SOURCE, "text": {"probability": "sigmoid"}}}, "  text tower: run.text"),
        ({"buckets": tuple(nx.Bucket(n * 64, (1, 8, 32)) for n in range(1, 12))}, "       "),
        (
            {"gate": {"passed": True, "judged": "the artifact, on cpu; " * 5, "worst": {"relative_l2": 1e-7}}},
            "  gate: passed",
        ),
    ],
    ids=["int8", "sizes", "text", "buckets", "gate"],
)
def test_a_card_fits_80_columns(said: dict[str, Any], line: str) -> None:
    lines = card(artifacts.manifest(**{"model": {"source": SOURCE}, **said}), "PatchSizesRunner", "cuda:0").splitlines()
    assert max(map(len, lines)) <= 80 and any(one.startswith(line) for one in lines[1:])
    assert lines[0].startswith(f"PatchSizesRunner: {SOURCE['model']}, onnx in")


@pytest.mark.parametrize("load", [nx.load, nx.load_numpy], ids=["torch", "numpy"])
def test_what_is_closed_holds_nothing_and_refuses_calls(path: Path, load: Callable[..., Any]) -> None:
    arrays = [tensor.numpy() for tensor in given(2)]
    with load(path, device="cpu") as run:
        run(*arrays)
        session, held = weakref.ref(run._session), handles_of(path)
        assert held
    assert session() is None and not handles_of(path)
    for asks in (lambda: run(*arrays), lambda: run.text, run.__enter__):
        with pytest.raises(nx.ClosedError, match=f"this {type(run).__name__} was closed: load the artifact again"):
            asks()
    run.close()
    assert repr(run).startswith(f"{type(run).__name__}, closed: naflexvit") and run.manifest.target == "onnx"


@pytest.mark.parametrize("load", [nx.load, nx.load_numpy], ids=["torch", "numpy"])
def test_what_nothing_refers_to_holds_nothing(path: Path, load: Callable[..., Any]) -> None:
    run = load(path, device="cpu")
    session = weakref.ref(run._session)
    del run
    assert session() is None and not handles_of(path)


def handles_of(path: Path) -> list[str]:
    """Return what this process has open of a folder."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("only Linux says what is open")
    found = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return [name for name in found if name.startswith(str(path))]


def test_warmup_runs_each_size_of_each_bucket(run: nx.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    true, seen = run.execute, []
    monkeypatch.setattr(run, "execute", lambda inputs: (seen.append(tuple(inputs[0].shape)), true(inputs))[1])
    assert run.warmup() is run
    assert seen == [(1, 9, 48), (2, 9, 48), (3, 9, 48)]


def test_arrays_in_give_the_same_arrays_out(run: nx.Runner) -> None:
    tensors = given(2)
    arrays = [tensor.numpy() for tensor in tensors]
    arrays[0].flags.writeable = False
    found, expected = run(*arrays), run(*tensors)
    assert isinstance(found, dict) and isinstance(expected, dict)
    for name, output in expected.items():
        assert isinstance(found[name], np.ndarray)
        np.testing.assert_array_equal(found[name], output.numpy())
    mixed = "patches is a numpy array and patch_coord a torch tensor: expected all of one kind"
    with pytest.raises(nx.InputError, match=mixed):
        run(arrays[0], *tensors[1:])


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rows-from-the-last": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "columns-first": np.asfortranarray,
    "every-second": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "other-byte-order": lambda array: array.astype(array.dtype.newbyteorder("S")),
    "not-aligned": lambda array: np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_may_lie_in_memory_in_any_way(run: nx.Runner, layout: str) -> None:
    arrays = [tensor.numpy() for tensor in given(2)]
    found, expected = run(*map(LAYOUTS[layout], arrays)), run(*arrays)
    assert isinstance(found, dict) and isinstance(expected, dict)
    np.testing.assert_array_equal(found["features"], expected["features"])


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float64", r"patches is float64: expected float32; cast it with \.astype\('float32'\)"),
        ("uint8", "patches is uint8: expected float32"),
        ("O", "patches is object: expected float32"),
        ("U3", "patches is <U3: expected float32"),
    ],
)
def test_arrays_of_another_dtype_are_refused_as_arrays(run: nx.Runner, dtype: str, message: str) -> None:
    patches, *others = (tensor.numpy() for tensor in given(2))
    wrong: Any = np.zeros(patches.shape, dtype)
    with pytest.raises(nx.InputError, match=message):
        run(wrong, *others)
    run.cast = True
    if dtype == "float64":
        run(wrong, *others)
        return
    with pytest.raises(nx.InputError, match=message):
        run(wrong, *others)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy, copy.copy])
def test_what_was_loaded_is_neither_pickled_nor_copied(path: Path, copied: Callable[[object], object]) -> None:
    """A copy of a folder's handle would close it a second time, when another file has its number."""
    run = nx.load_numpy(path)
    for held in (nx.load(path), run, nx.Embedder(path), run._folder.handle):
        with pytest.raises(nx.RequestError, match=rf"a {type(held).__name__} .* load it again where it is needed"):
            copied(held)


def test_another_dtype_is_cast_only_where_that_is_asked_for(run: nx.Runner) -> None:
    patches, *others = given(2)
    with pytest.raises(nx.InputError, match="patches is float64: expected float32"):
        run(patches.double(), *others)
    run.cast = True
    torch.testing.assert_close(run(patches.double(), *others), run(patches, *others), rtol=0, atol=0)


def test_a_large_batch_is_split_only_where_that_is_asked_for(run: nx.Runner) -> None:
    inputs = given(8)
    with pytest.raises(nx.InputError, match="fits no bucket"):
        run(*inputs)
    run.split = True
    found = run(*inputs)
    alone = [run(*(tensor[index : index + 1] for tensor in inputs)) for index in range(8)]
    assert isinstance(found, dict)
    for name, output in found.items():
        assert len(output) == 8
        torch.testing.assert_close(output, torch.cat([one[name] for one in alone]), rtol=1e-5, atol=1e-5)
    with pytest.raises(nx.InputError, match="10 tokens are more than any bucket takes"):
        run(torch.zeros(5, 10, 48), torch.zeros(5, 10, 2, dtype=torch.int64), torch.ones(5, 10, dtype=torch.bool))
