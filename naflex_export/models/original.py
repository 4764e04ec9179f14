"""`Original`: says when the model that a copy was made from has gone another way than the copy.

A copy shares parameters and buffers, and nothing else. Mode, layers and hooks are the copy's own: `model.eval()` after
the copy was made leaves dropout on in the copy. Nobody can tell whether that was meant, so it is said, once for each
difference.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class Original:
    """The model that a copy was made from, as it was then.

    It keeps neither alive, and is left behind where the copy is pickled or copied itself: what comes of that shares
    nothing with the original any more.
    """

    def __init__(self, model: nn.Module | None = None, twin: nn.Module | None = None) -> None:
        self._pairs: list[tuple[str, weakref.ref[nn.Module], weakref.ref[nn.Module], dict[str, Any]]] = []
        if model is not None and twin is not None:
            copied = dict(twin.named_modules())
            for name, module in model.named_modules():
                if name in copied:
                    pair = weakref.ref(module), weakref.ref(copied[name])
                    self._pairs.append((name, *pair, _state(module)))

    def warn_of_changes(self) -> None:
        """Warn where the original has changed since, and the copy is not like it."""
        found = []
        for index, (name, original, copied, before) in enumerate(self._pairs):
            one, other = original(), copied()
            if one is None or other is None:
                continue
            now = _state(one)
            if now != before:
                self._pairs[index] = (name, original, copied, now)
                found.append(_change(one, other, before, now).format(name or "the model"))
        said = next(filter(None, found), "")
        if said:
            warnings.warn(
                f"the original model's {said} since this copy of it was made: they share parameters and buffers, and "
                "nothing else. Do the same to the copy, or make a new one",
                stacklevel=2,
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Original:
        return Original()

    def __reduce__(self) -> tuple[type[Original], tuple[()]]:
        return Original, ()


def is_watched() -> bool:
    """Whether a call is one that a warning can be given in: no graph is being made of it."""
    return not torch.compiler.is_compiling()


def _state(module: nn.Module) -> dict[str, Any]:
    """Return what of a module a copy does not share: its mode, what it consists of, and its hooks."""
    return {
        "training": module.training,
        "parts": [id(part) for part in module._modules.values()],
        "tensors": [id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())],
        "hooks": [key for table in _HOOKS for key in getattr(module, table)],
    }


def _change(one: nn.Module, other: nn.Module, before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what the original has now and the copy has not; empty where they agree."""
    if now["training"] != before["training"] and one.training != other.training:
        mode = "training" if one.training else "eval"
        return f"mode changed, to {mode} mode in {{}},"
    if now["tensors"] != before["tensors"] and now["tensors"] != _state(other)["tensors"]:
        return "parameters were replaced in {}"
    if now["parts"] != before["parts"]:
        return "layers were replaced in {}"
    if now["hooks"] != before["hooks"]:
        return "hooks changed on {}"
    return ""
