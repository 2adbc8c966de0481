"""Errors whose text is one sentence for the user and names the remedy."""

from __future__ import annotations

from collections.abc import Callable


class Lare2Error(Exception):
    """Base of every error that this project raises on purpose; ``str(error)`` is fit to be shown.

    Attributes:
        problem: what is wrong; remedy: what to do about it, None where another process has joined the two.
    """

    def __init__(self, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return self.problem if self.remedy is None else f"{self.problem}; {self.remedy}"

    def __reduce__(self) -> tuple[Callable[..., Lare2Error], tuple[type[Lare2Error], str, str | None]]:
        """Cross to other processes with both fields; exceptions are rebuilt from positional arguments otherwise."""
        return _rebuilt, (type(self), self.problem, self.remedy)


def _rebuilt(kind: type[Lare2Error], problem: str, remedy: str | None) -> Lare2Error:
    return kind(problem, remedy=remedy)


def first_line(error: Exception) -> str:
    """Return the first line of a foreign error's text, at most 200 characters; its type's name where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class UsageError(Lare2Error):
    """The call or the command line asks for something that cannot be done."""


class ImageError(Lare2Error):
    """One image cannot be read or is refused; other images are not affected."""


class PassingImageError(ImageError):
    """The image may be read another time: memory or time ran out, or a process was killed."""


def no_memory() -> PassingImageError:
    """Return the error of a file whose decoding runs out of memory."""
    return PassingImageError("not enough memory to decode it", remedy="scale it down or free some memory")


class BundleError(Lare2Error):
    """A bundle is missing, damaged, unsafe or does not fit this version."""


class EngineError(Lare2Error):
    """An engine is not installed, cannot take the bundle, or failed while running."""


class OutputError(Lare2Error):
    """A result cannot be written where it was asked for."""
