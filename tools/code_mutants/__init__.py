"""Faults of the code, each made by changing a line of it, and the tests that are to notice. `mutate.py` runs them.

They are not those of docs/mutants.md, which are wrong models and artifacts that the gate is to notice.
"""

from __future__ import annotations

from code_mutants.accuracy import ACCURACY
from code_mutants.embed import EMBED
from code_mutants.graph import GRAPH
from code_mutants.models import MODELS
from code_mutants.mutant import CodeMutant
from code_mutants.resample import RESAMPLE
from code_mutants.server import SERVER
from code_mutants.serving import SERVING
from code_mutants.tensorrt import TENSORRT

__all__ = ["CODE_MUTANTS", "CodeMutant"]

CODE_MUTANTS = (*MODELS, *RESAMPLE, *GRAPH, *ACCURACY, *SERVING, *TENSORRT, *EMBED, *SERVER)
