"""From a request's body to the images that it asks for: photos as bytes, or patches with a grid.

Every fault is `Refused` with a status of 4xx, and names the image that it is of.
"""

from __future__ import annotations

import base64
import binascii
import io
import zipfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from naflex_export.server.settings import Refused

DRAINED = 8
"""How many times the limit of bytes is read and thrown away, so that a client which is sending gets its answer."""

NPZ = ("application/x-npz", "application/zip")

IMAGES_ALONE = "this server takes images alone, vectors of texts are what run.text([...]) of a loaded artifact gives"
"""What is said to whoever sends a text."""


@dataclass(frozen=True)
class Image:
    """An image of a request.

    Attributes:
        name: where in the request it is, for messages.
        photo: the bytes of an image file; None where there are patches.
        arrays: patches and their grid or coordinates, which are yet to be checked; None where there is a photo.
    """

    name: str
    photo: bytes | None = None
    arrays: Mapping[str, Any] | None = None


async def body_of(headers: Mapping[str, str], stream: AsyncIterator[bytes], most: int) -> bytes:
    """Return the body of a request.

    Args:
        headers: of the request.
        stream: its body.
        most: bytes.

    Raises:
        Refused: it has more, with status 413.
    """
    said = headers.get("content-length", "")
    announced = int(said) if said.isdecimal() else 0
    parts, length = [], 0
    if announced <= DRAINED * most:
        async for part in stream:
            length += len(part)
            if length > DRAINED * most:
                break
            if max(length, announced) <= most:
                parts.append(part)
    if max(length, announced) > most:
        raise Refused(413, f"the request has {max(length, announced)} bytes: expected at most {most}")
    return b"".join(parts)


async def drained(stream: AsyncIterator[bytes], most: int) -> None:
    """Read a body that nobody wants, up to a number of bytes, so that its client gets the answer."""
    length = 0
    async for part in stream:
        length += len(part)
        if length > most:
            break


async def images_of(body: bytes, content_type: str, most: int) -> list[Image]:
    """Return the images of a request to `/embed`, by its content type.

    `image/*` and `application/octet-stream` are one photo; `multipart/form-data` has a photo in each file;
    `application/json` has `images`, a list of base64, or `patches` and a grid, or a list of those as `inputs`;
    `application/x-npz` has the arrays `patches` and `grid`.

    Args:
        body: of the request.
        content_type: as its header says.
        most: bytes that a compressed body may hold.

    Raises:
        Refused: the body is not of that type, or says no image.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = await _of_form(body, content_type)
    elif kind == "application/json":
        found = _of_json(parsed(body))
    elif kind in NPZ:
        found = [_of_npz(body, most)]
    elif kind.startswith("image/") or kind == "application/octet-stream":
        found = [Image("the body", photo=body)]
    else:
        raise Refused(
            415,
            f"content type {kind or 'none'!r} is not taken: expected multipart/form-data, application/json, image/*, "
            f"application/octet-stream or {NPZ[0]}" + (f"; {IMAGES_ALONE}" if kind.startswith("text/") else ""),
        )
    if not found:
        raise Refused(400, "the request has no image: expected at least one")
    if any(image.photo == b"" for image in found):
        raise Refused(400, f"{next(image.name for image in found if image.photo == b'')} is empty: expected a photo")
    return found


def parsed(body: bytes) -> dict[str, Any]:
    """Return the object that a body of JSON holds.

    Raises:
        Refused: it holds none.
    """
    try:
        found = orjson.loads(body)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise Refused(400, f"the body is a JSON {type(found).__name__}: expected an object")
    return cast(dict[str, Any], found)


def images_of_input(given: dict[str, Any]) -> list[Image]:
    """Return the images of a request to `/v1/embeddings`: its `input`, one or a list.

    Each is a data URL or base64, as it is or in `{"image": ...}` or `{"type": "image_url", "image_url": {"url": ...}}`.

    Raises:
        Refused: there is none, or one is something else.
    """
    if "input" not in given:
        raise Refused(400, "'input' is missing: expected an image as a data URL or base64, or a list of those")
    several = given["input"] if isinstance(given["input"], list) else [given["input"]]
    if not several:
        raise Refused(400, "'input' is empty: expected at least one image")
    found = []
    for number, one in enumerate(several):
        name, value = f"input[{number}]", one
        if isinstance(value, dict):
            value = value.get("image_url", value.get("image"))
        if isinstance(value, dict):
            value = value.get("url")
        found.append(Image(name, photo=decoded(value, name)))
    return found


def decoded(value: object, name: str) -> bytes:
    """Return the bytes of a photo in base64, or in a data URL.

    Args:
        value: what was given.
        name: where in the request it is.

    Raises:
        Refused: it is something else; a URL is never fetched.
    """
    if not isinstance(value, str):
        raise Refused(400, f"{name} is {_kind(value)}: expected a photo in base64, or as a data URL")
    if value.startswith(("http://", "https://", "file:")):
        raise Refused(400, f"{name} is the address {value[:100]!r}: this server fetches none, send the photo itself")
    if value.startswith("data:"):
        head, comma, value = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refused(400, f"{name} is a data URL without ';base64,': expected data:image/jpeg;base64,...")
    try:
        photo = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name} is no base64 ({error}): expected a photo; {IMAGES_ALONE}") from error
    if not photo:
        raise Refused(400, f"{name} is empty: expected a photo")
    return photo


def _of_json(given: dict[str, Any]) -> list[Image]:
    ways = [way for way in ("images", "inputs", "patches") if way in given]
    if len(ways) != 1:
        hint = f"; {IMAGES_ALONE}" if {"text", "texts", "input"} & given.keys() else ""
        found = " and ".join(ways) or "none"
        raise Refused(400, f"the body has {found} of images, inputs and patches: expected one{hint}")
    if ways == ["patches"]:
        return [Image("the body", arrays=given)]
    several = given[ways[0]]
    if not isinstance(several, list):
        raise Refused(400, f"{ways[0]!r} is {_kind(several)}: expected a list")
    if ways == ["images"]:
        return [Image(f"images[{n}]", photo=decoded(one, f"images[{n}]")) for n, one in enumerate(several)]
    for number, one in enumerate(several):
        if not isinstance(one, dict):
            raise Refused(400, f"inputs[{number}] is {_kind(one)}: expected an object with patches and grid")
    return [Image(f"inputs[{number}]", arrays=one) for number, one in enumerate(several)]


async def _of_form(body: bytes, content_type: str) -> list[Image]:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(Headers({"content-type": content_type}), cast(Any, stream()))
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        said = getattr(error, "message", "") or str(error)
        raise Refused(400, f"the body is no multipart form: {said[:200]}") from error
    found = []
    for number, (name, value) in enumerate(form.multi_items()):
        if not isinstance(value, UploadFile):
            raise Refused(400, f"the form's field {name!r} is no file: expected a photo in each field")
        found.append(Image(f"file {number} ({value.filename!r})", photo=await value.read()))
    await form.close()
    return found


def _of_npz(body: bytes, most: int) -> Image:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            length = sum(member.file_size for member in archive.infolist())
        if length > most:
            raise Refused(413, f"the arrays have {length} bytes: expected at most {most}")
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
    except Refused:
        raise
    except Exception as error:  # numpy and zipfile raise errors of many classes on damaged files
        raise Refused(400, f"the body is no .npz file of arrays: {str(error)[:200]}") from error
    return Image("the body", arrays=given)


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
