"""What to try where a candidate leaves the reference: from a tap's numbers and its module's name, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from naflex_export.accuracy.results import Tap
from naflex_export.models.kept_parts import PartsByName

NEAR = 0.25
"""Share of a dtype's range from which a module is too close to it: sums inside are larger than what it gives."""

ROUNDING = 5.0
"""How many times its floor a module's error may be and still be one of rounding, done otherwise than eager does."""

AS_EAGER = 2.0
"""How many times eager's own error a module's may be and still be the dtype's, where eager is too far off as well."""

TF32 = 3e-3
"""Relative error in float32 of a backend that quietly computes with fewer digits; TF32 measures 3e-4 to 8e-4."""


BY_NAME = PartsByName()

_OUTPUT = "output "


def output_tap(name: str) -> str:
    """Return what an output is called among the taps."""
    return _OUTPUT + name


def is_output(module: str) -> bool:
    """Whether a tap is of an output, not of a module."""
    return module.startswith(_OUTPUT)


def to_keep(
    tap: Tap, kept: Sequence[str] = (), *, is_coarse: bool = False, parts: PartsByName = BY_NAME
) -> tuple[str, ...]:
    """Return what to keep in float32 on account of a module, besides what is: nothing where all of it is.

    A module whose own values are near the end of the range spoils what they are added to, too: what reads them must be
    kept with it. Where the dtype is too coarse, a norm of the stream of tokens, which sums in float32 as it is, is off
    because the stream has lost digits.

    Args:
        tap: of the module.
        kept: what is in float32 already.
        is_coarse: whether eager in the dtype is too far off as well.
        parts: what is known of the model's parts.
    """
    for wanted in (_wanted(tap, is_coarse, parts), _around(tap, parts)):
        more = tuple(name for name in wanted if name and not any(_is_part(name, one) for one in kept))
        with_more = parts.adding((*kept, *more))
        if found := tuple(name for name in more if name in with_more):
            return found
    return ()


def _wanted(tap: Tap, is_coarse: bool, parts: PartsByName) -> tuple[str, ...]:
    """Return all that is to be kept on account of a module."""
    if is_output(tap.module):
        return ("pooling",)
    names = tap.module.split(".")
    is_large = math.isfinite(tap.reference_max_abs) and tap.reference_max_abs >= NEAR * tap.dtype_max
    in_block, is_norm = any(map(str.isdecimal, names)), "norm" in names[-1]
    if is_coarse and is_norm and (in_block or len(names) == 1):
        return ("residual", "norm")
    if is_large and (parts.stage_of(tap.module) or (in_block and is_norm)):
        return _around(tap, parts)  # kept alone, it would still give 16 bits
    if is_large and in_block:
        return ("residual", "norm", *(() if names[-1].isdecimal() else (parts.keepable(tap.module),)))
    return (parts.keepable(tap.module),)


def _around(tap: Tap, parts: PartsByName) -> tuple[str, ...]:
    """Return what keeps a module together with all that is around it: its block, or what runs ahead of or after all."""
    names, stage = tap.module.split("."), parts.stage_of(tap.module)
    if stage:
        return ("residual", "norm", "embedding") if stage == "embedding" else (stage,)
    block = next((place for place, name in enumerate(names) if name.isdecimal()), None)
    return () if block is None else (".".join(names[: block + 1]),)


