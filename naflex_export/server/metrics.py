"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("naflex_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "naflex_request_seconds", "From a request to its answer.", ["path"], buckets=SECONDS, registry=registry
        )
        self.images = Counter("naflex_images", "Images, by what became of them.", ["outcome"], registry=registry)
        self.waiting = Gauge("naflex_images_inside", "Images between request and answer.", registry=registry)
        self.decoding = Histogram(
            "naflex_decode_seconds", "From a photo to patches.", buckets=SECONDS, registry=registry
        )
        self.running = Histogram(
            "naflex_batch_seconds", "A batch's run, by its bucket.", ["tokens"], buckets=SECONDS, registry=registry
        )
        self.batches = Histogram(
            "naflex_batch_images", "Images of a batch, by its bucket.", ["tokens"], buckets=SIZES, registry=registry
        )
        self.tokens = Counter(
            "naflex_tokens", "Tokens that were run: of images, or padding.", ["kind"], registry=registry
        )

    def ran(self, tokens: int, counts: Sequence[int], seconds: float) -> None:
        """Count a batch that was run.

        Args:
            tokens: of its bucket.
            counts: tokens of each image.
            seconds: that it took.
        """
        self.running.labels(tokens).observe(seconds)
        self.batches.labels(tokens).observe(len(counts))
        self.tokens.labels("image").inc(sum(counts))
        self.tokens.labels("padding").inc(tokens * len(counts) - sum(counts))

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return bytes(generate_latest(self._registry))
