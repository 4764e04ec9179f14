"""Models of transformers by folder or hub id. Weights are read from safetensors only, and nothing there is run."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from naflex_export.errors import BackendError, RequestError, first_line
from naflex_export.models import adapter_of
from naflex_export.models.checkpoints import some_keys
from naflex_export.models.model_names import NOT_HAD


def create_transformers(name: str, weights: str) -> nn.Module:
    """Return a transformers model with the weights of its folder or hub id, or uninitialized for weights to come.

    Weights are read from safetensors only, and nothing that a repository holds is run.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:  # its own dependencies have bounds that pip may not have kept
        raise BackendError(
            f"transformers does not import ({first_line(error)}): pip install --upgrade naflex_export[hf]"
        ) from error

    with _quiet_transformers(local=Path(name).is_dir()):
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except Exception as error:  # transformers and the hub's client raise classes of many libraries
            if Path(name).is_dir():
                raise RequestError(f"model 'hf:{name}' cannot be built: {first_line(error)}") from error
            raise RequestError(
                f"model 'hf:{name}' cannot be had: {first_line(error)}. Give hf: and a folder that holds it ({NOT_HAD})"
            ) from error
        try:
            saved = _saved_class(config)
            with torch.device("meta"):
                outline = _uninitialized(saved, config)
        except Exception as error:
            raise RequestError(f"model 'hf:{name}' cannot be built: {first_line(error)}") from error
        adapter_of(outline)  # before any weights are fetched
        if weights != "pretrained":
            return _uninitialized(saved, config, dtype=torch.float32)
        try:
            model, loading = (saved or AutoModel).from_pretrained(
                name, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:
            raise RequestError(
                f"weights of 'hf:{name}' cannot be had as safetensors: {first_line(error)}. "
                "Give --weights FILE for a local checkpoint, or --weights random for a dry run "
                f"({NOT_HAD})"
            ) from error
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers would leave them random, and say so in a warning
        raise RequestError(
            f"weights of 'hf:{name}' do not fit its config.json: {some_keys('missing', missing)}is it whole?"
        )
    return model


def _saved_class(config: Any) -> Any:
    """Return the class that a config says its weights were saved by, such as an image classifier; None if unknown.

    `AutoModel` would make the model without what the class has on top of it.
    """
    import transformers

    beside = _modeling_beside(config)  # of towers that transformers does not export at its root, as Qwen2-VL's
    for name in config.architectures or ():
        for module in (transformers, beside):
            found = getattr(module, name, None) if name.isidentifier() else None
            if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
                return found
    return None


def _modeling_beside(config: Any) -> Any:
    """Return transformers' module of the models of a config; None if there is none."""
    package, _, module = type(config).__module__.rpartition(".")
    if not package.startswith("transformers.models.") or not module.startswith("configuration_"):
        return None
    try:
        return importlib.import_module(f"{package}.modeling_{module.removeprefix('configuration_')}")
    except ImportError:
        return None


def _uninitialized(saved: Any, config: Any, **options: Any) -> Any:
    """Return a model of a config, of the class that it was saved by, its weights yet to come."""
    from transformers import AutoModel

    if saved is None:
        return AutoModel.from_config(config, trust_remote_code=False, **options)
    return saved._from_config(config, **options)


@contextlib.contextmanager
def _quiet_transformers(local: bool) -> Iterator[None]:
    """Hold back transformers' warnings, and its progress bars where nothing is downloaded."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
