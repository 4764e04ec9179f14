"""`Embedder`: photos in, vectors out in order, decoded by threads while the model computes.

Photos are taken from an iterable as they are needed, never more than a window of them at once, so that memory stays the
same however many there are. They are batched by bucket: a photo goes into the smallest that takes its patches. A photo
of a rare size waits for others of its bucket, and no longer than the window lasts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from naflex_export.embed.decode import Photo
from naflex_export.embed.preprocess import Array, Patches, Preprocessor
from naflex_export.embed.run_arrays import open_run
from naflex_export.errors import PhotoError, RequestError
from naflex_export.grid import Bucket, Grid
from naflex_export.serving.manifest import Manifest
from naflex_export.serving.opened import Loaded

BATCHES_AHEAD = 4
"""How many batches of photos are in work at once: decoded, waiting for their bucket, or embedded and not yet taken."""


@dataclass
class Embedded:
    """What became of a photo.

    Attributes:
        vector: [C] float32; None of a bad photo.
        grid: of the photo, in patches; None of a bad one.
        error: what is wrong with it; None of a good one.
    """

    vector: NDArray[np.float32] | None = None
    grid: Grid | None = None
    error: PhotoError | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is a vector or an error."""
        return self.vector is not None or self.error is not None


class Embedder(Loaded):
    """Embeds photos with an artifact. An ONNX artifact in float32 or float16 needs no torch.

    Vectors are the model's features as it gives them, of any length: bring them to length 1 to compare directions.

    Args:
        path: the artifact's folder.
        device: where to run; as for `load`.
        tokens: the most patches of a photo; the largest bucket's by default.
        batch: images of a batch; a bucket's most usual number by default.
        threads: that decode photos.
        patch_size: which one, of an artifact of several.
        trusted: as for `load`: with False an artifact that holds code is refused.
        verify: as for `load`.
        policy: for photos that are no plain RGB images, as for `Preprocessor.of`.

    Attributes:
        manifest: what the artifact says of itself.
        preprocessor: from photos to inputs.
        width: the number of values in a vector.

    Raises:
        ArtifactError, BackendError, RequestError: as `load` and `Preprocessor.of`.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        device: str | None = None,
        tokens: int | None = None,
        batch: int | None = None,
        threads: int = 2,
        patch_size: int | None = None,
        trusted: bool = True,
        verify: str = "full",
        **policy: Any,
    ) -> None:
        folder = Path(path)
        self.preprocessor = Preprocessor.of(folder, patch_size=patch_size, **policy)
        self.manifest = Manifest.read(folder)
        if self.manifest.by_patch_size:
            folder = folder / self.manifest.by_patch_size[self.preprocessor.preprocessing.patch_size[0]]
            self.manifest = Manifest.read(folder)
        for name, value in (("batch", batch), ("threads", threads), ("tokens", tokens)):
            if value is not None and (type(value) is not int or value < 1):
                raise RequestError(f"{name}={value!r}: expected an integer of at least 1")
        self._buckets = self.manifest.buckets
        self.tokens = self.preprocessor.tokens if tokens is None else tokens
        if self.tokens > self.preprocessor.tokens:
            raise RequestError(
                f"tokens={tokens}: expected at most {self.preprocessor.tokens}, the largest bucket of the artifact"
            )
        self._sizes = {bucket: self._size_of(bucket, batch) for bucket in self._buckets}
        self.threads = threads
        self._run = open_run(folder, self.manifest, device=device, trusted=trusted, verify=verify)
        features = next(spec for spec in self.manifest.outputs if spec.name == "features")
        self.width = int(features.shape[-1])

    @staticmethod
    def _size_of(bucket: Bucket, asked: int | None) -> int:
        smallest, usual, largest = bucket.batch
        return min(max(usual if asked is None else asked, smallest), largest)

    def __call__(self, photos: Iterable[Photo]) -> Iterator[NDArray[np.float32] | PhotoError]:
        """Yield the vector [C] of each photo, float32, in order; in the place of a bad photo what is wrong with it.

        Args:
            photos: paths, bytes, PIL images or numpy arrays, as many as there are.
        """
        for found in self.results(photos):
            if found.error is not None:
                yield found.error
            elif found.vector is not None:
                yield found.vector

    def results(self, photos: Iterable[Photo]) -> Iterator[Embedded]:
        """Yield what became of each photo, in order: vector and grid, or the error.

        Args:
            photos: as for a call.
        """
        source, is_over = iter(photos), False
        window = BATCHES_AHEAD * max(self._sizes.values())
        order: deque[Embedded] = deque()
        decoding: deque[tuple[Embedded, Future[Patches]]] = deque()
        groups: dict[Bucket, list[tuple[Embedded, Patches]]] = {bucket: [] for bucket in self._buckets}
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="naflex-decode")
        try:
            while True:
                while not is_over and len(order) < window:
                    try:
                        photo = next(source)
                    except StopIteration:
                        is_over = True
                        break
                    order.append(Embedded())
                    decoding.append((order[-1], pool.submit(self.preprocessor.one, photo, self.tokens)))
                if decoding:
                    self._take(*decoding.popleft(), groups)
                elif order:  # the window is full, or there are no more photos: the oldest must not wait any longer
                    self._flush(self._group_of(order[0], groups), groups)
                else:
                    return
                while order and order[0].is_done:
                    yield order.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _take(
        self,
        found: Embedded,
        future: Future[Patches],
        groups: dict[Bucket, list[tuple[Embedded, Patches]]],
    ) -> None:
        """Put a decoded photo into its bucket's group, and run the group if it is full."""
        try:
            patches = future.result()
        except PhotoError as error:
            found.error = error
            return
        found.grid = patches[1]
        bucket = next(one for one in self._buckets if one.tokens >= patches[1].tokens)
        groups[bucket].append((found, patches))
        if len(groups[bucket]) >= self._sizes[bucket]:
            self._flush(bucket, groups)

    @staticmethod
    def _group_of(found: Embedded, groups: dict[Bucket, list[tuple[Embedded, Patches]]]) -> Bucket:
        return next(bucket for bucket, group in groups.items() if any(one is found for one, _ in group))

    def _flush(self, bucket: Bucket, groups: dict[Bucket, list[tuple[Embedded, Patches]]]) -> None:
        """Embed a bucket's group as one batch."""
        group, groups[bucket] = groups[bucket], []
        vectors = self.embed([patches for _, patches in group], bucket)
        for (found, _), vector in zip(group, vectors, strict=True):
            found.vector = vector

    def embed(self, made: list[Patches], bucket: Bucket) -> Array:
        """Return the vectors [B, C] of preprocessed photos, as one batch padded to a bucket.

        Fewer than the bucket's smallest batch are repeated, and the vectors of the repetitions left out.

        Args:
            made: what `Preprocessor.one` gave of each.
            bucket: one of the artifact's.
        """
        filled = [made[index % len(made)] for index in range(max(len(made), bucket.batch[0]))]
        return self._run(self.preprocessor.collate(filled, bucket.tokens))[: len(made)].copy()
