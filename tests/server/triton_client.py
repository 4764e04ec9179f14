"""Sends requests to Triton by its own clients, over HTTP and gRPC; run by a Python that has tritonclient.

    python triton_client.py MODEL REQUESTS.npz ANSWERS.npz HTTP_ADDRESS GRPC_ADDRESS

Arrays are named NUMBER/INPUT in the requests, and NUMBER/features or NUMBER/error in the answers.
"""

import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

model, requests, answers, *addresses = sys.argv[1:]

with np.load(requests) as arrays:
    named = sorted(
        ((int(name.split("/")[0]), name.split("/")[1], arrays[name]) for name in arrays.files), key=lambda one: one[0]
    )
    asked = {number: list(group) for number, group in itertools.groupby(named, key=lambda one: one[0])}


def ask(number):
    library, address = ((http, addresses[0]), (grpc, addresses[1]))[number % 2]
    inputs = []
    for _, name, given in asked[number]:
        value = np.array([[given.tobytes()]], dtype=object) if name == "image" else given
        inputs.append(library.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        inputs[-1].set_data_from_numpy(value)
    client = library.InferenceServerClient(address)  # one a request: that of HTTP is not for several threads
    try:
        return number, "features", client.infer(model, inputs).as_numpy("features")
    except InferenceServerException as error:
        return number, "error", np.array(error.message())
    finally:
        client.close()


with ThreadPoolExecutor(16) as pool:
    found = list(pool.map(ask, asked))
np.savez(answers, **{f"{number}/{name}": value for number, name, value in found})
print(json.dumps(grpc.InferenceServerClient(addresses[1]).get_inference_statistics(model, as_json=True)))
