"""torch.compile: `nx.compile` for a live model, and `model.pt2`, the traced graph to compile where it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from naflex_export.accuracy.cases import noise_batch
from naflex_export.errors import BackendError, RequestError
from naflex_export.graph.intermediates import (
    OUTSIDE,
    Edge,
    Once,
    Place,
    Shapes,
    Tapped,
    fitting,
    listening,
    module_outputs,
)
from naflex_export.graph.trace import Program
from naflex_export.grid import Bucket, Grid, check_buckets
from naflex_export.models import family_of
from naflex_export.models.vectorize import vectorize
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.runner import Runner
from naflex_export.targets import BuildSettings, StandIn

PACKAGES = ("torch",)
FILE = "model.pt2"


class CompiledModel(nn.Module):
    """A vectorized model under `torch.compile`, one graph for any grid, batch size and token count.

    torch specializes a dimension of size 1, so a batch of one image gets a graph of its own: two in all, in each mode
    (train or eval, gradients on or off) that is used. Images of a single token would take two more, and are not worth
    them: they run uncompiled. Parameters and `state_dict` keys are those of the model. Of a model of images and texts,
    the image tower is compiled and called.

    Attributes:
        model: the vectorized model; it shares the parameters of the model it was made from.
    """

    _compiled: Callable[..., Any]

    def __init__(self, model: nn.Module, buckets: Sequence[Bucket], **options: Any) -> None:
        super().__init__()
        self.model = vectorize(model)
        self.train(model.training)
        self._family = family_of(model)
        self._buckets, self._options = check_buckets(buckets), options
        compiled = torch.compile(self._tower, fullgraph=True, dynamic=True, **options)
        object.__setattr__(self, "_compiled", compiled)  # as a submodule it would hold every parameter once more

    @property
    def _tower(self) -> nn.Module:
        """The part of the model that sees images."""
        return self._family.tower(self.model)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the model returns, for its own inputs: tensors, by name or in order, or timm's dict of them."""
        names = self._family.layout.names
        if len(inputs) == 1 and isinstance(inputs[0], Mapping) and not named:
            inputs = tuple(inputs[0][name] for name in names)
        patches = inputs[0] if inputs else named.get(names[0])
        if isinstance(patches, Tensor) and patches.shape[1] == 1:
            return self._tower(*inputs, **named)
        if torch.compiler.is_compiling():  # part of a larger graph, whose settings are not ours
            return self._compiled(*inputs, **named)
        # With `dynamic`, torch would make inputs of the model's float attributes, such as a drop rate: it then compiles
        # a training graph twice, and fails where a size depends on one inside a checkpoint (torch 2.14).
        with torch._dynamo.config.patch(specialize_float=True):
            return self._compiled(*inputs, **named)

    def warmup(self) -> CompiledModel:
        """Compile now what the first calls would compile, in the model's present mode, dtype and device; return self.

        Runs a batch of one and a batch of several, of each bucket's usual size, forward only.
        """
        parameter = next(self.model.parameters())
        width = self._family.token_width(self.model)
        for bucket in self._buckets:
            for size in sorted({1, max(2, bucket.batch[1])}):
                batch = noise_batch("warmup", [Grid(1, bucket.tokens)] * size, bucket.tokens, width)
                inputs = [tensor.to(parameter.device) for tensor in self._family.layout.arrange(batch)]
                inputs[0] = inputs[0].to(parameter.dtype)
                self(*inputs)
        return self

    def taps(self, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return the outputs of these modules, from the model compiled once more so that it gives them too."""
        tower, seen = self._tower, Once()

        def run(*inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
            given = tower(*inputs)
            return given, dict(seen.values)

        with listening(tower, modules, seen.take), torch._dynamo.config.patch(specialize_float=True):
            compiled = torch.compile(run, fullgraph=True, dynamic=True, **self._options)
            given, values = compiled(*inputs)
        found = self._family.unpack(given)
        return Tapped(values, found if isinstance(found, dict) else {"features": found})

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's own state, under the model's own keys."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state under the model's own keys."""
        return self.model.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the model's own keys from a wrapper too, such as DistributedDataParallel, which loads child by child."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}model.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def compile(model: nn.Module, buckets: Sequence[Bucket] | None = None, **options: Any) -> CompiledModel:
    """Return the model vectorized and compiled as one graph, ready for any grid; `.warmup()` compiles ahead.

    Args:
        model: a model that `vectorize` takes. Parameters are shared with it.
        buckets: shapes that `warmup` compiles with; every other shape is served by the same graphs.
        options: passed on to `torch.compile`, such as `mode="max-autotune"`.

    Raises:
        RequestError: `fullgraph` or `dynamic` is among the options; both are always on.
        UnsupportedModelError: the model, or one of its options, is not known to this release.
    """
    fixed = {"fullgraph", "dynamic"} & set(options)
    if fixed:
        raise RequestError(f"option {sorted(fixed)[0]!r} cannot be given: fullgraph and dynamic are always on")
    return CompiledModel(model, buckets or [Bucket()], **options)


def require() -> None:
    """Ask for nothing: torch is always there."""


def build(program: Program, folder: Path, settings: BuildSettings) -> dict[str, Any]:
    settings.announce("saving the traced graph")
    torch.export.save(program.exported, folder / FILE)
    return {"compiled": "where it is loaded"}


def open(folder: Path, manifest: Manifest, device: torch.device | None, check_inputs: bool) -> Runner:
    return CompileRunner(folder / FILE, manifest, resolve_device(device), check_inputs)


def cannot_run(dtype: str) -> str:
    return ""


def stand_in(folder: Path, manifest: Manifest) -> StandIn | None:
    return None


class CompileRunner(Runner):
    """Runs the traced graph under `torch.compile`; the first call of each kind of shape compiles."""

    def __init__(self, path: Path, manifest: Manifest, device: torch.device, check_inputs: bool = True) -> None:
        super().__init__(manifest, device, check_inputs)
        self._path = path
        self._compiled = torch.compile(self._traced(), fullgraph=True, dynamic=True)

    def execute(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        tokens = inputs[0].shape[1]
        with torch.inference_mode():
            outputs = self._compiled(*self.layout.pad_single_token(inputs))
        return [_cut(spec.shape, output, tokens) for spec, output in zip(self.manifest.outputs, outputs, strict=True)]

    def taps(self, inputs: tuple[Tensor, ...], modules: Shapes) -> Tapped:
        """Return modules' outputs from a copy of the graph that gives them too, compiled like it."""
        graph = self._traced()
        names = tap_modules(graph, modules)
        compiled = torch.compile(graph, fullgraph=True, dynamic=True)
        inputs, tokens = tuple(tensor.to(self.device) for tensor in inputs), inputs[0].shape[1]
        with torch.inference_mode():
            given = compiled(*self.layout.pad_single_token(inputs))
        specs = self.manifest.outputs
        outputs, values = given[: len(specs)], given[len(specs) :]
        if tokens == 1:  # tokens are on the last axis but one; values of a single row have none
            values = [value[..., :-1, :] if value.ndim > 2 and value.shape[-2] > 1 else value for value in values]
        return Tapped(
            fitting(zip(names, values, strict=True), modules),
            {spec.name: _cut(spec.shape, output, tokens) for spec, output in zip(specs, outputs, strict=True)},
        )

    def _traced(self) -> torch.fx.GraphModule:
        exported = move_to_device_pass(torch.export.load(self._path), str(self.device))  # constants too
        return exported.module()


def tap_modules(traced: torch.fx.GraphModule, modules: Collection[str]) -> list[str]:
    """Make what may be the outputs of modules outputs of a traced graph too, after its own.

    A value is copied where its module ends: what follows may add to it in place, as timm adds the position embedding.

    Returns:
        The module of each output that was added; several of a module, or none where it cannot be said.
    """
    graph = traced.graph
    places = _places(graph)
    found = module_outputs(_edges(places))
    last = {module: node for node in graph.nodes for module in places[node].modules}
    chosen = [(name, value) for name, values in found.items() if name in modules for value in values]
    copies = []
    for name, value in chosen:
        with graph.inserting_after(last[name]):
            copies.append(graph.call_function(torch.ops.aten.clone.default, (value,)))
    result = graph.output_node()
    result.args = ((*result.args[0], *copies),)  # type: ignore[misc]  # a traced graph gives a tuple
    graph.set_codegen(torch.fx.graph.CodeGen())  # torch.export's own knows how many outputs there were
    traced.recompile()
    return [name for name, _ in chosen]


def _places(graph: torch.fx.Graph) -> dict[torch.fx.Node, Place]:
    """Return where each node of a traced graph belongs."""
    places: dict[torch.fx.Node, Place] = {}
    for node in reversed(graph.nodes):  # readers come first
        scopes = [scope for scope, _ in node.meta.get("nn_module_stack", {}).values()]
        readers = [places[user] for user in node.users]
        places[node] = OUTSIDE if node.op == "output" else Place.of(scopes, readers)
    return places


def _edges(places: dict[torch.fx.Node, Place]) -> Iterator[Edge[torch.fx.Node]]:
    """Yield every floating tensor that a node makes."""
    for node, place in places.items():
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            yield Edge(node, place, tuple(places[user] for user in node.users))


def _cut(shape: tuple[int | str, ...], output: Tensor, tokens: int) -> Tensor:
    """Return an output without the token that `Layout.pad_single_token` may have added."""
    return output[:, :-1] if tokens == 1 and len(shape) == 3 else output


def resolve_device(device: torch.device | None) -> torch.device:
    """Return the device asked for, by default a GPU where there is one.

    Raises:
        BackendError: it is not on this machine.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device {str(device)!r} was asked for, and torch finds no CUDA device: use device='cpu'")
    return device
