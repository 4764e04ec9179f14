"""The engine behind the requests, with a model of the tests' own that can fail."""

# ruff: noqa: E402  the packages of the extra are looked for before what needs them is imported

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import artifacts
import numpy as np
import pytest

import naflex_export as nx
from naflex_export.errors import PhotoError

for package in ("fastapi", "prometheus_client", "orjson"):
    pytest.importorskip(package, reason=f"{package} is of the extra 'serve' and not installed")

from naflex_export.server.asked import Image
from naflex_export.server.engine import Engine
from naflex_export.server.metrics import Metrics
from naflex_export.server.settings import Refused, ServeSettings
from naflex_export.server.vectors import Served


def image(value: float, tokens: int = 4) -> Image:
    return Image("it", arrays={"patches": np.full((tokens, 48), value), "grid": [1, tokens]})


class Model:
    """Gives each image its first value, fails on a batch with a 13 in it, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def __call__(self, made: Sequence[Any], tokens: int) -> np.ndarray:
        values = [float(patches[0, 0]) for patches, _ in made]
        self.batches.append(values)
        if 13 in values:
            raise ValueError("unlucky")
        return np.array([[np.inf if value == 99 else value] * 2 for value in values], np.float32)


class NoPhotos:
    """A preprocessor that takes every photo for something else."""

    def one(self, photo: bytes, tokens: int | None) -> None:
        raise PhotoError(f"{photo!r} is none")


async def answers(engine: Engine, images: Sequence[Image]) -> list[float | str]:
    """Return the value or the fault of each image, each asked for by a request of its own at the same time."""
    engine.start()
    found = await asyncio.gather(*(engine.vectors_of([one]) for one in images), return_exceptions=True)
    await engine.close()
    return [f"{one.status} {one.message}" if isinstance(one, Refused) else float(one[0][0][0]) for one in found]  # type: ignore[index]


def ask(model: Model, images: Sequence[Image], batch: tuple[int, int, int] = (1, 4, 8), **settings: Any) -> list[Any]:
    async def run() -> list[Any]:
        manifest = artifacts.manifest(buckets=(nx.Bucket(16, batch),))
        chosen = ServeSettings(**{"size": 4, "wait": 0.02, **settings})
        engine = Engine(Served(manifest, NoPhotos(), model), chosen, Metrics())  # type: ignore[arg-type]
        return await answers(engine, images)

    return asyncio.run(run())


def test_an_image_that_makes_a_batch_fail_fails_alone() -> None:
    model = Model()
    found = ask(model, [image(value) for value in (1, 2, 13, 3)])
    assert found == [1, 2, "500 the artifact did not run: ValueError", 3]
    assert model.batches == [[1, 2, 13, 3], [1], [2], [13], [3]]


def test_a_fault_of_the_server_itself_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([KeyError("x")])

    def ran(self: Metrics, *told: object) -> None:
        for error in counted:
            raise error

    monkeypatch.setattr(Metrics, "ran", ran)
    found = ask(Model(), [image(1), image(2), image(3)], size=2)
    assert found == [*["500 the artifact did not run: KeyError"] * 2, 3]


def test_a_vector_that_is_not_finite_is_a_fault_of_its_own() -> None:
    found = ask(Model(), [image(1), image(99)])
    assert found == [1, "500 the artifact did not run: it gave values that are not finite"]


def test_a_batch_smaller_than_the_smallest_is_filled_with_images_again() -> None:
    model = Model()
    assert ask(model, [image(1), image(2)], batch=(3, 4, 8)) == [1, 2]
    assert model.batches == [[1, 2, 1]]


def test_images_beyond_the_queue_are_refused_and_the_rest_served() -> None:
    found = ask(Model(), [image(value) for value in range(5)], most_waiting=3)
    assert found == [0, 1, 2, *["503 3 images are in the queue of 3: come again"] * 2]


def test_faults_of_a_request_leave_nothing_inside() -> None:
    found = ask(Model(), [image(1, tokens=17), Image("it", photo=b"no photo"), image(2)], most_waiting=3)
    assert str(found[0]).startswith("400 17 tokens are more than any bucket takes")
    assert found[1] == "400 it: b'no photo' is none" and found[2] == 2


@pytest.mark.parametrize("name", ["most_waiting", "most_bytes", "most_pixels", "decoders"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(nx.RequestError, match=f"{name}=0: expected an integer of at least 1"):
        ServeSettings(**{name: 0})
