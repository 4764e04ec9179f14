"""Wrong artifacts, to be refused before anything in them runs: each the true one with one fault in its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import tiny
import torch
from torch import nn

from naflex_export.graph.onnx_passes import drop_value_info
from naflex_export.graph.onnx_translate import FILE


def retrained() -> nn.Module:
    """Return the encoder with one weight changed in its last digit, as by one more step of training."""
    model = tiny.shallow()
    with torch.no_grad():
        weight = model.blocks[0].mlp.fc2.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    return model


@dataclass(frozen=True)
class ArtifactMutant:
    """A wrong artifact: what is wrong, what makes it so in the folder, the reference, and what is said of it."""

    fault: str
    change: Callable[[Path], object]
    says: str
    reference: Callable[[], nn.Module] = tiny.shallow


def with_stale_weight(folder: Path) -> None:
    """Write the graph with one weight changed in its last digit."""
    model = ir.load(folder / FILE)
    stored = next(v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size > 99)
    assert stored.const_value is not None
    values = torch.from_numpy(stored.const_value.numpy().copy())
    values.view(-1)[0] = torch.nextafter(values.view(-1)[0], torch.tensor(torch.inf))
    stored.const_value = ir.tensor(values.numpy(), name=stored.name)
    drop_value_info(model)  # what loading has noted, so that the file has its old size
    ir.save(model, folder / FILE)


def move_out(folder: Path) -> None:
    """Put the graph beside the folder, and a link in its place."""
    (folder / FILE).rename(folder.parent / FILE)
    (folder / FILE).symlink_to(folder.parent / FILE)


ARTIFACT_MUTANTS = {
    "stale-weights": ArtifactMutant(
        "The graph is that of an earlier checkpoint: one weight differs in its last digit.",
        with_stale_weight,
        says="is not the file the manifest lists: its sha256 differs",
    ),
    "another-reference": ArtifactMutant(
        "The reference has been trained on since the export: one weight differs in its last digit.",
        lambda folder: None,
        says="are not those the artifact was made from",
        reference=retrained,
    ),
    "cut-short": ArtifactMutant(
        "The graph's file lacks its last byte.",
        lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1]),
        says="bytes, the manifest says",
    ),
    "missing-file": ArtifactMutant(
        "The graph's file is missing.",
        lambda folder: (folder / FILE).unlink(),
        says="is missing from",
    ),
    "further-file": ArtifactMutant(
        "There is a file that the manifest does not list.",
        lambda folder: (folder / "model.onnx.data").write_bytes(b"weights"),
        says="is not in the manifest: remove it",
    ),
    "link-out-of-the-folder": ArtifactMutant(
        "The graph is a link to a file elsewhere, which may change at any time.",
        move_out,
        says="leads out of",
    ),
    "no-manifest": ArtifactMutant(
        "There is no manifest, as after a copy that was cut off.",
        lambda folder: (folder / "manifest.json").unlink(),
        says="is no artifact: it has no manifest.json",
    ),
}
