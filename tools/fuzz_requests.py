"""Sends a runner requests that people send by accident, and counts what comes of them.

Each request is an ordinary batch, changed in up to two of the ways of `CHANGES`, all drawn from a seed and its
number, so that any of them can be sent again. What must come of it: eager's own numbers, or an `InputError`. Anything
else, a traceback or other numbers, is printed and makes the tool end with 1.

    python tools/fuzz_requests.py --target onnx --count 10000

It adds a row to tools/results/request_fuzz.csv after each 5,000, and goes on from there when it is started again.
"""

from __future__ import annotations

import collections
import csv
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import naflex_export as nx
from naflex_export.batch import noise_batch
from naflex_export.errors import InputError
from naflex_export.grid import Grid

RESULTS = Path(__file__).parent / "results" / "request_fuzz.csv"
COLUMNS = (
    "target",
    "torch",
    "seed",
    "first",
    "count",
    "answered",
    "refused",
    "refused_in_vain",
    "different",
    "traceback",
)
OUTCOMES = COLUMNS[5:]
BUCKET = nx.Bucket(20, (1, 3, 6))
NAMES = ("patches", "patch_coord", "patch_valid")
FAR = 1e-4
CHUNK = 5000

Request = dict[str, Any]


def _on_one(change: Callable[[Tensor], Any], *names: str) -> Callable[[Request, random.Random], None]:
    """Return what changes one of the inputs, drawn from those named, or from all."""

    def apply(request: Request, draw: random.Random) -> None:
        name = draw.choice(names or NAMES)
        request[name] = change(request[name])

    return apply


def _negative(tensor: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def _made_for_inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def _in_padding(value: float) -> Callable[[Request, random.Random], None]:
    def apply(request: Request, draw: random.Random) -> None:
        valid = request["patch_valid"]
        if isinstance(request["patches"], Tensor) and request["patches"].shape[:2] == valid.shape:
            request["patches"] = torch.where(valid.unsqueeze(-1), request["patches"], value)

    return apply


def _at(name: str, change: Callable[[Tensor, int, int], None]) -> Callable[[Request, random.Random], None]:
    """Return what changes a value of an input, at an image and a token that are drawn."""

    def apply(request: Request, draw: random.Random) -> None:
        request[name] = request[name].clone()
        images, tokens = request[name].shape[:2]
        change(request[name], draw.randrange(images), draw.randrange(tokens))

    return apply


def _padding_only(request: Request, draw: random.Random) -> None:
    image = draw.randrange(len(request["patches"]))
    for name in NAMES:
        request[name] = request[name].clone()
        request[name][image] = 0


def _shuffled(request: Request, draw: random.Random) -> None:
    order = list(range(request["patches"].shape[1]))
    draw.shuffle(order)
    request.update({name: request[name][:, order] for name in NAMES})


def _set(value: Any) -> Callable[[Tensor, int, int], None]:
    def change(tensor: Tensor, image: int, token: int) -> None:
        tensor[image, token] = value

    return change


HARMLESS: dict[str, Callable[[Request, random.Random], None]] = {
    "requires grad": _on_one(lambda tensor: tensor.clone().requires_grad_(), "patches"),
    "a parameter": _on_one(lambda tensor: nn.Parameter(tensor.clone()), "patches"),
    "negative bit": _on_one(_negative, "patches"),
    "made in inference mode": _on_one(_made_for_inference),
    "every second": _on_one(lambda tensor: tensor.repeat_interleave(2, dim=1)[:, ::2]),
    "transposed in memory": _on_one(lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1)),
    "an offset in memory": _on_one(lambda tensor: torch.cat([tensor[:1], tensor])[1:]),
    "NaN in padding": _in_padding(float("nan")),
    "infinity in padding": _in_padding(float("inf")),
    "large values in padding": _in_padding(1e4),
    "as keywords": lambda request, draw: request.update(call="keywords"),
    "as a mapping": lambda request, draw: request.update(call="mapping"),
    "from timm's collator": lambda request, draw: request.update(call="collated"),
    "in inference mode": lambda request, draw: request.update(mode="inference"),
    "without gradients": lambda request, draw: request.update(mode="no_grad"),
    "under autocast": lambda request, draw: request.update(mode="autocast"),
}
"""Changes that leave a request one that must be answered."""

