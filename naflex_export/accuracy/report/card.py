"""The model card of an artifact: `README.md` with the header that model hubs read, written from its manifest alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from naflex_export.accuracy.report.phrases import distance, number
from naflex_export.embed.preprocess import Preprocessor
from naflex_export.errors import RequestError
from naflex_export.models import TRANSFORMERS_PREFIX
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.opened import opened
from naflex_export.serving.publish import staged

CARD = "README.md"

_RUNS = {
    "onnx": "`model.onnx`, which ONNX Runtime runs",
    "trt": "`model.plan`, an engine for TensorRT, and the `model.onnx` that it was built from",
    "aot": "`model.pt2`, native code that AOTInductor compiled for one kind of device",
    "compile": "`model.pt2`, a traced graph that torch compiles where it is loaded",
}


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write an artifact's model card.

    Args:
        folder: the artifact's, its manifest yet to be written.
        manifest: its draft, with the gate's verdict.
    """
    (folder / CARD).write_text(as_card(manifest), encoding="utf-8")


def renew_card(path: Path) -> None:
    """Write the model card of an artifact anew, and of each patch size in it; the artifact is replaced in one step.

    Args:
        path: the artifact's folder.

    Raises:
        ArtifactError: it is no artifact, or not what its manifest says.
        RequestError: it cannot be written.
    """
    top = opened(path, lambda folder: folder.manifest)
    with staged(path) as staging:
        shutil.copytree(path, staging, dirs_exist_ok=True, copy_function=_linked)
        for inner in [*top.by_patch_size.values(), "."]:
            manifest = Manifest.read(staging / inner)
            (staging / inner / CARD).unlink(missing_ok=True)  # the other name of the same file keeps the old one
            write_card(staging / inner, manifest)
            manifest.write(staging / inner)


