"""A run of an engine as a CUDA graph: captured once at fixed shapes and addresses, then replayed by one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from naflex_export.errors import BackendError
from naflex_export.serving.signature import TensorSpec
from naflex_export.serving.tensorrt_contexts import EngineContext

MOST_CAPTURED = 16
"""How many captured runs a runner keeps for later calls; each holds inputs, outputs and the engine's memory."""

Shapes = tuple[tuple[int, ...], ...]


class CapturedRun:
    """A context whose one run is captured, and all that the graph reads and writes, which stays where it is.

    Attributes:
        stream: on which it is captured and replayed.
    """

    def __init__(self, context: EngineContext, specs: Sequence[TensorSpec], shapes: Shapes) -> None:
        self.stream = context.stream
        self._context, self._gpu = context, context.gpu
        gpu = self._gpu
        self._inputs = [gpu.zeros(shape, getattr(torch, spec.dtype)) for spec, shape in zip(specs, shapes, strict=True)]
        context.set_shapes(self._inputs)
        self._memory = context.use_memory()
        self._outputs = context.empty_outputs()
        context.set_addresses(self._inputs, self._outputs)
        self.stream.wait_stream(gpu.callers_stream())
        # TensorRT puts off what a new shape asks for until the first run, and none of that may be in the graph
        context.run()
        self.stream.synchronize()
        try:
            self._graph = gpu.captured(context.run, self.stream)
        except RuntimeError as error:
            raise BackendError(
                f"this engine's run cannot be captured as a CUDA graph ({error}): load it without cuda_graph"
            ) from error

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs in tensors of their own, in memory of the caller's stream.

        Args:
            inputs: of the shapes that were captured.
        """
        gpu, caller = self._gpu, self._gpu.callers_stream()
        outputs = [gpu.empty(tuple(tensor.shape), tensor.dtype) for tensor in self._outputs]
        self.stream.wait_stream(caller)
        for given, held in zip(inputs, self._inputs, strict=True):
            gpu.copy(given, held, self.stream)
        gpu.replay(self._graph, self.stream)
        for held, made in zip(self._outputs, outputs, strict=True):
            gpu.copy(held, made, self.stream)
        caller.wait_stream(self.stream)
        return outputs
