"""Check the models on older and newer releases of timm, transformers and ONNX Runtime, each installed beside the rest.

    python tools/check_versions.py timm==1.0.19 timm==1.0.30 transformers==5.17.0 onnxruntime==1.32.0
    python tools/check_versions.py timm==1.0.19=/folder/it/was/installed/in
    python tools/check_versions.py here            (the environment as it is)
    python tools/check_versions.py --page          (write docs/versions.md from the rows)

A release is installed without its dependencies into a folder of its own, which a child process puts ahead of the
environment's own packages. In it every configuration that the release can build is vectorized and compared with the
release's own eager model, on mixed grids with padding; some go through ONNX Runtime too. Rows go to
`tools/results/versions.csv`, one a configuration.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from markdown_text import table
from record import RESULTS, ROOT, about, append, newest, read
from torch import Tensor, nn

import naflex_export as nx
from naflex_export.accuracy.reference import SoundInterpolate
from naflex_export.batch import Batch, noise_batch
from naflex_export.errors import UnsupportedModelError
from naflex_export.graph.build_settings import BuildSettings
from naflex_export.graph.onnx_translate import FILE, write_onnx
from naflex_export.graph.trace import trace
from naflex_export.grid import Grid
from naflex_export.models import adapter_of
from naflex_export.models.model_sources import randomize

ROWS, PAGE = RESULTS / "versions.csv", ROOT / "docs" / "versions.md"
CHECKED = ("python", "torch", "timm", "transformers", "onnxruntime")
FIELDS = ("date", "commit", *CHECKED, "asked", "configuration", "outcome", "error", "onnx_error", "why")
LIMIT = 1e-5
GRIDS = (Grid(3, 7), Grid(1, 24), Grid(24, 1), Grid(4, 4), Grid(1, 1), Grid(5, 6))
BATCH = noise_batch("versions", GRIDS, tokens=30, token_width=48)

TIMM: dict[str, dict[str, Any]] = {
    "learned": {},
    "bicubic": {"pos_embed_interp_mode": "bicubic"},
    "keep aspect": {"pos_embed_ar_preserving": True},
    "grid_sample": {"pos_embed_use_grid_sample": True},
    "factorized": {"pos_embed": "factorized"},
    "map pooling, no class token": {"class_token": False, "global_pool": "map"},
    "max pooling, registers": {"reg_tokens": 4, "global_pool": "max"},
    "other patch sizes": {"enable_patch_interpolator": True},
    "no antialias": {"pos_embed_antialias": False},
    "align corners": {"pos_embed_antialias": False, "pos_embed_align_corners": True},
    "key-only mask": {"use_key_only_attn_mask": True},
    "RoPE": {"pos_embed": "none", "rope_type": "axial"},
    "RoPE beside a learned grid": {"rope_type": "axial", "rope_grid_indexing": "xy"},
    "RoPE with a reference shape": {"rope_type": "axial", "rope_ref_feat_shape": (5, 6)},
    "RoPE, halves rotated": {"rope_type": "axial", "rope_rotate_half": True},
    "mixed RoPE": {"pos_embed": "none", "rope_type": "mixed"},
    "DINOv3's RoPE": {"pos_embed": "none", "rope_type": "dinov3"},
    "MRoPE": {"pos_embed": "none", "rope_type": "mrope", "rope_mrope_section": (2, 3, 3)},
}
TRANSFORMERS = ("vision tower", "headless tower", "images and texts", "image classifier")
THROUGH_ONNX = ("learned", "RoPE", "vision tower", "image classifier")


def main() -> None:
    """Check what is asked for, or write the page."""
    asked = sys.argv[1:]
    if asked == ["--page"]:
        PAGE.write_text(page(read(ROWS)), encoding="utf-8")
        return
    if asked[:1] == ["--inside"]:
        for row in checked(asked[1]):
            print(json.dumps(row), flush=True)
        return
    unknown = [one for one in asked if one != "here" and "==" not in one]
    if unknown:
        sys.exit(f"{unknown[0]!r} is no release, such as timm==1.0.19, and not 'here' or --page\n\n{__doc__}")
    for one in asked or ["here"]:
        append(ROWS, FIELDS, check_beside(one))


def check_beside(asked: str) -> list[dict[str, str]]:
    """Return the rows of a release, `name==version` or `name==version=folder`, found by a process that imports it."""
    name, _, folder = asked.partition("==")[2].partition("=") if "==" in asked else (asked, "", "")
    release = asked.partition("==")[0] + (f"=={name}" if "==" in asked else "")
    with tempfile.TemporaryDirectory() as made:
        if "==" in asked and not folder:
            folder = made
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, release]
            subprocess.run(command, check=True)
        path = os.pathsep.join([*([folder] if folder else []), str(ROOT), str(ROOT / "tools")])
        command = [sys.executable, __file__, "--inside", release]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True
        )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    counts = Counter(row["outcome"] for row in rows)
    print(release, dict(counts), *(f"{row['configuration']}: {row['why']}" for row in rows if row["why"]), sep="\n  ")
    return rows


def checked(asked: str) -> Iterator[dict[str, str]]:
    """Yield the row of every configuration, in the process that the release is imported in."""
    head = {key: value for key, value in about("cpu").items() if key in FIELDS}
    head |= {package: _version(package) for package in CHECKED}
    kinds: dict[str, Callable[[], nn.Module | None]] = {}
    if not asked.startswith("transformers"):
        kinds |= {f"timm: {name}": lambda options=options: timm_model(options) for name, options in TIMM.items()}
    if not asked.startswith("timm"):
        kinds |= {f"transformers: {name}": lambda name=name: transformers_model(name) for name in TRANSFORMERS}
    for name, make in kinds.items():
        yield {**head, "asked": asked, "configuration": name, **_outcome(name, make)}


def _outcome(name: str, make: Callable[[], nn.Module | None]) -> dict[str, str]:
    try:
        model = make()
        if model is None:
            return {"outcome": "absent", "why": "the release has no such option"}
        randomize(model.eval(), seed=1)
        with torch.no_grad(), SoundInterpolate():  # of one column, torch's own resize is wrong
            expected = eager(model)
    except Exception as error:  # the release's own fault
        return {"outcome": "eager fails", "why": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    try:
        with torch.no_grad():
            error = share(eager(nx.vectorize(model)), expected)
        onnx_error = share(through_onnx(model), expected) if name.partition(": ")[2] in THROUGH_ONNX else None
    except UnsupportedModelError as refused:
        return {"outcome": "refused", "why": str(refused)}
    except Exception as fault:
        return {"outcome": "fails", "why": f"{type(fault).__name__}: {str(fault).splitlines()[0][:200]}"}
    worst = max(error, onnx_error or 0.0)
    found = {"error": f"{error:.2e}", "onnx_error": "" if onnx_error is None else f"{onnx_error:.2e}", "why": ""}
    return {"outcome": "passes" if worst <= LIMIT else "fails", **found}


def timm_model(options: dict[str, Any]) -> nn.Module | None:
    """Return a tiny NaFlexVit, None where the release does not have an option."""
    from timm.layers import pos_embed_sincos
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    if set(options) - {field.name for field in fields(NaFlexVitCfg)}:
        return None
    if options.get("rope_type") == "dinov3" and not hasattr(pos_embed_sincos, "RotaryEmbeddingDinoV3"):
        return None
    tiny = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "class_token": True}
    usual = {"pos_embed": "learned", "pos_embed_grid_size": (5, 6), "global_pool": "avg"}
    return NaFlexVit(NaFlexVitCfg(**{**tiny, **usual, **options}), num_classes=5)


def transformers_model(name: str) -> nn.Module:
    """Return a tiny SigLIP 2 of a kind."""
    import transformers

    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
        "num_patches": 25, "vision_use_head": name != "headless tower",
    }  # fmt: skip
    if name in ("vision tower", "headless tower"):
        return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**vision))
    words = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    text = {key: value for key, value in vision.items() if key not in ("patch_size", "num_patches", "vision_use_head")}
    config = transformers.Siglip2Config(vision_config=vision, text_config={**text, **words}, num_labels=3)
    kind = transformers.Siglip2Model if name == "images and texts" else transformers.Siglip2ForImageClassification
    return kind(config)


def eager(model: nn.Module, batch: Batch = BATCH) -> Tensor:
    """Return the first of a model's default outputs by the model's own call, or its valid tokens."""
    adapter = adapter_of(model)
    (name,) = adapter.default_outputs
    given = adapter.unpack(adapter.tower(*adapter.input_format.arrange(batch)))
    found = given[name] if isinstance(given, dict) else given
    return found[batch.patch_valid] if name == "tokens" else found


def through_onnx(model: nn.Module) -> Tensor:
    """Return the same of ONNX Runtime."""
    import onnxruntime

    adapter = adapter_of(model)
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(trace(adapter, [nx.Bucket(64)], outputs=adapter.default_outputs), Path(folder), BuildSettings(), 23)
        session = onnxruntime.InferenceSession(str(Path(folder) / FILE), providers=["CPUExecutionProvider"])
        names = adapter.input_format.names
        arrays = [tensor.numpy() for tensor in adapter.input_format.arrange(BATCH)]
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])


def share(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


PYTHON_314 = """## Python 3.14

