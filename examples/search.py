"""A folder of photos to a search index, and the photos in it that are most like another.

    python search.py ARTIFACT PHOTOS PHOTO

An index of a million vectors takes 3 GB this way; beyond that, any vector database takes the same vectors.
"""

import sys
from pathlib import Path

import numpy as np

import naflex_export as nx

artifact, folder, wanted = sys.argv[1:]
embed = nx.Embedder(artifact)
paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
named = [(path, vector) for path, vector in zip(paths, embed(paths), strict=True)]
for path, error in named:
    if isinstance(error, nx.PhotoError):
        print(f"left out {path.name}: {error}", file=sys.stderr)
good = [(path, vector) for path, vector in named if not isinstance(vector, nx.PhotoError)]
index = np.stack([vector / np.linalg.norm(vector) for _, vector in good])

(vector,) = embed([wanted])
likeness = index @ (vector / np.linalg.norm(vector))
for place in np.argsort(-likeness)[:5]:
    print(f"{likeness[place]:.3f} {good[place][0].name}")
