"""What a server is asked to do, and how it refuses a request."""

from __future__ import annotations

from dataclasses import dataclass

from naflex_export.embed.decode import MOST_PIXELS
from naflex_export.errors import RequestError


@dataclass(frozen=True)
class ServeSettings:
    """How a server takes requests and puts them together.

    Attributes:
        size: images of a full batch; None for the usual batch of the artifact's largest bucket.
        wait: how long an image may wait for others, in seconds.
        most_waiting: images that may be in the server at once, from their request to its answer; more are refused.
        most_bytes: of a request.
        most_pixels: of a photo.
        decoders: threads that decode photos.
        upscale: enlarge photos of fewer patches than the budget; None as the artifact's own library.

    Raises:
        RequestError: a value is not possible.
    """

    size: int | None = None
    wait: float = 0.005
    most_waiting: int = 256
    most_bytes: int = 32 * 2**20
    most_pixels: int = MOST_PIXELS
    decoders: int = 2
    upscale: bool | None = None

    def __post_init__(self) -> None:
        for name in ("most_waiting", "most_bytes", "most_pixels", "decoders"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)!r}: expected an integer of at least 1")


class Refused(Exception):
    """A request that is not answered with vectors.

    Attributes:
        status: of the answer, as HTTP has it: 4xx where the request is at fault, 503 where it may come again.
        message: what was given, what was expected and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
