"""Faults of server/: Triton."""

from __future__ import annotations

from code_mutants.mutant import CodeMutant

TRITON = ("tests/server/test_triton.py",)

SERVER = (
    CodeMutant(
        "a request to Triton gets the vectors of another",
        "server/triton_model.py",
        "    return [found[number] for number in range(len(images))]",
        "    return list(found.values())",
        TRITON,
    ),
    CodeMutant(
        "a model of others in a repository is replaced",
        "server/triton_repository.py",
        "        if not is_ours:",
        "        if False:",
        TRITON,
    ),
)
