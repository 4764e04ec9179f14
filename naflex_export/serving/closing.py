"""What a loaded artifact holds, given back: when nothing refers to it any more, or at once where it is closed."""

from __future__ import annotations

from typing import ClassVar, Self

from naflex_export.errors import ClosedError
from naflex_export.serving.opened import Loaded


class Closable(Loaded):
    """A loaded artifact, which can be closed; a `with` block closes it at its end."""

    SAYS_OF_ITSELF: ClassVar[frozenset[str]] = frozenset(
        {"manifest", "input_format", "device", "check_inputs", "cast", "split", "scoring", "_place"}
    )
    """Attributes that stay when it is closed: they hold no file, and no memory to speak of."""

    _closed = False

    def close(self) -> None:
        """Give back files and memory now, and not once nothing refers to this object any more. It can be done twice.

        Do so when no call is running. A call after it raises `ClosedError`.
        """
        self._closed = True
        held = {name: value for name, value in vars(self).items() if name not in self.SAYS_OF_ITSELF | {"_closed"}}
        for name, value in held.items():
            if isinstance(value, Closable):
                value.close()
            delattr(self, name)

    @property
    def kind(self) -> str:
        """What it is, by its class, and whether it is closed."""
        return f"{type(self).__name__}, closed" if self._closed else type(self).__name__

    def refuse_closed(self) -> None:
        """Refuse to go on with what is closed.

        Raises:
            ClosedError: it is.
        """
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} was closed: load the artifact again")

    def __enter__(self) -> Self:
        self.refuse_closed()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
