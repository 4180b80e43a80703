"""How the stages tell somebody how far they are, without knowing who is listening."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Told how many more are done, and of how many where that became known late."""

    def __call__(self, count: int, total: int | None = None, /) -> None:
        """Count on."""
        ...


class Watch(Protocol):
    """Listens to a run."""

    def stage(self, title: str, total: int | None, unit: str = "images") -> AbstractContextManager[Advance]:
        """A stage begins; `total` units, None when unknown. It ends with the context."""
        ...

    def say(self, line: str) -> None:
        """A fact worth a line."""
        ...


class Silent:
    """Listens and says nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str = "images") -> Iterator[Advance]:  # noqa: ARG002
        """Take the stage as it comes."""
        yield lambda _count, _total=None: None

    def say(self, line: str) -> None:
        """Keep quiet."""
