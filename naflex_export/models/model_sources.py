"""Where a model and its weights come from: timm, transformers or a factory, and the hub, a seed or a local file.

One never stands in for another: what was asked for is loaded, or the request fails. What can be told of a source
without torch and its model is, so that a wrong one is refused at once; the rest is imported as it is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from naflex_export.errors import RequestError
from naflex_export.models import DEFAULT_MODEL, TRANSFORMERS_PREFIX, whole_model
from naflex_export.models.checkpoint_paths import NO_FILE, check_weights
from naflex_export.models.model_names import LOCAL_DIR, check_transformers, source_and_name
from naflex_export.serving.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from torch import nn

_TIMM_NAME = re.compile(r"[\w.-]*", re.ASCII)
_SAID_BY_WEIGHTS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict")


@dataclass(frozen=True)
class ModelSource:
    """A model as a user names it.

    Attributes:
        model: a timm name, such as timm itself takes it (`hf-hub:` and a hub id, `local-dir:` and a folder too), `hf:`
            and the folder or hub id of a transformers model, or `module:factory` for a callable that returns a model.
        weights: "pretrained" (from the hub or the folder, or as the factory returns it), "random", or the path of a
            checkpoint, a file or a folder of shards.
        seed: of random weights.
        patch_interpolator: make a timm model that takes other patch sizes than its own. A factory decides by itself.
        model_args: what timm's constructor or the factory is given besides, by name.
        state: which state of a checkpoint to take, where it holds several, such as `state_dict_ema`.
    """

    model: str = DEFAULT_MODEL
    weights: str = "pretrained"
    seed: int = 0
    patch_interpolator: bool = False
    model_args: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""

    @classmethod
    def noted(
        cls,
        manifest: Manifest,
        model: str | None = None,
        weights: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        trusted: bool = False,
    ) -> ModelSource:
        """Return where an artifact's model came from, as its manifest has it, but for what the caller says.

        Args:
            manifest: the artifact's.
            model: in place of the one that the manifest names.
            weights: in place of those that the manifest names.
            model_args: in place of those that the manifest names; those go with its model.
            trusted: run a factory, or fetch from a hub, that the manifest alone names.

        Raises:
            RequestError: neither says it, or only the manifest does, and is not trusted to.
        """
        noted = manifest.model["source"]
        if model is None and not trusted and (reason := why_untrusted(noted.get("model", ""))):
            raise RequestError(
                f"{MANIFEST} names {noted['model'][:200]!r} as the model, {reason}; whoever made the artifact chose "
                "it: say the model yourself with --reference MODEL, or give --trust-source if you know who made it"
            )
        kept = noted.get("model_args", {}) if model in (None, noted.get("model")) else {}
        same_weights = weights in (None, noted.get("weights"))
        model, weights = model or noted.get("model"), weights or noted.get("weights")
        if model is None or weights is None:
            raise RequestError(
                f"{MANIFEST} does not say where the model came from (it was exported from Python): "
                "give --reference MODEL and --weights WEIGHTS"
            )
        return cls(
            model,
            weights,
            noted.get("seed", 0),
            noted.get("patch_interpolator", False),
            model_args or {name: _hashable(value) for name, value in kept.items()},
            noted.get("checkpoint_state", "") if same_weights else "",
        )

    def load(self) -> nn.Module:
        """Return the model, in float32 and eval mode.

        Raises:
            RequestError: there is no such model or checkpoint, or they do not fit each other.
            BackendError: the model is transformers', which is not installed.
        """
        return self.open().model

    def open(self) -> Opened:
        """Return the model, in float32 and eval mode, with what there is to say of where it came from.

        Raises:
            RequestError: there is no such model or checkpoint, or they do not fit each other.
            BackendError: the model is transformers', which is not installed.
        """
        from naflex_export.models.checkpoints import load_checkpoint

        self.check()
        model, source, notes = self._create(), self, []
        path = Path(self._timm_source[1] if self._is_local_dir and self.weights == "pretrained" else self.weights)
        if self.weights == "random":
            randomize(model, self.seed)
        elif self.weights != "pretrained" or self._is_local_dir:
            taken = load_checkpoint(model, path, self.state)
            source, notes = dataclasses.replace(self, state=taken.label), [taken.note] if taken.note else []
        if self._is_transformers and (tower := whole_model(model)):
            notes.append(f"{self.model} is understood as {tower}")
        return Opened(model.float().eval(), source, tuple(notes))

    def check(self) -> None:
        """Check what can be checked before any work: that folders and files are there, and of a kind we read."""
        if self._is_transformers:
            check_transformers(self.model.removeprefix(TRANSFORMERS_PREFIX))
            if self.model_args:
                raise RequestError(
                    f"--model-args {next(iter(self.model_args))}=... cannot be given for {self.model!r}: what a model "
                    "of transformers is made of stands in its config.json"
                )
        for name in _SAID_BY_WEIGHTS:
            if name in self.model_args:
                raise RequestError(f"--model-args {name}=... cannot be given: --weights says which weights to load")
        if self._is_local_dir and not (Path(self._timm_source[1]) / "config.json").is_file():
            raise RequestError(
                f"model {self.model!r} is no folder of timm's: expected one with a config.json, as timm.models."
                "save_for_hf writes it"
            )
        check_weights(self.weights, self.model)
        has_file = self.weights not in NO_FILE or (self._is_local_dir and self.weights == "pretrained")
        if self.state and not has_file:
            raise RequestError(
                f"state {self.state!r} cannot be taken of {self.weights} weights: expected the --weights of a file"
            )

    def find(self) -> None:
        """Import the module of a factory, which tells whether there is one; nothing of any other source.

        Raises:
            RequestError: there is none, or its module raises.
        """
        if self._is_factory:
            from naflex_export.models.from_factory import named_by

            named_by(self.model)

    def describe(self) -> dict[str, Any]:
        """Return the source as plain JSON values, with the hash of a checkpoint file."""
        from naflex_export.models.checkpoint_files import checkpoint_sha256

        model = self.model
        if self._is_transformers and (folder := Path(model.removeprefix(TRANSFORMERS_PREFIX))).is_dir():
            model = f"{TRANSFORMERS_PREFIX}{folder.resolve()}"
        elif self._is_local_dir:
            model = f"local-dir:{Path(self._timm_source[1]).resolve()}"
        described: dict[str, Any] = {"model": model, "weights": self.weights}
        if self.weights == "random":
            described["seed"] = self.seed
        elif self.weights != "pretrained":
            path = Path(self.weights)
            described |= {"weights": str(path.resolve()), "checkpoint_sha256": checkpoint_sha256(path)}
        if self.state:
            described["checkpoint_state"] = self.state
        if self.patch_interpolator:
            described["patch_interpolator"] = True
        if self.model_args:
            described["model_args"] = dict(self.model_args)
        return described

    @property
    def stage(self) -> str:
        """What loading it is called; the hub is named where it is asked, for weights or what the model is made of."""
        if self._is_transformers:
            asks = not Path(self.model.removeprefix(TRANSFORMERS_PREFIX)).is_dir()
        else:
            asks = self._timm_source[0] == "hf-hub" or (self.weights == "pretrained" and ":" not in self.model)
        return "load from the hub" if asks else "load"

    @property
    def _is_transformers(self) -> bool:
        return self.model.startswith(TRANSFORMERS_PREFIX)

    @property
    def _timm_source(self) -> tuple[str, str]:
        """Return timm's word for where a model comes from, and what follows it, as `source_and_name`."""
        return source_and_name(self.model)

    @property
    def _is_factory(self) -> bool:
        return not self._is_transformers and not self._timm_source[0] and ":" in self.model

    @property
    def _is_local_dir(self) -> bool:
        return self._timm_source[0] == LOCAL_DIR

    def _create(self) -> nn.Module:
        if self._is_transformers:
            from naflex_export.models.from_transformers import create_transformers

            return create_transformers(self.model.removeprefix(TRANSFORMERS_PREFIX), self.weights)
        if self._is_factory:
            from naflex_export.models.from_factory import call_factory

            return call_factory(self.model, self.model_args)
        from naflex_export.models.from_timm import create_timm

        return create_timm(self.model, self.weights == "pretrained", self.patch_interpolator, self.model_args)


