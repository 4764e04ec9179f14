"""Faults of serving/: artifacts on a disk, and the inputs of a call."""

from __future__ import annotations

from code_mutants.mutant import CodeMutant

MANIFEST = ("tests/serving/test_manifest.py",)
RUNNER = ("tests/serving/test_runner.py::test_inputs_outside_the_artifact_are_refused",)

SERVING = (
    CodeMutant(
        "a width of zero is divided by in the check of coordinates",
        "serving/input_formats.py",
        "width_B1 = np.maximum(grid_B2[:, 1:], 1)",
        "width_B1 = grid_B2[:, 1:]",
        RUNNER,
    ),
    CodeMutant(
        "coordinates of padding are not looked at",
        "serving/input_formats.py",
        "wrong_B = (coord_BN2 != expected).any(axis=(1, 2))",
        "wrong_B = ((coord_BN2 != expected) & valid_BN[..., None]).any(axis=(1, 2))",
        RUNNER,
    ),
    CodeMutant(
        "links inside an artifact are followed",
        "serving/manifest.py",
        "if path.is_symlink() or not path.resolve()",
        "if not path.resolve()",
        MANIFEST,
    ),
    CodeMutant(
        "links to folders inside an artifact are followed",
        "serving/manifest.py",
        "return path.is_dir() and not path.is_symlink()",
        "return path.is_dir()",
        MANIFEST,
    ),
    CodeMutant(
        "the destination is not looked at again before the swap",
        "serving/publish.py",
        "    check_destination(out)\n    old = None\n",
        "    old = None\n",
        MANIFEST,
    ),
    CodeMutant(
        "the old artifact is not put back",
        "serving/publish.py",
        "        old.rename(out)\n        raise\n",
        "        raise\n",
        MANIFEST,
    ),
    CodeMutant(
        "an artifact is its owner's alone",
        "serving/publish.py",
        "            folder.chmod(0o755)\n",
        "",
        MANIFEST,
    ),
)
