"""What a model's outputs are called: its features, pooled and through its head, and its encoder's tokens."""

from __future__ import annotations

from naflex_export.errors import RequestError

OUTPUTS = ("features", "tokens")


def check_outputs(outputs: tuple[str, ...]) -> None:
    """Check the names of the outputs asked for.

    Raises:
        RequestError: there is none, one is unknown, or one is there twice.
    """
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or len(set(outputs)) != len(outputs):
        raise RequestError(f"outputs={outputs!r}: expected 'features', 'tokens' or both")