@dataclass(frozen=True)
class Opened:
    """A model that was loaded.

    Attributes:
        model: in float32 and eval mode.
        source: where it came from, with the state that was taken of its checkpoint.
        notes: what was chosen on the way, a sentence each, for the user to read.
    """

    model: nn.Module
    source: ModelSource
    notes: tuple[str, ...] = ()


def _hashable(value: Any) -> Any:
    """Return a value as it was before JSON made lists of its tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def randomize(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew, so that each one shows in the outputs.

    A model as timm initializes it would hide faults: layer scales of 1e-5 silence its blocks, an untrained head is
    zero, and a position embedding of 0.02 is lost beside its patches.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw)
            leaf = name.rsplit(".", 1)[-1]
            if parameter.ndim < 2:
                value = 0.02 * noise if leaf == "bias" else 1 + 0.1 * noise
            elif "pos_embed" in leaf or "token" in leaf or leaf in ("latent", "probe") or "position_embedding" in name:
                value = 0.5 * noise
            else:
                value = noise / math.sqrt(parameter[0].numel())
            parameter.copy_(value)


def weights_sha256(model: nn.Module) -> str:
    """Return a hash of a model's state as the reference sees it: names, shapes, and values in float32."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def why_untrusted(model: str) -> str:
    """Return what loading a model by this name would do that a stranger must not choose; empty where nothing."""
    if model.startswith(TRANSFORMERS_PREFIX):
        is_local = Path(model.removeprefix(TRANSFORMERS_PREFIX)).is_absolute()
        return "" if is_local else "a repository on a hub, which would be fetched"
    if model.startswith(("hf-hub:", "hf_hub:")):
        return "a repository on a hub, which would be fetched"
    if model.startswith("local-dir:"):
        return ""
    return "" if _TIMM_NAME.fullmatch(model) else "a python factory, which would run"
