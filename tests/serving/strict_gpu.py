"""A stand-in for a GPU, its streams and memory that runs on a CPU, and keeps a list of every rule that is broken.

Nothing runs when it is queued. Work waits until somebody waits for it, and then no more is done than is asked for: what
was not waited for is not there. Memory holds garbage until it is written, and may be used for something else as soon as
torch's allocator could.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from naflex_export.serving.gpu import ALIGNMENT, Gpu

GARBAGE = 0x7B

Work = Callable[["Stream", int], None]
"""What is queued on a stream: called with that stream, and its place in the queue."""


@dataclass(eq=False)
class Block:
    """Memory of a tensor.

    Attributes:
        stream: that it was made on.
        buffer: its bytes, from `start` on.
        reusable_after: once the tensor is gone, how much of each stream's work must be done before it is used again.
    """

    stream: Stream
    buffer: np.ndarray
    start: int
    size: int
    reusable_after: dict[Stream, int] | None = None

    @property
    def address(self) -> int:
        return self.buffer.ctypes.data + self.start

    def free(self) -> None:
        self.reusable_after = self.stream.reached()

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        start = address - self.buffer.ctypes.data
        return self.buffer[start : start + size]


class Stream:
    """A queue of work, and of waits for other queues; none of it runs before somebody asks for it."""

    def __init__(self, world: World, device: int, handle: int) -> None:
        self.world, self.device, self.cuda_stream = world, device, handle
        self.queue: list[Work | tuple[Stream, int]] = []
        self.done = 0
        self.captured: list[Work] | None = None

    def wait_stream(self, other: Stream) -> None:
        self.must_not_be_captured("waits for another stream")
        self.queue.append((other, len(other.queue)))

    def add(self, work: Work) -> None:
        """Queue work; it is told on which stream it runs, and at which place of its queue."""
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        self.must_not_be_captured("is waited for")
        self.finish(len(self.queue))

    def must_not_be_captured(self, what: str) -> None:
        if self.captured is not None:
            self.world.faults.append(f"a stream {what} while it is captured")

    def finish(self, count: int) -> None:
        """Do as much of the queue, and what that waits for of others; one thread at a time, as a GPU does it once."""
        with self.world.working:
            while self.done < count:
                step = self.queue[self.done]
                if isinstance(step, tuple):
                    step[0].finish(step[1])
                else:
                    step(self, self.done)
                self.done += 1

    def reached(self) -> dict[Stream, int]:
        """Return how much of each stream's work is done by the time that what is queued here is."""
        found: dict[Stream, int] = {}
        waiting = [(self, len(self.queue))]
        while waiting:
            stream, count = waiting.pop()
            before = found.get(stream, 0)
            found[stream] = max(before, count)
            waiting += [step for step in stream.queue[before:count] if isinstance(step, tuple)]
        return found


@dataclass
class World:
    """All that the stand-ins share.

    Attributes:
        faults: every rule that was broken.
        working: held by the thread that does what is queued.
    """

    faults: list[str] = field(default_factory=list)
    working: threading.RLock = field(default_factory=threading.RLock)
    blocks: list[Block] = field(default_factory=list)
    streams: dict[int, Stream] = field(default_factory=dict)
    _thread: threading.local = field(default_factory=threading.local)

    @property
    def device(self) -> int:
        """The thread's current device: 0 in each until it says otherwise."""
        found: int = getattr(self._thread, "device", 0)
        return found

    @device.setter
    def device(self, index: int) -> None:
        self._thread.device = index

    def stream(self, device: int) -> Stream:
        made = Stream(self, device, len(self.streams))
        self.streams[made.cuda_stream] = made
        return made

    def use(self, address: int, size: int, what: str, stream: Stream, at: int) -> np.ndarray:
        """Return the memory at an address for work at a place in a stream."""
        for block in self.blocks:
            if block.address <= address < block.address + block.size:
                if address + size > block.address + block.size:
                    self.faults.append(f"{what} is beyond the end of its tensor")
                    return np.full(size, GARBAGE, np.uint8)
                if block.reusable_after is not None and block.reusable_after.get(stream, 0) <= at:
                    self.faults.append(f"{what} is in memory that another tensor may have by then")
                if block.stream.device != stream.device:
                    self.faults.append(f"{what} is on another device")
                return block.bytes_at(address, size)
        self.faults.append(f"{what} is at no tensor's address")
        return np.full(size, GARBAGE, np.uint8)


