"""What an artifact is, in a few lines: how what was loaded shows itself, with torch or without."""

from __future__ import annotations

import textwrap

from naflex_export.serving.manifest import Manifest
from naflex_export.serving.zero_shot import Scoring


def card(manifest: Manifest, kind: str, device: object) -> str:
    """Return what an artifact is, what it takes and gives, and what the gate said of it.

    Args:
        manifest: its own.
        kind: of what runs it.
        device: where it runs.
    """
    source = manifest.model.get("source", {})
    name = source.get("model") or manifest.model.get("architecture") or manifest.model.get("family", "a model")
    weights = source.get("weights", "")
    precision = ", ".join(word.strip() for word in str(manifest.precision).split(","))
    lines = [f"{kind}: {name}, {manifest.target} in {precision}, on {device}"]
    lines += [f"  in   {spec}" for spec in manifest.inputs]
    lines += [f"  out  {spec}" for spec in manifest.outputs]
    if sizes := ", ".join(map(str, manifest.by_patch_size)):
        lines.append(f"  patch sizes: {sizes} (run[{next(iter(manifest.by_patch_size))}] is one)")
    if manifest.text is not None:
        lines.append(f"  text tower: run.text([...]) gives vectors, scored by {manifest.text['probability']}")
    lines += [f"  buckets (tokens:least,usual,most images): {'; '.join(map(str, manifest.buckets))}"]
    if weights:
        lines.append(f"  weights: {'random, a dry run' if weights == 'random' else weights}")
    return _folded([*lines, _gate_line(manifest)])


def text_card(manifest: Manifest, scoring: Scoring) -> str:
    """Return what a text tower is, how its vectors are scored, and what the gate said of it.

    Args:
        manifest: its own.
        scoring: what makes logits of cosines.
    """
    length, width = manifest.inputs[0].shape[-1], manifest.outputs[0].shape[-1]
    lines = [
        f"TextEncoder: {manifest.model['architecture']}, {manifest.target} in {manifest.precision}",
        f"  texts of {length} tokens, longer ones are cut; vectors [texts, {width}], "
        + ("at length 1" if scoring.normalized else "not normalised"),
        f"  score: {scoring.probability} of cosine * exp({scoring.logit_scale:.6g}) + {scoring.logit_bias:.6g}",
    ]
    return _folded([*lines, _gate_line(manifest)])


def _folded(lines: list[str]) -> str:
    """Return lines as a text of at most 80 columns, but for words that are longer."""
    wrapper = textwrap.TextWrapper(80, subsequent_indent=" " * 7, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(wrapper.fill, lines))


def _gate_line(manifest: Manifest) -> str:
    gate = manifest.gate
    if not gate:
        return "  gate: no verdict"
    error = gate.get("worst", {}).get("relative_l2")
    figure = f", worst relative L2 {error:.1e}" if isinstance(error, float) else ""
    return f"  gate: {'passed' if gate.get('passed') else 'FAILED'}, on {gate.get('judged', '?')}{figure}"
