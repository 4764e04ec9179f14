"""A photo to its vector with numpy, Pillow and ONNX Runtime alone, to be translated into any language.

python client.py ARTIFACT PHOTO
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, photo = sys.argv[1:]
manifest = json.loads(Path(folder, "manifest.json").read_text())
said, tokens = manifest["preprocessing"], manifest["buckets"][-1]["tokens"]
assert said["resizer"] == "pil" and said["channels_last"] and manifest["inputs"][0]["name"] == "patches"
rows, columns = said["patch_size"]

image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # upright; see docs/preprocessing.md for the rest
low, high = 1e-6, 100.0  # the largest ratio by which the image has at most so many patches
while high - low >= 1e-5:
    ratio = (low + high) / 2
    fits = math.ceil(image.height * ratio / rows) * math.ceil(image.width * ratio / columns) <= tokens
    low, high = (ratio, high) if fits else (low, ratio)
ratio = low if said["upscale"] else min(low, 1.0)
height, width = (max(1, math.ceil(n * ratio / p)) for n, p in ((image.height, rows), (image.width, columns)))

resized = image.resize((width * columns, height * rows), Image.Resampling[said["interpolation"].upper()])
pixels = (np.asarray(resized) * said["rescale"]).astype(np.float32)
pixels = (pixels - np.float32(said["mean"])) / np.float32(said["std"])
cut = pixels.reshape(height, rows, width, columns, 3).transpose(0, 2, 1, 3, 4).reshape(height * width, -1)

patches = np.zeros((1, tokens, cut.shape[1]), np.float32)
coord, valid = np.zeros((1, tokens, 2), np.int64), np.zeros((1, tokens), bool)
patches[0, : len(cut)], valid[0, : len(cut)] = cut, True
coord[0, : len(cut)] = np.indices((height, width)).reshape(2, -1).T  # (y, x), row by row

session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
(vector,) = session.run(["features"], {"patches": patches, "patch_coord": coord, "patch_valid": valid})[0]
print(*vector)
