"""What a runner that queues work by itself asks of a GPU: its streams, and memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 256
"""In bytes: what TensorRT asks of every address. torch's own memory has it, and a part of a tensor may not."""


class Gpu:
    """A GPU, as torch has it. Tests put another in its place, which is strict and needs no GPU.

    Memory belongs to the stream that was current when it was made: once a tensor is gone, torch may use its memory
    again for work that is queued on that stream later. Work on another stream must be waited for by that one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def current(self) -> AbstractContextManager[Any]:
        """Return a context in which this GPU is the process's current device."""
        return torch.cuda.device(self.device)

    def callers_stream(self) -> Any:
        """Return the stream on which the caller queues its work."""
        return torch.cuda.current_stream(self.device)

    def new_stream(self) -> Any:
        """Return a further stream."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of any content, in memory of the caller's stream."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of zeros, which the caller's stream writes."""
        return self.empty(shape, dtype).zero_()

    def readable(self, tensor: Tensor) -> Tensor:
        """Return the tensor in one piece at an aligned address: itself, or a copy made on the caller's stream."""
        if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
            return tensor
        return self.copied(tensor)

    def padded(self, tensor: Tensor, axis: int, size: int) -> Tensor:
        """Return a copy with zeros behind what there is along an axis, made on the caller's stream.

        Args:
            tensor: to be copied.
            axis: along which the copy is longer.
            size: of the copy, along it.
        """
        made = self.zeros((*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]), tensor.dtype)
        made.narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
        return made

    def copied(self, tensor: Tensor) -> Tensor:
        """Return a copy in one piece, made on the caller's stream."""
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def copy(self, source: Tensor, target: Tensor, stream: Any) -> None:
        """Copy what a tensor holds into another of its shape, on a stream.

        Args:
            source: to be read, however it lies in memory.
            target: to be written.
            stream: on which that is queued.
        """
        with torch.cuda.stream(stream):
            target.copy_(source)

    def captured(self, work: Callable[[], None], stream: Any) -> Any:
        """Return a CUDA graph of what `work` queues on a stream; none of it is run.

        Args:
            work: that queues on that stream alone, allocates nothing and waits for nothing. Other threads may.
            stream: none that is a default one.

        Raises:
            RuntimeError: it did something that cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # the stream must leave capture, and what failed first is what to tell
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def replay(self, graph: Any, stream: Any) -> None:
        """Queue all of a captured graph on a stream."""
        with torch.cuda.stream(stream):
            graph.replay()