def _is_part(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def advice_on(
    tap: Tap,
    dtype: str,
    kept: Sequence[str] = (),
    *,
    is_coarse: bool = False,
    eager: float = 0.0,
    parts: PartsByName = BY_NAME,
) -> str:
    """Return what to try about the first tap that leaves its floor.

    Args:
        tap: it.
        dtype: the candidate's.
        kept: what of the candidate is in float32 all the same.
        is_coarse: whether eager in that dtype is too far off as well.
        eager: error of the same module in eager in that dtype, where it is known.
        parts: what is known of the model's parts.
    """
    if dtype == "float32":
        return f"{_reach(tap, dtype)}: {_float32(tap)}"
    if is_coarse and (stream := to_keep(tap, kept, is_coarse=True, parts=parts))[:1] == ("residual",):
        named = _named(kept, stream, parts)
        return f"the stream of tokens that it reads has lost digits: keep that in float32 (--keep-float32 {named})"
    keep = _keep(dtype, "this module", tap, kept, parts)
    if _largest(tap) >= NEAR * tap.dtype_max:
        return f"{_reach(tap, dtype)}: {keep}"
    if not math.isfinite(tap.max_abs):
        return f"not finite, though the reference reaches only {_largest(tap):.1e}: a sum or product overflows; {keep}"
    if tap.relative_l2 <= max(ROUNDING * tap.floor, AS_EAGER * eager):  # what eager does is no fault of the graph
        return (
            f"{_reach(tap, dtype)}, within range: it needs more digits; {_kept(dtype, 'this module', tap, kept, parts)}"
        )
    return f"{_reach(tap, dtype)}, within range: {_something_else(tap.module)}"


def advice_without(
    dtype: str,
    overflows: Tap | None,
    breaks: bool,
    shown_breaks: bool,
    *,
    kept: Sequence[str] = (),
    parts: PartsByName = BY_NAME,
) -> str:
    """Return what to try where a candidate failed and no tap leaves its floor.

    Args:
        dtype: the candidate's.
        overflows: the first tap where eager in that dtype is not finite, if there is one.
        breaks: whether the candidate's outputs are beyond the limits on the same images.
        shown_breaks: whether those of what showed its modules are: the candidate itself, or a copy of it.
        kept: what of the candidate is in float32 all the same.
        parts: what is known of the model's parts.
    """
    if overflows is not None:
        keep = _keep(dtype, "it", overflows, kept, parts)
        return f"eager {dtype} itself is not finite from {overflows.module} on, {_reach(overflows, dtype)}: {keep}"
    if shown_breaks:
        return f"every module is as right as {dtype} allows, and these outputs take more: export in a wider dtype"
    if breaks:
        return (
            "the copy that shows its modules computes them right, and the candidate does not: the fault is in how the "
            "backend joins or schedules them; try with its optimizations off"
        )
    return "what failed is not in the values of any module: it is named above"


def _keep(dtype: str, what: str, tap: Tap, kept: Sequence[str], parts: PartsByName) -> str:
    return _kept(dtype, what, tap, kept, parts) + (", or export in bfloat16" if dtype == "float16" else "")


def _kept(dtype: str, what: str, tap: Tap, kept: Sequence[str], parts: PartsByName) -> str:
    """Return the advice to keep something in float32, with the option of `naflex-export` that does it."""
    more = to_keep(tap, kept, parts=parts)
    if not more:
        return f"{parts.why_no_more(dtype)}; export in float32"
    return f"keep {what} in float32 (--keep-float32 {_named(kept, more, parts)})"


def _named(kept: Sequence[str], more: Sequence[str], parts: PartsByName) -> str:
    """Return the value of `--keep-float32` that keeps both, without names that add nothing any more."""
    return ",".join(parts.adding((*kept, *more)))


def _float32(tap: Tap) -> str:
    if tap.relative_l2 <= TF32 and not _is_embedding(tap.module):
        return "few digits are lost: does the backend compute in TF32 or half precision here?"
    return _something_else(tap.module)


def _something_else(module: str) -> str:
    *around, last = module.split(".")
    if is_output(module):
        return "what follows the last module differs, such as pooling"
    if _is_embedding(last):
        return (
            "the position embedding differs; check how it is resized (mode, antialias), and that coordinates are (y, x)"
        )
    if any(map(_is_embedding, around)):
        return "patches are projected otherwise; check how they are laid out and scaled, and this module's weights"
    if "attn" in last or "attention" in last:
        return "the graph computes something else there; check its mask, its rotary embedding and its weights"
    return "the graph computes something else there; check its weights"


def _is_embedding(name: str) -> bool:
    return name in ("embeds", "embeddings")


def _largest(tap: Tap) -> float:
    """Return the largest finite magnitude that either side shows of a module."""
    return max(value for value in (tap.max_abs, tap.inside_max_abs, 0.0) if math.isfinite(value))


def _reach(tap: Tap, dtype: str) -> str:
    text = f"values up to {_largest(tap):.1e}"
    if dtype == "float16":
        text += f" of float16's {tap.dtype_max:.0f}"
    elif dtype == "bfloat16":
        text += f" of bfloat16's {tap.dtype_max:.1e}"
    return text if math.isfinite(tap.max_abs) or dtype != "float32" else f"not finite, {text} in the reference"
