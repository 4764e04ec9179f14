"""The artifact behind the requests: photos decoded in threads, images batched, batches run one after the other.

A fault stays with its image: a photo that cannot be read never comes to a batch, and of a batch that fails each image
is run by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from PIL import Image as PILImage

from naflex_export.embed.arrays import image_of
from naflex_export.embed.batcher import Batcher, ReadyBatch
from naflex_export.embed.preprocess import Patches
from naflex_export.errors import InputError, PhotoError
from naflex_export.grid import Bucket
from naflex_export.server.asked import Image
from naflex_export.server.metrics import Metrics
from naflex_export.server.settings import Refused, ServeSettings
from naflex_export.server.vectors import Served, Vector, vectors_or_faults

Result = TypeVar("Result")


@dataclass(frozen=True)
class Waiting:
    """An image in the queue, and who waits for its vector."""

    made: Patches
    vector: asyncio.Future[Vector]


class Engine:
    """Answers images with vectors. All but decoding and running happens in the event loop's thread.

    Args:
        served: the artifact.
        settings: of the server.
        metrics: counts what happens.
    """

    def __init__(self, served: Served, settings: ServeSettings, metrics: Metrics) -> None:
        self.served, self.settings, self.metrics = served, settings, metrics
        buckets = served.manifest.buckets
        self.batcher: Batcher[Waiting] = Batcher(buckets, _size(buckets, settings), settings.wait)
        self.accepting = True
        self._width = int(served.manifest.inputs[0].shape[-1])
        self._inside = 0
        self._came = asyncio.Event()
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._runner = ThreadPoolExecutor(1, thread_name_prefix="run")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run batches; called in the event loop."""
        self._loop = asyncio.create_task(self._run_batches())

    async def close(self) -> None:
        """Stop; called when no request is left."""
        self.accepting = False
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        self._decoders.shutdown()
        self._runner.shutdown()

    @property
    def full(self) -> str:
        """Why a request is not taken now."""
        if not self.accepting:
            return "the server is stopping: come again, to another"
        return f"{self._inside} images are in the queue of {self.settings.most_waiting}: come again"

    @property
    def is_ready(self) -> bool:
        """Whether a request of one image would be taken."""
        return self.accepting and self._inside < self.settings.most_waiting

    async def vectors_of(self, images: Sequence[Image], tokens: int | None = None) -> list[tuple[Vector, Patches]]:
        """Return the vectors of the images of one request, with the patches that they are of.

        Args:
            images: of the request.
            tokens: the most of a photo; the largest bucket's by default.

        Raises:
            Refused: the queue is full, or an image is at fault; of several the first that was found.
        """
        if self._inside + len(images) > self.settings.most_waiting:
            self.metrics.images.labels("refused").inc(len(images))
            if len(images) > self.settings.most_waiting:
                raise Refused(
                    413, f"the request has {len(images)} images: expected at most {self.settings.most_waiting}"
                )
            raise Refused(503, self.full)
        self._inside += len(images)
        self.metrics.waiting.set(self._inside)
        try:
            made = await _all(self._made(image, tokens) for image in images)
            vectors = await _all(self._queued(one) for one in made)
        except Refused as error:
            self.metrics.images.labels("failed" if error.status >= 500 else "refused").inc(len(images))
            raise
        finally:
            self._inside -= len(images)
            self.metrics.waiting.set(self._inside)
        self.metrics.images.labels("embedded").inc(len(images))
        return list(zip(vectors, made, strict=True))

    async def _made(self, image: Image, tokens: int | None) -> Patches:
        """Return the patches of an image, decoded in a thread where it is a photo, and checked where it is not."""
        if image.photo is None:
            try:
                return image_of(image.arrays or {}, self._width, image.name)
            except InputError as error:
                raise Refused(400, str(error)) from error
        photo, one, began = image.photo, self.served.preprocessor.one, time.perf_counter()
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._decoders, one, photo, tokens)
        except PhotoError as error:
            raise Refused(413 if self._is_too_large(photo) else 400, f"{image.name}: {error}") from error
        self.metrics.decoding.observe(time.perf_counter() - began)
        return made

    def _is_too_large(self, photo: bytes) -> bool:
        try:
            with PILImage.open(io.BytesIO(photo)) as image:
                return image.width * image.height > self.settings.most_pixels
        except PILImage.DecompressionBombError:
            return True
        except Exception:  # decoders raise errors of any class on damaged files
            return False

    async def _queued(self, made: Patches) -> Vector:
        vector = asyncio.get_running_loop().create_future()
        try:
            self.batcher.put(Waiting(made, vector), made[1].tokens)
        except InputError as error:
            raise Refused(400, str(error)) from error
        self._came.set()
        return await vector

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._came.clear()
            batch = self.batcher.take()
            if batch is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._came.wait(), self.batcher.due_in())
                continue
            waiting = [one for one in batch.items if not one.vector.done()]  # its client may have gone
            if not waiting:
                continue
            ready = ReadyBatch(batch.bucket, tuple(waiting))
            try:
                answers = await loop.run_in_executor(self._runner, self._answers, ready)
            except Exception as error:  # nobody may wait for ever, whatever went wrong
                answers = [type(error).__name__] * len(waiting)
            for one, answer in zip(waiting, answers, strict=True):
                if one.vector.done():
                    continue
                if isinstance(answer, str):
                    one.vector.set_exception(Refused(500, f"the artifact did not run: {answer}"))
                else:
                    one.vector.set_result(answer)

    def _answers(self, batch: ReadyBatch[Waiting]) -> list[Vector | str]:
        made, tokens, began = [one.made for one in batch.items], batch.bucket.tokens, time.perf_counter()
        found = vectors_or_faults(self.served.embed, made, batch.bucket)
        self.metrics.ran(tokens, [grid.tokens for _, grid in made], time.perf_counter() - began)
        return found


async def _all(awaited: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return all results, or raise the first error once each has one."""
    found = await asyncio.gather(*awaited, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return cast(list[Result], found)


def _size(buckets: Sequence[Bucket], settings: ServeSettings) -> int:
    return settings.size or min(buckets[-1].batch[1], *(bucket.batch[2] for bucket in buckets))