HARMFUL: dict[str, Callable[[Request, random.Random], None]] = {
    "meta": _on_one(lambda tensor: tensor.to("meta")),
    "sparse": _on_one(lambda tensor: tensor.to_sparse()),
    "fake": _on_one(lambda tensor: FakeTensorMode().from_tensor(tensor)),
    "nested": _on_one(lambda tensor: torch.nested.nested_tensor(list(tensor)), "patches"),
    "half": _on_one(lambda tensor: tensor.half()),
    "double": _on_one(lambda tensor: tensor.double()),
    "int8": _on_one(lambda tensor: tensor.to(torch.int8)),
    "int32": _on_one(lambda tensor: tensor.int()),
    "float": _on_one(lambda tensor: tensor.float(), "patch_coord", "patch_valid"),
    "complex": _on_one(lambda tensor: tensor.to(torch.complex64)),
    "flat": _on_one(lambda tensor: tensor.flatten()),
    "one axis more": _on_one(lambda tensor: tensor.unsqueeze(0)),
    "no images": _on_one(lambda tensor: tensor[:0]),
    "no tokens": _on_one(lambda tensor: tensor[:, :0]),
    "a token less": _on_one(lambda tensor: tensor[:, :-1]),
    "an image twice": _on_one(lambda tensor: torch.cat([tensor, tensor[:1]])),
    "a narrow patch": _on_one(lambda tensor: tensor[..., :-1], "patches"),
    "None": _on_one(lambda tensor: None),
    "a list": _on_one(lambda tensor: tensor.tolist()),
    "an array": _on_one(lambda tensor: tensor.numpy()),
    "a number": _on_one(lambda tensor: 3),
    "an image of padding": _padding_only,
    "shuffled": _shuffled,
    "a token masked": _at("patch_valid", _set(False)),
    "a token unmasked": _at("patch_valid", _set(True)),
    "a coordinate moved": _at("patch_coord", _set(1)),
    "a negative coordinate": _at("patch_coord", _set(-1)),
    "a huge coordinate": _at("patch_coord", _set(2**40)),
    "a huge row": _at("patch_coord", lambda tensor, image, token: tensor[image, token].copy_(torch.tensor([2**62, 0]))),
    "axes swapped": _on_one(lambda tensor: tensor.flip(-1), "patch_coord"),
    "too many images": lambda request, draw: request.update({n: torch.cat([request[n]] * 7) for n in NAMES}),
    "too many tokens": lambda request, draw: request.update({n: torch.cat([request[n]] * 21, dim=1) for n in NAMES}),
    "an unknown name": lambda request, draw: request.update(call="unknown"),
    "a name twice": lambda request, draw: request.update(call="twice"),
    "a name missing": lambda request, draw: request.update(call="missing"),
    "an attention mask": lambda request, draw: request.update(call="attn_mask"),
    "one input more": lambda request, draw: request.update(call="more"),
}
"""Changes after which a request may be refused, and must not be answered with other numbers than eager's."""

CHANGES = {**HARMLESS, **HARMFUL}


