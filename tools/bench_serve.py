"""Measure what a request costs a server beyond what its photo costs the library: processor time of the process.

`naflex-serve` gets photos from many clients at once, one a request; a process of its own embeds the same photos by the
library's loop, in batches of the size that the server's have. What the server takes more is HTTP, queue and threads.

    pip install '.[serve]' httpx
    python tools/bench_serve.py ARTIFACT [--requests 2000] [--clients 16] [--way body]

Rows go to tools/results/bench_serve.csv.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import ABOUT, RESULTS, ROOT, about, append

FIELDS = (
    *ABOUT, "onnxruntime-gpu", "artifact", "photo", "way", "clients", "requests", "batch", "server_cpu_ms",
    "loop_cpu_ms", "over_ms", "requests_per_s", "p50_ms", "p99_ms",
)  # fmt: skip

SERVE = "from naflex_export.cli.serve import serve_command as run; run()"

LOOP = """
import io, resource, sys
from pathlib import Path
from naflex_export.server.vectors import open_served
artifact, photo, requests, batch = sys.argv[1:]
served, photo, requests, batch = open_served(Path(artifact), "cpu"), Path(photo).read_bytes(), int(requests), int(batch)
tokens = served.manifest.buckets[-1].tokens
def loop(count):
    for start in range(0, count, batch):
        made = [served.preprocessor.one(photo) for _ in range(min(batch, count - start))]
        served.embed(made, tokens)
loop(4 * batch)
before = resource.getrusage(resource.RUSAGE_SELF)
loop(requests)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)
"""

WAYS = ("body", "form", "json", "openai")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and add to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="an ONNX artifact, as small as can be: its work is on both sides")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help="how a photo is sent")
    parser.add_argument("--size", default="500x375", help="width and height of the photo")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_serve.csv")
    options = parser.parse_args(arguments)
    photo = options.out.with_suffix(".jpg")
    try:
        photo.write_bytes(jpeg(*map(int, options.size.split("x"))))
        row = {**about("cpu", ("onnxruntime-gpu",)), "artifact": options.artifact.name, **measured(options, photo)}
    finally:
        photo.unlink(missing_ok=True)
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    append(options.out, FIELDS, [row])


def measured(options: argparse.Namespace, photo: Path) -> dict[str, object]:
    """Return the columns of one measurement."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVE, str(options.artifact), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = str(re.findall(r"at (http://\S+)", server.stdout.readline())[0])
            request = as_request(options.way, photo.read_bytes())
            ask(address, request, options.clients, options.requests // 10)
            before, batches = cpu_seconds(server.pid), batched(address)
            began = time.perf_counter()
            latencies = ask(address, request, options.clients, options.requests)
            wall, used = time.perf_counter() - began, cpu_seconds(server.pid) - before
            images, count = (after - earlier for after, earlier in zip(batched(address), batches, strict=True))
        finally:
            server.terminate()
            server.wait()
    batch = round(images / count)
    asked = [str(options.artifact), str(photo), str(len(latencies)), str(batch)]
    done = subprocess.run(
        [sys.executable, "-c", LOOP, *asked], env=environment, check=True, capture_output=True, text=True
    )
    server_ms, loop_ms = (1000 * seconds / len(latencies) for seconds in (used, float(done.stdout)))
    return {
        "photo": options.size,
        "way": options.way,
        "clients": options.clients,
        "requests": len(latencies),
        "batch": batch,
        "server_cpu_ms": f"{server_ms:.2f}",
        "loop_cpu_ms": f"{loop_ms:.2f}",
        "over_ms": f"{server_ms - loop_ms:.2f}",
        "requests_per_s": f"{len(latencies) / wall:.1f}",
        "p50_ms": f"{1000 * statistics.median(latencies):.1f}",
        "p99_ms": f"{1000 * statistics.quantiles(latencies, n=100)[-1]:.1f}",
    }


def as_request(way: str, photo: bytes) -> dict[str, Any]:
    """Return a photo as a request of httpx."""
    text = base64.b64encode(photo).decode()
    return {
        "body": {"url": "/embed", "content": photo, "headers": {"content-type": "image/jpeg"}},
        "form": {"url": "/embed", "files": {"photo": ("a.jpg", photo)}},
        "json": {"url": "/embed", "json": {"images": [text]}},
        "openai": {"url": "/v1/embeddings", "json": {"input": f"data:image/jpeg;base64,{text}"}},
    }[way]


def ask(address: str, request: dict[str, Any], clients: int, requests: int) -> list[float]:
    """Return the seconds of each request, sent by so many clients at once, each one after the other."""
    import httpx

    latencies: list[float] = []

    def client() -> None:
        with httpx.Client(base_url=address, timeout=60) as sender:
            for _ in range(requests // clients):
                began = time.perf_counter()
                sender.post(**request).raise_for_status()
                latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


def batched(address: str) -> tuple[float, float]:
    """Return how many images a server has run, and in how many batches."""
    import httpx

    text = httpx.get(f"{address}/metrics").text
    found = [re.findall(rf"naflex_batch_images_{kind}{{.*?}} (\S+)", text) for kind in ("sum", "count")]
    images, batches = (sum(map(float, values)) for values in found)
    return images, batches


def cpu_seconds(process: int) -> float:
    """Return the processor time that a process has taken, of all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def jpeg(width: int, height: int) -> bytes:
    """Return a photo of a size, as a JPEG."""
    with Image.open(ROOT / "naflex_export" / "accuracy" / "photos" / "coffee.jpg") as photo:
        resized = photo.convert("RGB").resize((width, height))
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(resized) + noise, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


if __name__ == "__main__":
    main()
