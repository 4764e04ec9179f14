"""An ONNX artifact runs on numpy arrays with the checks and the words of `load`, where there is no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from blocked import BLOCKED, run_blocked

import naflex_export as nx
from naflex_export.accuracy.photos import load_photos
from naflex_export.serving.manifest import MANIFEST

Arrays = dict[str, np.ndarray]

ALONE = """
import numpy as np
import naflex_export as nx

given = dict(np.load(f"{folder}/given.npz"))
found = {"from_arrays": nx.load_numpy(f"{folder}/a")(given)}
found["from_photos"] = nx.load_numpy(f"{folder}/a")(nx.Preprocessor.of(f"{folder}/a")([f"{folder}/photo.png"]))
np.savez(f"{folder}/found.npz", **found)
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded - set(sys.stdlib_module_names)))
try:
    nx.load(f"{folder}/a")
except nx.BackendError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shallow_artifact: Path) -> Path:
    """A folder with an artifact `a`, the inputs of a call and a photo."""
    made = tmp_path_factory.mktemp("numpy")
    shutil.copytree(shallow_artifact, made / "a")
    photo = load_photos().images["coffee.jpg"]
    photo.save(made / "photo.png")
    np.savez(made / "given.npz", **nx.Preprocessor.of(made / "a")([photo, photo]))
    return made


def given_in(folder: Path) -> Arrays:
    return dict(np.load(folder / "given.npz"))


def test_it_runs_where_there_is_no_torch(folder: Path) -> None:
    blocked = [name for name in (*BLOCKED, "torch", "rich", "click") if name != "PIL"]
    done = run_blocked(ALONE, folder, blocked)
    assert done.returncode == 0, done.stderr
    libraries, said = done.stdout.splitlines()
    assert {"numpy", "PIL", "onnxruntime"} <= set(libraries.split()) and not set(libraries.split()) & set(blocked)
    assert said.startswith("package 'torch' is missing: nx.load_numpy runs ONNX artifacts without it")
    with torch.no_grad():
        expected = tiny.shallow()(*map(torch.from_numpy, given_in(folder).values())).numpy()
    found = np.load(folder / "found.npz")
    assert np.abs(found["from_arrays"] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(found["from_photos"] - expected[:1]).max() <= 1e-5 * np.abs(expected).max()


def _set(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: change(arrays[name].copy())}


def _put(name: str, where: Any, value: Any) -> Callable[[Arrays], Arrays]:
    def change(array: np.ndarray) -> np.ndarray:
        array[where] = value
        return array

    return _set(name, change)


WRONG: dict[str, Callable[[Arrays], Arrays]] = {
    "dtype": _set("patches", lambda a: a.astype(np.float64)),
    "rank": _set("patches", lambda a: a[0]),
    "width": _set("patches", lambda a: a[..., :-1]),
    "batch": _set("patch_valid", lambda a: a[:1]),
    "empty": lambda arrays: {name: array[:0] for name, array in arrays.items()},
    "too-many-images": lambda arrays: {name: np.concatenate([array] * 3) for name, array in arrays.items()},
    "too-many-tokens": lambda arrays: {name: np.concatenate([array] * 2, axis=1) for name, array in arrays.items()},
    "gaps": _put("patch_valid", (1, 0), False),
    "no-token": _put("patch_valid", 0, False),
    "negative": _put("patch_coord", (0, 3), -1),
    "swapped": _set("patch_coord", lambda a: a[..., ::-1]),
    "enormous": _put("patch_coord", (0, 0), 2**62),
    "missing": lambda arrays: {name: array for name, array in arrays.items() if name != "patch_valid"},
    "unknown": lambda arrays: {**arrays, "mask": arrays["patch_valid"]},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_refused_in_the_same_words(folder: Path, wrong: Callable[[Arrays], Arrays]) -> None:
    arrays = wrong(given_in(folder))
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    with pytest.raises(nx.InputError) as of_tensors:
        nx.load(folder / "a")(tensors)
    with pytest.raises(nx.InputError) as of_arrays:
        nx.load_numpy(folder / "a")(arrays)
    assert str(of_arrays.value).replace(".astype('float32')", ".to(torch.float32)") == str(of_tensors.value)


def test_a_list_is_no_array(folder: Path) -> None:
    arrays: Any = list(given_in(folder).values())
    with pytest.raises(nx.InputError, match="patches is a list: expected a numpy array"):
        nx.load_numpy(folder / "a")(arrays[0].tolist(), *arrays[1:])


def test_what_padding_holds_does_not_matter(folder: Path) -> None:
    run, arrays = nx.load_numpy(folder / "a", threads=1), given_in(folder)
    wanted = run(arrays)
    assert not arrays["patch_valid"].all()
    arrays["patches"][~arrays["patch_valid"]] = np.nan
    assert np.array_equal(run(arrays), wanted)
    run.check_inputs = False
    assert np.isnan(run(arrays)).any()


def test_files_are_verified_by_content_or_by_size(folder: Path, tmp_path: Path) -> None:
    """Both loads take the same choice; a file of another size is refused by either."""
    import shutil

    copy = Path(shutil.copytree(folder / "a", tmp_path / "a"))
    report = copy / "gate" / "report.json"
    report.write_bytes(report.read_bytes()[:-1] + b" ")
    for load in (nx.load, nx.load_numpy):
        with pytest.raises(nx.ArtifactError, match="its sha256 differs"):
            load(copy)
        load(copy, verify="size")
        with pytest.raises(nx.RequestError, match="verify='none': expected 'full' or 'size'"):
            load(copy, verify="none")
    report.write_bytes(report.read_bytes() + b" ")
    for load in (nx.load, nx.load_numpy):
        with pytest.raises(nx.ArtifactError, match="bytes, the manifest says"):
            load(copy, verify="size")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"target": "compile"}, nx.BackendError, "of target 'compile', which torch runs"),
        ({"dtype": "bfloat16"}, nx.BackendError, "in bfloat16, which numpy has not"),
    ],
    ids=["target", "bfloat16"],
)
def test_what_numpy_cannot_run_is_said(
    folder: Path, tmp_path: Path, change: dict[str, str], error: type[Exception], said: str
) -> None:
    import shutil

    from artifacts import edit

    copy = Path(shutil.copytree(folder / "a", tmp_path / "a"))

    def put(fields: dict[str, Any]) -> None:
        fields.update(change)
        if "dtype" in change:
            fields["inputs"][0]["dtype"] = change["dtype"]

    edit(copy, put)
    with pytest.raises(error, match=said):
        nx.load_numpy(copy)


def test_arguments_that_are_not_possible_are_refused(folder: Path) -> None:
    for device in ("tpu", "cpu:1", "cuda:x"):
        with pytest.raises(nx.RequestError, match=f"device '{device}' is not served"):
            nx.load_numpy(folder / "a", device=device)
    with pytest.raises(nx.RequestError, match="threads=0: expected"):
        nx.load_numpy(folder / "a", threads=0)
    with pytest.raises(nx.ArtifactError, match=f"it has no {MANIFEST}"):
        nx.load_numpy(folder)