The default tests were run on Python 3.14.8 too, with torch 2.14.1, Triton 3.8.0 and transformers 5.24.0, without a GPU,
on 2026-11-27. One thing failed and fails still: Triton did not compile three of the kernels for GPUs
(`tests/resample/test_resample_gpu.py`), so take an older Python where there is one."""
"""What no row says: of the tests themselves."""


def page(rows: Sequence[dict[str, str]]) -> str:
    """Return the page for the docs: a row for each release, and what does not pass."""
    kept = newest(rows, ("asked", "python", "torch", "configuration"))
    releases = list(dict.fromkeys((row["asked"], *(row[package] for package in CHECKED)) for row in kept))
    lines = []
    for asked, *versions in sorted(releases):
        own = [row for row in kept if (row["asked"], *(row[package] for package in CHECKED)) == (asked, *versions)]
        counts = Counter(row["outcome"] for row in own)
        errors = [float(row[key]) for row in own for key in ("error", "onnx_error") if row[key]]
        tally = [str(counts[outcome]) for outcome in ("passes", "refused", "absent", "eager fails", "fails")]
        lines.append([asked, *versions, *tally, f"{max(errors, default=0.0):.1e}"])
    head = ["release", *CHECKED, "pass", "refused", "absent", "eager fails", "fail", "worst error"]
    others = [[row["asked"], row["configuration"], row["outcome"], row["why"]] for row in kept
              if row["outcome"] not in ("passes", "absent")]  # fmt: skip
    return "\n".join(
        [
            "# Releases",
            "",
            "Written from `tools/results/versions.csv` by `python tools/check_versions.py --page`; do not edit.",
            "",
            "Each release was installed beside the other packages, and every configuration that it can build was "
            "vectorized and compared with the release's own eager model, on mixed grids with padding; some went "
            "through ONNX Runtime too. An error is the largest difference as a share of the largest value, and fails "
            f"above {LIMIT:g}. *Absent*: the release has no such option. *Eager fails*: its own model raises.",
            "",
            table(head, lines),
            "",
            "## What does not pass",
            "",
            table(["release", "configuration", "outcome", "why"], others),
            "",
            PYTHON_314,
            "",
        ]
    )


def _version(package: str) -> str:
    if package == "python":
        return ".".join(map(str, sys.version_info[:2]))
    for name in (package, f"{package}-gpu") if package == "onnxruntime" else (package,):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


if __name__ == "__main__":
    main()