class StrictGpu(Gpu):
    """A GPU whose tensors are on the CPU."""

    def __init__(self, world: World, index: int = 0) -> None:
        super().__init__(torch.device("cpu"))
        self.world, self.index = world, index
        self._default = world.stream(index)
        self._current = threading.local()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        before, self.world.device = self.world.device, self.index
        try:
            yield
        finally:
            self.world.device = before

    def callers_stream(self) -> Stream:
        found: Stream = getattr(self._current, "stream", self._default)
        return found

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Let a caller queue its work on another stream than the default one."""
        self._current.stream = stream
        try:
            yield
        finally:
            del self._current.stream

    def new_stream(self) -> Stream:
        return self.world.stream(self.index)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.tensor(shape, dtype, self.callers_stream())

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = self.empty(shape, dtype)
        self.launch(Tensor.zero_, made)
        return made

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, stream: Stream) -> Tensor:
        """Return a tensor in memory that belongs to a stream."""
        stream.must_not_be_captured("is given memory")
        size = int(np.prod(shape)) * dtype.itemsize
        buffer = np.full(size + ALIGNMENT, GARBAGE, np.uint8)
        block = Block(stream, buffer, -buffer.ctypes.data % ALIGNMENT, size)
        self.world.blocks.append(block)
        view = buffer[block.start : block.start + size]  # it lives as long as the tensor and all views of it
        weakref.finalize(view, block.free)
        return torch.from_numpy(view).view(dtype).view(tuple(shape))

    def readable(self, tensor: Tensor) -> Tensor:
        """Return it as `Gpu` does; what a call of the runner makes by torch is in memory of the caller's stream."""
        return super().readable(tensor) if self._has(tensor) else self.given(tensor)

    def _has(self, tensor: Tensor) -> bool:
        address = tensor.data_ptr()
        return any(block.address <= address < block.address + block.size for block in self.world.blocks)

    def padded(self, tensor: Tensor, axis: int, size: int) -> Tensor:
        made = self.zeros((*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]), tensor.dtype)

        def pad(source: Tensor, target: Tensor) -> None:
            target.narrow(axis, 0, source.shape[axis]).copy_(source)

        self.launch(pad, tensor, made)
        return made

    def copied(self, tensor: Tensor) -> Tensor:
        stream = self.callers_stream()
        made = self.tensor(tensor.shape, tensor.dtype, stream)
        self.copy(tensor, made, stream)
        return made

    def copy(self, source: Tensor, target: Tensor, stream: Stream) -> None:
        if self._has(source):
            self.launch(lambda read, written: written.copy_(read), source, target, stream=stream)
        else:  # what a call of the runner makes by torch is there already
            self.launch(lambda written: written.copy_(source), target, stream=stream)

    def captured(self, work: Callable[[], None], stream: Stream) -> Graph:
        if stream.cuda_stream == 0:
            self.world.faults.append("the default stream is captured")
        stream.captured = []
        try:
            work()
            return Graph(self.world, stream.captured)
        finally:
            stream.captured = None

    def replay(self, graph: Graph, stream: Stream) -> None:
        graph.replay(stream)

    def launch(self, kernel: Callable[..., Any], *tensors: Tensor, stream: Stream | None = None) -> None:
        """Queue a kernel, by default on the caller's stream; it knows its tensors by their addresses alone."""
        whats = [_Placed.of(tensor) for tensor in tensors]
        (stream or self.callers_stream()).add(
            lambda on, at: kernel(*(placed.found(self.world, on, at) for placed in whats))
        )

    def given(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the GPU which a kernel on the caller's stream has yet to write."""
        made = self.empty(tuple(tensor.shape), tensor.dtype)
        self.launch(lambda target: target.copy_(tensor), made)
        return made

    def read(self, *tensors: Tensor) -> list[Tensor]:
        """Return what tensors hold once all that is queued on the caller's stream is done."""
        self.callers_stream().synchronize()
        return [tensor.clone() for tensor in tensors]


class Graph:
    """What a stream was given while it was captured; each replay is the same work, at the same addresses."""

    def __init__(self, world: World, steps: list[Work]) -> None:
        self.world, self.steps = world, steps
        if not steps:
            world.faults.append("a graph with nothing in it")
        self.last: tuple[Stream, int] | None = None

    def replay(self, stream: Stream) -> None:
        if self.last is not None and self.last[0] is not stream:
            before, count = self.last
            if before.done < count and stream.reached().get(before, 0) < count:
                self.world.faults.append("a graph was replayed on a second stream while it was queued on the first")
        for step in self.steps:
            stream.add(step)
        self.last = (stream, len(stream.queue))


@dataclass
class _Placed:
    address: int
    size: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Placed:
        last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = (last + 1) * tensor.dtype.itemsize
        return cls(tensor.data_ptr(), size, tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def found(self, world: World, stream: Stream, at: int) -> Tensor:
        memory = world.use(self.address, self.size, "a kernel's tensor", stream, at)
        return torch.from_numpy(memory).view(self.dtype).as_strided(self.shape, self.strides)
