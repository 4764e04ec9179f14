"""Which state of a checkpoint is a model's, and whether it fits.

A checkpoint may hold several states of one model (its weights and their moving average), each under a key of its own,
and name their tensors behind a prefix (`module.`, `_orig_mod.`, `model.`). Which was taken is part of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models import NaFlexVit
from timm.models.naflexvit import checkpoint_filter_fn
from torch import Tensor, nn

from naflex_export.errors import RequestError
from naflex_export.models.checkpoint_files import read_checkpoint

_PREFERRED_STATES = ("state_dict", "model", "")
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGE = re.compile(r"(^|[._])(ema|averaged|avg|swa)([._]|$)", re.IGNORECASE)
_BOOKKEEPING = "n_averaged"
_MOST_DEPTH = 3


@dataclass(frozen=True)
class Taken:
    """The state that was taken of a checkpoint.

    Attributes:
        state: tensors by the model's own names.
        label: where it was, such as `state_dict_ema` or `state_dict.model`; empty where the checkpoint is the state.
        note: what was chosen and what was left out, in a sentence; empty where there was nothing to choose.
    """

    state: dict[str, Tensor]
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Found:
    """A state that a checkpoint holds, its tensors by the names that they have behind a prefix."""

    key: str
    prefix: str
    state: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    is_average: bool = False

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.key, self.prefix.rstrip(".")) if part)


def load_checkpoint(model: nn.Module, path: Path, label: str = "") -> Taken:
    """Load a checkpoint into a model, every parameter and buffer of it, and return what was taken.

    Args:
        model: takes the tensors; it is changed only if all of them fit.
        path: of a file or folder.
        label: which state to take, as `Taken.label` has it. By default the one that fits the model; of several the
            average (EMA), as timm does.

    Raises:
        RequestError: it cannot be read, holds no state that fits, or several between which only the user can choose.
    """
    states = dict(_states_in(read_checkpoint(path)))
    if not states:
        raise RequestError(f"checkpoint {str(path)!r} holds no state dict: expected tensors by parameter name")
    own = model.state_dict()
    found = [one for key, state in states.items() for one in _candidates(key, state, own, model)]
    if label:
        found = _labelled(found, label, path)
    fitting = [one for one in found if set(one.state) == set(own)]
    taken = _chosen(fitting, path) if fitting else _nearest(found)
    _check_fits(taken, own, path, model)
    model.load_state_dict(taken.state)
    return Taken(taken.state, taken.label, _note(taken, fitting, path))


# --- which state -------------------------------------------------------------------------------------------------


def _states_in(loaded: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every set of named tensors in nested dicts, with the keys that lead to it."""
    if isinstance(loaded, nn.Module) or not isinstance(loaded, Mapping) or depth > _MOST_DEPTH:
        return
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in loaded.items():
        if isinstance(name, str):
            yield from _states_in(value, f"{key}.{name}" if key else name, depth + 1)


def _candidates(key: str, state: dict[str, Tensor], own: Mapping[str, Tensor], model: nn.Module) -> Iterator[_Found]:
    """Yield the state as it is, and what it holds behind each prefix that a parameter of the model is found behind."""
    names = {name: _unwrapped(name, own) for name in state}
    is_average = _BOOKKEEPING in state or bool(_AVERAGE.search(key))
    plain = {names[name]: tensor for name, tensor in state.items() if name != _BOOKKEEPING}
    yield _Found(key, "", _converted(plain, own, model), is_average=is_average)
    anchors = [next(iter(own), "")]
    if isinstance(model, NaFlexVit):
        anchors += ["embeds.proj.weight", "patch_embed.proj.weight"]
    prefixes = {name.removesuffix(anchor) for name in plain for anchor in anchors if name.endswith(f".{anchor}")}
    for prefix in sorted(prefixes - {""}):
        inner = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
        yield _Found(
            key,
            prefix,
            _converted(inner, own, model),
            tuple(name for name in plain if not name.startswith(prefix)),
            is_average or bool(_AVERAGE.search(prefix)),
        )


