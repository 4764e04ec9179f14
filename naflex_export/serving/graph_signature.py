"""A graph's real inputs and outputs, held against what the manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from naflex_export.errors import ArtifactError
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.signature import TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def check_graph(manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check that a graph takes and gives what its manifest says: names, dtypes, ranks, and sizes where they are fixed.

    Args:
        manifest: the artifact's.
        inputs: the graph's own.
        outputs: the graph's own.

    Raises:
        ArtifactError: it does not.
    """
    for kind, said, real in (("input", manifest.inputs, inputs), ("output", manifest.outputs, outputs)):
        names, real_names = sorted(spec.name for spec in said), sorted(spec.name for spec in real)
        if names != real_names:
            raise ArtifactError(
                f"the graph's {kind}s are {', '.join(real_names)[:200]}, and the manifest says "
                f"{', '.join(names)[:200]}: export again"
            )
        own = {spec.name: spec for spec in real}
        for spec in said:
            if spec.dtype != own[spec.name].dtype or _fixed(spec) != _fixed(own[spec.name]):
                raise ArtifactError(
                    f"the graph has the {kind} {own[spec.name]}, and the manifest says {spec}: export again"
                )


def check_program(manifest: Manifest, exported: ExportedProgram) -> None:
    """Check that a traced graph takes and gives what its manifest says, as often as its buckets say.

    Args:
        manifest: the artifact's.
        exported: the graph; its outputs have no names.

    Raises:
        ArtifactError: it does not.
    """
    from torch import SymInt

    taken = set(exported.graph_signature.user_inputs)
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder" and node.name in taken]
    inputs = [_spec(node.name, node.meta.get("val")) for node in nodes]
    values = [getattr(node, "meta", {}).get("val") for node in exported.graph.output_node().args[0]]
    named = [spec.name for spec in manifest.outputs] + [f"a further one ({index})" for index in range(len(values))]
    outputs = [_spec(name, value) for name, value in zip(named, values, strict=False)]
    check_graph(manifest, inputs, outputs)
    opened = {dim for spec in manifest.inputs for dim in spec.shape if isinstance(dim, str)}
    largest = {
        name: max(bucket.dims_of(opened)[name].largest for bucket in manifest.buckets)
        for name in manifest.buckets[0].dims_of(opened)
    }
    for spec, node in zip(manifest.inputs, nodes, strict=True):
        for dim, size in zip(spec.shape, node.meta["val"].shape, strict=True):
            if dim in largest and isinstance(size, SymInt) and size.node.expr in exported.range_constraints:
                most, asked = exported.range_constraints[size.node.expr].upper, largest[str(dim)]
                if asked > most:
                    raise ArtifactError(
                        f"the graph takes up to {most} of {dim}, and the manifest's buckets say {asked}: export again"
                    )


def _spec(name: str, value: Any) -> TensorSpec:
    from torch import Tensor

    if not isinstance(value, Tensor):
        return TensorSpec(name, type(value).__name__, ())
    shape = tuple(size if type(size) is int else str(size) for size in value.shape)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


def _fixed(spec: TensorSpec) -> list[int | None]:
    """Return the sizes of a tensor's dimensions, None where one is open."""
    return [dim if isinstance(dim, int) else None for dim in spec.shape]