def request_of(seed: int, number: int) -> tuple[list[str], Request]:
    """Return the request of a seed and a number, and the names of what was changed in it.

    Args:
        seed: of the run.
        number: of the request.
    """
    draw = random.Random(f"{seed} {number}")
    tokens = draw.choice([1, 2, 5, 12, 20])
    grids = []
    for _ in range(draw.choice([1, 1, 2, 3, 6])):
        height = draw.randint(1, tokens)
        grids.append(Grid(height, draw.randint(1, tokens // height)))
    batch = noise_batch(f"fuzz {seed} {number}", grids, tokens, 48)
    request: Request = {
        **{name: getattr(batch, name) for name in NAMES},
        "call": "in order",
        "mode": "",
        "as_made": batch,
    }
    names: list[str] = []
    for name in draw.sample(sorted(CHANGES), draw.choice([0, 1, 1, 2])):
        try:
            CHANGES[name](request, draw)
        except Exception:  # two changes may not go together
            continue
        names.append(name)
    return names, request


def sent(runner: Callable[..., Any], request: Request) -> Any:
    """Return what a runner returns for a request.

    Args:
        runner: to be called.
        request: how.
    """
    inputs = {name: request[name] for name in NAMES}
    calls: dict[str, Callable[[], Any]] = {
        "in order": lambda: runner(*inputs.values()),
        "keywords": lambda: runner(**inputs),
        "mapping": lambda: runner(inputs),
        "collated": lambda: runner({**inputs, "seq_len": 20}),
        "unknown": lambda: runner(**inputs, patch=1),
        "twice": lambda: runner(*inputs.values(), patches=inputs["patches"]),
        "missing": lambda: runner(patches=inputs["patches"], patch_valid=inputs["patch_valid"]),
        "attn_mask": lambda: runner({**inputs, "attn_mask": torch.zeros(1, 1, 1, 1)}),
        "more": lambda: runner(*inputs.values(), None),
    }
    modes: dict[str, Callable[[], Any]] = {
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "": torch.enable_grad,
    }
    with modes[request["mode"]]():
        return calls[request["call"]]()


def outcome(runner: Callable[..., Any], model: nn.Module, seed: int, number: int) -> tuple[str, str]:
    """Return what came of a request, and what to print of it.

    Args:
        runner: of an artifact of the model.
        model: eager.
        seed: of the run.
        number: of the request.
    """
    names, request = request_of(seed, number)
    must = all(name in HARMLESS for name in names)
    said = f"request {number} ({', '.join(names) or 'unchanged'}): "
    try:
        given = sent(runner, request)
    except InputError as error:
        return ("refused_in_vain", said + str(error)) if must else ("refused", "")
    except Exception as error:
        return "traceback", f"{said}{type(error).__name__}: {error}"
    try:
        expected = _eager(model, request)
    except Exception as error:
        return "different", f"{said}answered what eager refuses with {type(error).__name__}: {error}"
    if given.shape != expected.shape or not bool((given - expected).abs().max() <= FAR * expected.abs().max()):
        return "different", f"{said}{given.flatten()[:3].tolist()} in place of {expected.flatten()[:3].tolist()}"
    return "answered", ""


def _eager(model: nn.Module, request: Request) -> Tensor:
    """Return eager's own answer. What padding holds does not matter to it either, but for numbers that are none."""
    patches, coord, valid = (request[name].detach().clone() for name in NAMES)
    with torch.no_grad():
        return model(torch.where(valid.unsqueeze(-1), patches, 0), coord, valid)


def artifact(target: str, folder: Path) -> tuple[nn.Module, Callable[..., Any]]:
    """Return a tiny model and the runner of its artifact.

    Args:
        target: "onnx", "compile" or "aot".
        folder: where to put it.
    """
    import timm

    from naflex_export.models.model_sources import randomize

    tiny = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2.0}
    model = timm.create_model("naflexvit_base_patch16_siglip", **tiny).eval()
    randomize(model, seed=1)
    return model, nx.load(nx.export(model, target, folder / "artifact", [BUCKET]).path)


def _done(target: str, seed: int) -> int:
    """Return the number of the next request that has not been sent yet."""
    if not RESULTS.exists():
        return 0
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["target"] == target and int(row["seed"]) == seed]
    return max((int(row["first"]) + int(row["count"]) for row in rows), default=0)


@click.command()
@click.option("--target", type=click.Choice(["onnx", "compile", "aot"]), default="onnx")
@click.option("--count", default=10_000, help="Requests to have been sent in all.")
@click.option("--seed", default=0)
def main(target: str, count: int, seed: int) -> None:
    """Send requests from where the last run ended, and add rows of what came of them."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model, runner = artifact(target, Path(folder))
        first = _done(target, seed)
        while first < count:
            numbers = range(first, min(first + CHUNK, count))
            counts: collections.Counter[str] = collections.Counter()
            for number in numbers:
                kind, said = outcome(runner, model, seed, number)
                counts[kind] += 1
                if said:
                    print(said)
                    failed = True
            known = [target, torch.__version__, seed, first, len(numbers)]
            exists = RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.writer(file)
                if not exists:
                    writer.writerow(COLUMNS)
                writer.writerow([*known, *(counts[kind] for kind in OUTCOMES)])
            print(f"{target}: requests {first} to {numbers[-1]}: {dict(counts)}", flush=True)
            first = numbers[-1] + 1
    sys.exit(failed)


if __name__ == "__main__":
    main()
