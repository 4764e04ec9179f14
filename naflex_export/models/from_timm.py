"""Models of timm by name: from its own registry, a repository of the hub, or a folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import NaFlexVit, load_model_config_from_hf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from naflex_export.errors import RequestError, first_line
from naflex_export.models import towers_in
from naflex_export.models.checkpoints import some_keys
from naflex_export.models.model_names import NOT_HAD, check_timm_name, source_and_name, unknown_model

_DRAWS = (Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)
"""What torch's layers, and then timm, fill weights with, one after the other."""


class _Undrawn(TorchFunctionMode):
    """While it is on, parameters are not drawn: those of a base model take seconds, and are to be replaced."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWS:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, nn.Parameter):
                return filled
        return function(*args, **kwargs)


def create_timm(text: str, pretrained: bool, patch_interpolator: bool, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a NaFlexVit of timm, with its pretrained weights where they come from the hub.

    Else its parameters hold anything at all: whoever asks for it fills every one.

    Args:
        text: its name, as `source_and_name` reads it.
        pretrained: load the weights of that name.
        patch_interpolator: make it take other patch sizes than its own.
        arguments: what timm's constructor is given besides, by name.

    Raises:
        RequestError: there is no such model, it cannot be built so, or its weights cannot be had.
    """
    source, name = source_and_name(text)
    architecture = _architecture_of(source, name) if source else name.partition(".")[0]
    check_timm_name(architecture if source else name)
    if not timm.is_model(architecture):
        raise RequestError(unknown_model(architecture if source else text))
    options: dict[str, Any] = {} if architecture.startswith("naflexvit") else {"use_naflex": True}
    if patch_interpolator:
        options["enable_patch_interpolator"] = True
    options |= arguments
    from_hub = pretrained and source != "local-dir"
    given = " ".join(f"{key}={value}" for key, value in arguments.items())
    try:
        with _heard_loads() as left_random, contextlib.nullcontext() if from_hub else _Undrawn():
            model = timm.create_model(f"{source}:{name}" if source else name, pretrained=from_hub, **options)
    except TypeError as error:
        raise RequestError(
            f"timm's {text!r} cannot be built as a NaFlexVit: {error} (docs/errors.md#not-a-naflexvit)"
        ) from error
    except Exception as error:  # the hub's client raises classes of many libraries
        if from_hub:
            raise RequestError(
                f"pretrained weights of {text!r} cannot be had: {first_line(error)}. "
                f"Give --weights FILE for a local checkpoint, or --weights random for a dry run ({NOT_HAD})"
            ) from error
        told = f" with --model-args {given}" if given else ""
        raise RequestError(f"timm's {text!r} cannot be built{told}: {first_line(error)}") from error
    if not towers_in(model):
        raise RequestError(
            f"timm builds {text!r} as a {type(model).__name__}: expected a NaFlexVit (docs/errors.md#not-a-naflexvit)"
        )
    if from_hub and left_random:
        raise RequestError(
            f"pretrained weights of {text!r} do not fill a model of --model-args {given}: "
            f"{some_keys('missing', left_random)}which would be left random; give --weights FILE for a checkpoint "
            "of just this model"
        )
    return model


def _architecture_of(source: str, name: str) -> str:
    """Return which of timm's architectures a folder, or a repository of the hub, holds."""
    try:
        if source == "local-dir":
            config = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
            found = config.get("architecture") or config.get("pretrained_cfg", {}).get("architecture")
        else:
            found = load_model_config_from_hf(name)[1]
    except Exception as error:  # the hub's client raises classes of many libraries
        elsewhere = f". Give local-dir: and a folder that holds it ({NOT_HAD})" if source == "hf-hub" else ""
        raise RequestError(f"model '{source}:{name}' cannot be had: {first_line(error)}{elsewhere}") from error
    if not isinstance(found, str):
        raise RequestError(f"config.json of '{source}:{name}' names no architecture: is it a model of timm's?")
    return found


@contextlib.contextmanager
def _heard_loads() -> Iterator[list[str]]:
    """Yield a list that takes the parameters which a load of pretrained weights left as they were.

    timm loads them without `strict` where the classes differ, and says nothing of what stays random.
    """
    missing: list[str] = []

    def heard(self: NaFlexVit, *args: Any, **kwargs: Any) -> Any:
        result = nn.Module.load_state_dict(self, *args, **kwargs)
        missing.extend(sorted(result.missing_keys))
        return result

    NaFlexVit.load_state_dict = heard
    try:
        yield missing
    finally:
        del NaFlexVit.load_state_dict