def _unwrapped(name: str, own: Iterable[str]) -> str:
    """Return a parameter's name without what data parallelism, torch.compile and the like put into it."""
    return name if name in own else ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _converted(state: dict[str, Tensor], own: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state by a NaFlexVit's names where it has those of a classic ViT: timm's own conversion."""
    if set(state) == set(own) or not isinstance(model, NaFlexVit):
        return state
    copied = {name: value.clone() if name in ("cls_token", "reg_token") else value for name, value in state.items()}
    try:
        return checkpoint_filter_fn(copied, model)  # it adds to the tokens in place
    except (AttributeError, KeyError, RuntimeError, ValueError, IndexError):  # no classic ViT's state
        return state


def _labelled(found: list[_Found], label: str, path: Path) -> list[_Found]:
    chosen = [one for one in found if one.label == label] or [one for one in found if one.key == label]
    if not chosen:
        raise RequestError(
            f"checkpoint {str(path)!r} holds no state {label!r}: it holds {_quoted(one.label for one in found)}"
        )
    return chosen


def _chosen(fitting: list[_Found], path: Path) -> _Found:
    """Return the only state that fits, or of several the average, or the one that training scripts mean.

    Raises:
        RequestError: several are as good.
    """
    averages = [one for one in fitting if one.is_average]
    among = averages or fitting
    if len(among) == 1:
        return among[0]
    for key in () if averages else _PREFERRED_STATES:
        named = [one for one in among if one.key == key]
        if len(named) == 1:
            return named[0]
    raise RequestError(
        f"checkpoint {str(path)!r} holds several states that fit the model ({_quoted(one.label for one in among)}): "
        "say which with --checkpoint-state"
    )


def _nearest(found: list[_Found]) -> _Found:
    """Return the state to speak of where none fits: of those with the most tensors, the one that timm would take."""
    most = max(len(one.state) for one in found)
    largest = [one for one in found if 2 * len(one.state) >= most]
    order = ["state_dict_ema", "model_ema", *_PREFERRED_STATES]
    return min(largest, key=lambda one: (order.index(one.key) if one.key in order else len(order), -len(one.prefix)))


def _note(taken: _Found, fitting: list[_Found], path: Path) -> str:
    others = [one.label for one in fitting if one is not taken]
    if not taken.label and not taken.is_average and not others:
        return ""
    kind = "an average (EMA) of the weights" if taken.is_average else "the weights themselves, no average (EMA)"
    said = f"checkpoint {str(path)!r}: took {taken.label or 'its tensors'!r}, {kind}"
    if others:
        said += f"; it also holds {_quoted(others)}, which --checkpoint-state chooses"
    if taken.left_out:
        more = f" and {len(taken.left_out) - 3} more" if len(taken.left_out) > 3 else ""
        said += f"; left out: {', '.join(taken.left_out[:3])}{more}"
    return said


def _quoted(labels: Iterable[str]) -> str:
    return ", ".join(repr(label) if label else "its own tensors" for label in dict.fromkeys(labels))


# --- whether it fits ---------------------------------------------------------------------------------------------


def _check_fits(taken: _Found, own: Mapping[str, Tensor], path: Path, model: nn.Module) -> None:
    """Check names and shapes.

    Raises:
        RequestError: some differ; the message says which, and what to give where that can be said.
    """
    missing, unexpected = sorted(set(own) - set(taken.state)), sorted(set(taken.state) - set(own))
    differing = [name for name, tensor in taken.state.items() if name in own and tensor.shape != own[name].shape]
    if not (missing or unexpected or differing):
        return
    arguments = arguments_of(taken.state, own, model)
    given = " ".join(f"{name}={value}" for name, value in arguments.items())
    remedy = f"it is one of {given}: give --model-args {given}" if given else "is it a checkpoint of this architecture?"
    where = f" ({taken.label})" if taken.label else ""
    what = f"{some_keys('missing', missing)}{some_keys('unexpected', unexpected)}"
    if differing and not what:
        name = differing[0]
        what = f"{name} is {list(taken.state[name].shape)}, expected {list(own[name].shape)}; "
    raise RequestError(
        f"checkpoint {str(path)!r}{where} does not fit the model: {what}{remedy} "
        "(docs/errors.md#a-checkpoint-does-not-fit)"
    )


def arguments_of(state: Mapping[str, Tensor], own: Mapping[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Return timm's arguments, as its command lines spell them, that would make a NaFlexVit of a checkpoint's shapes.

    Args:
        state: the checkpoint's tensors.
        own: the model's.
        model: it is known of a NaFlexVit only what an argument changes.
    """
    if not isinstance(model, NaFlexVit):
        return {}
    found: dict[str, str] = {}
    classes = [len(s[name]) if (name := "head.weight") in s else 0 for s in (state, own)]
    if classes[0] != classes[1]:
        found["num_classes"] = str(classes[0])
    given, wanted = (s.get("embeds.proj.weight") for s in (state, own))
    if given is not None and wanted is not None and given.shape[1:] != wanted.shape[1:]:
        area, values = wanted[0].numel() // model.embeds.in_chans, given[0].numel()
        channels, side = values / area, (values / model.embeds.in_chans) ** 0.5
        if channels % 1 == 0 and (channels <= 4 or side % 1 != 0):
            found["in_chans"] = str(int(channels))
        elif side % 1 == 0:
            found["patch_size"] = str(int(side))
    grids = [tuple(s[name].shape[1:3]) if (name := "embeds.pos_embed") in s else () for s in (state, own)]
    if grids[0] != grids[1] and len(grids[0]) == 2:
        found["pos_embed_grid_size"] = ",".join(map(str, grids[0]))
    registers = [s[name].shape[1] if (name := "embeds.reg_token") in s else 0 for s in (state, own)]
    if registers[0] != registers[1]:
        found["reg_tokens"] = str(registers[0])
    depths = [1 + max((int(name.split(".")[1]) for name in s if name.startswith("blocks.")), default=-1)
              for s in (state, own)]  # fmt: skip
    if depths[0] != depths[1]:
        found["depth"] = str(depths[0])
    return found if depths[0] else {}


def some_keys(kind: str, names: list[str]) -> str:
    """Return how many keys there are of a kind, and the first three, to go on from; empty for none."""
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} keys {kind} ({', '.join(names[:3])}{more}); "
