"""`Batcher`: images that come one by one, put together to batches of their buckets, none of them kept waiting.

It computes nothing and starts no thread: `put` and `take` are called by whoever has images and whoever runs batches.
The clock is an argument, so that what it does in a stream of a second is the same in a test without one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from naflex_export.errors import InputError, RequestError
from naflex_export.grid import Bucket, check_buckets

Item = TypeVar("Item")


@dataclass(frozen=True)
class Waiting(Generic[Item]):
    """An image in the queue of its bucket.

    Attributes:
        item: what was put.
        number: how many came before it.
        since: when it came, by the Batcher's clock.
    """

    item: Item
    number: int
    since: float


@dataclass(frozen=True)
class ReadyBatch(Generic[Item]):
    """Images to run together.

    Attributes:
        bucket: whose tokens they are padded to.
        items: what was put of each, in the order in which they came to their queues.
    """

    bucket: Bucket
    items: tuple[Item, ...]


class Batcher(Generic[Item]):
    """Puts images of a stream together to batches, each of one bucket.

    An image waits in the queue of the smallest bucket that holds its tokens. `take` gives, when called:

    1. the images that have waited as long as they may, oldest first, in one batch of the largest of their buckets;
    2. where they are more than a batch takes, so that images come faster than they are run, a batch of the bucket of
       the oldest, by itself: batches stay full, and their padding small;
    3. without any, a batch of a bucket that has enough images for a full one, the longest waiting first;
    4. otherwise nothing.

    A batch of 1 or 2 with room left is filled from its own bucket's queue, then from that of the next smaller one.

    So an image waits no longer than the bound plus one batch: at its bound at most one batch is running, and the next
    one has it. Where images come faster than batches are run nothing can hold a bound; they are then taken in order of
    the oldest, none is passed over for good, and the caller has to stop putting (`len` says how many wait).

    It may be used from several threads at once.

    Args:
        buckets: that images are padded to; a number stands for a bucket of as many tokens.
        size: images of a full batch.
        wait: how long an image may wait for others, in seconds.
        clock: what says the time, in seconds.

    Raises:
        RequestError: there is no bucket, a bucket's largest batch is smaller than `size`, or `wait` is negative.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket | int] | Bucket | int,
        size: int = 8,
        wait: float = 0.01,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.buckets = check_buckets(buckets)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise RequestError(f"size={size!r}: expected an integer of at least 1, the images of a full batch")
        for bucket in self.buckets:
            if size > bucket.batch[2]:
                raise RequestError(
                    f"size={size}: expected at most {bucket.batch[2]}, the largest batch of bucket {bucket}"
                )
        if not wait >= 0:
            raise RequestError(f"wait={wait!r}: expected seconds of at least 0")
        self.size, self.wait = size, wait
        self._clock = clock
        self._queues: list[deque[Waiting[Item]]] = [deque() for _ in self.buckets]
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many images wait."""
        with self._lock:
            return sum(map(len, self._queues))

    def put(self, item: Item, tokens: int) -> None:
        """Put an image into its queue.

        Raises:
            InputError: it has more tokens than the largest bucket holds.
        """
        for bucket, queue in zip(self.buckets, self._queues, strict=True):
            if tokens <= bucket.tokens:
                with self._lock:
                    queue.append(Waiting(item, next(self._numbers), self._clock()))
                return
        served = ", ".join(str(bucket.tokens) for bucket in self.buckets)
        raise InputError(
            f"{tokens} tokens are more than any bucket takes ({served}): resize the image to fewer patches"
        )

    def take(self, at_once: bool = False) -> ReadyBatch[Item] | None:
        """Return the next batch to run, None where none is due yet.

        Args:
            at_once: take what waits, bucket by bucket, without waiting for more, as at the end of a stream.
        """
        with self._lock:
            late = self._late()
            if not at_once and 0 < sum(late) <= self.size:
                return self._batch(max(number for number, count in enumerate(late) if count), late, fill=True)
            number = self._longest_waiting(1 if at_once or any(late) else self.size)
            return None if number is None else self._batch(number, fill=not at_once and any(late))

    def due_in(self) -> float | None:
        """Return in how many seconds `take` has a batch if no image comes: 0 where it has one, None if none waits."""
        with self._lock:
            if any(len(queue) >= self.size for queue in self._queues):
                return 0.0
            heads = [queue[0].since for queue in self._queues if queue]
            return max(0.0, min(heads) + self.wait - self._clock()) if heads else None

    def _late(self) -> list[int]:
        """Return how many images of each queue, its first ones, have waited as long as they may; at most size + 1."""
        now = self._clock()
        first = (itertools.islice(queue, self.size + 1) for queue in self._queues)
        return [sum(waiting.since + self.wait <= now for waiting in waitings) for waitings in first]

    def _longest_waiting(self, count: int) -> int | None:
        """Return the queue whose first image came first, of those of at least so many images; None of none."""
        queues = [queue for queue, waiting in enumerate(self._queues) if len(waiting) >= count]
        return min(queues, key=lambda queue: self._queues[queue][0].number, default=None)

    def _batch(self, number: int, late: Sequence[int] = (), fill: bool = False) -> ReadyBatch[Item]:
        """Return a batch of a bucket: the late images of all queues, then of its own, then of the next smaller one."""
        taken: list[Item] = []
        for queue, count in zip(self._queues, late, strict=False):
            taken += [queue.popleft().item for _ in range(count)]
        smaller = [each for each in range(number - 1, -1, -1) if self._queues[each]][:1] if fill else []
        for each in (number, *smaller):
            queue = self._queues[each]
            taken += [queue.popleft().item for _ in range(min(len(queue), self.size - len(taken)))]
        return ReadyBatch(self.buckets[number], tuple(taken))