def _linked(source: str, to: str) -> None:
    """Give a file a second name, or copy it where the disk has no such thing."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


def as_card(manifest: Manifest) -> str:
    """Return the model card: a header for model hubs, what the artifact is, how to run it, and what the gate found."""
    parts = [_header(manifest), f"# {manifest.model_name}, {manifest.target} in {manifest.precision}", _what(manifest)]
    if manifest.model["source"].get("weights") == "random":
        parts.append("**Its weights are random: a dry run, which computes nothing of use.**")
    parts += ["## Run it", _run(manifest), "## Inputs and outputs", _signature(manifest)]
    parts += ["## Accuracy", _gate(manifest), "## Photos", _photos(manifest)]
    parts.append(f"Written by naflex_export {manifest.versions.get('naflex_export', '')} from `manifest.json`.")
    return "\n\n".join(parts) + "\n"


def _header(manifest: Manifest) -> str:
    """Return the YAML header; each value is written as JSON, which YAML includes."""
    fields: dict[str, Any] = {
        "library_name": "naflex_export",
        "pipeline_tag": _task_of(manifest),
        "tags": ["naflex", "siglip2" if "siglip2" in manifest.model["family"].lower() else "vit", manifest.target],
    }
    if base := _base_model(manifest):
        fields["base_model"] = base
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _task_of(manifest: Manifest) -> str:
    if manifest.text is not None:
        return "zero-shot-image-classification"
    return "image-classification" if _is_classifier(manifest) else "image-feature-extraction"


def _is_classifier(manifest: Manifest) -> bool:
    model = manifest.model
    return bool(model.get("num_classes")) or "ForImageClassification" in model["architecture"]


def _base_model(manifest: Manifest) -> str:
    """Return the hub id of what was exported; empty where it is not known to be as it is there."""
    source = manifest.model["source"]
    if source.get("weights") != "pretrained" or source.get("model", "") != manifest.model_name:
        return ""
    name = manifest.model_name
    for prefix in (TRANSFORMERS_PREFIX, "hf-hub:", "hf_hub:"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return f"timm/{name}" if "." in name and ":" not in name else ""


def _what(manifest: Manifest) -> str:
    buckets = ", ".join(f"of up to {one.tokens} tokens in batches of {one.batch[0]} to {one.batch[2]}" for one in
                        manifest.buckets)  # fmt: skip
    runs = _RUNS.get(manifest.target, manifest.target)
    if manifest.target == "onnx":
        needs_gpu = manifest.dtype == "bfloat16" or manifest.precision.quantized == "fp8"
        runs += " on a GPU" if needs_gpu else " without torch"
    said = (
        f"A NaFlex vision transformer for images of any aspect ratio, as {runs}. It takes images {buckets}. Nothing in "
        "it loops over images, and a learned position embedding is resized exactly."
    )
    if manifest.packed:
        said += " The images of a batch follow each other with no padding between them."
    if manifest.by_patch_size:
        sizes = ", ".join(f"`{name}` for {size} pixels" for size, name in manifest.by_patch_size.items())
        said += f" There is an artifact for each patch size: {sizes}."
    if manifest.text is not None:
        said += f" The text tower that it was trained with is in `{manifest.text['folder']}`."
    return said


def _run(manifest: Manifest) -> str:
    lines = ["```python", "import naflex_export as nx", "", *_call(manifest)]
    if manifest.text is not None:
        lines.append('texts = nx.load(".").text(["a photo of a cat"])')
    lines.append("```")
    said = "\n".join(lines)
    if manifest.target != "onnx":
        said += (
            f"\n\nAn artifact of target `{manifest.target}` holds code that runs when it is loaded: load it only if "
            "you know who made it."
        )
    return said


def _call(manifest: Manifest) -> list[str]:
    """Return the lines of Python that run an artifact on a photo; on noise where photos are not prepared by it."""
    if not _prepares_photos(manifest):
        names = [spec.name for spec in manifest.inputs if spec.name != "positions"]
        said = f"{', '.join(names[:-1])} and {names[-1]}"
        example = f'run.example("noise", 1, {manifest.buckets[0].tokens})'
        return ['run = nx.load(".")', f"inputs = {example}  # of your own: {said}", "outputs = run(*inputs)"]
    if "features" not in [spec.name for spec in manifest.outputs]:
        return ['outputs = nx.load(".")(nx.Preprocessor.of(".")(["photo.jpg"]))']
    size = "".join(f", patch_size={size}" for size in list(manifest.by_patch_size)[:1])
    return [f'vectors = nx.Embedder("."{size})(["photo.jpg"])']


def _prepares_photos(manifest: Manifest) -> bool:
    """Return whether an artifact says how photos become its inputs, and this release can do it."""
    try:
        Preprocessor.of_manifest(manifest, patch_size=next(iter(manifest.by_patch_size), None))
    except RequestError:
        return False
    return True


def _signature(manifest: Manifest) -> str:
    rows = [f"- in `{spec}`" for spec in manifest.inputs] + [f"- out `{spec}`" for spec in manifest.outputs]
    if "features" not in [spec.name for spec in manifest.outputs]:
        return "\n".join(rows)
    if _is_classifier(manifest):
        return "\n".join(rows) + "\n\nFeatures are the logits of the classes."
    features = "Features are as the model gives them, not normalised to length 1."
    if manifest.text is not None:
        scoring = manifest.text
        features += (
            f" A photo and a text have the logit `cosine * exp({scoring['logit_scale']:.6g}) + "
            f"{scoring['logit_bias']:.6g}`, and by {scoring['probability']} a probability."
        )
    return "\n".join(rows) + f"\n\n{features}"


def _gate(manifest: Manifest) -> str:
    gate = manifest.gate
    if not gate:
        return "The gate has not judged it."
    worst, limits = gate.get("worst") or {}, gate.get("limits") or {}
    verdict = "passed" if gate.get("passed") else "**FAILED**"
    said = (
        f"The gate {verdict}: {gate.get('cases', 0)} comparisons with the untouched eager model in float32, on "
        f"{gate.get('judged', 'nothing')}{'; ' if gate.get('not_run') else ''}{gate.get('not_run') or ''}."
    )
    rows = ["| worst of all | is | may be |", "|---|--:|--:|"]
    for name, words in (("relative_l2", "relative L2 error"), ("max_share", "largest error, of the largest value")):
        rows.append(f"| {words} | {_number(worst.get(name))} | {_number(limits.get(name))} |")
    cosine, least = worst.get("worst_cosine"), limits.get("worst_cosine")
    if isinstance(cosine, float) and isinstance(least, float):
        rows.append(f"| 1 - cosine of an image | {distance(cosine)} | {distance(least)} |")
    table = "\n".join(rows)
    named = "" if manifest.model["source"].get("model") else " --reference MODEL --weights WEIGHTS"
    return f"{said}\n\n{table}\n\n`gate/report.json` has every case; `naflex-gate .{named}` judges again."


def _number(value: object) -> str:
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)


def _photos(manifest: Manifest) -> str:
    settings = json.dumps(manifest.told_preprocessing, indent=2, ensure_ascii=False)
    if _prepares_photos(manifest):
        made = "`nx.Preprocessor` makes the inputs of photos, bit for bit as the model's own library does, by these"
    else:
        made = "The inputs of photos are made by the model's own library; the export has noted these"
    return (
        f"{made} settings:\n\n```json\n{settings}\n```\n\n"
        "The license is that of the weights: add `license:` to the header before you publish this folder."
    )
