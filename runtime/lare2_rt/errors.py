"""Errors whose text is one sentence for the user and names the remedy."""

# What a file costs whose decoding runs out of memory.
NO_MEMORY = "not enough memory to decode it; scale it down or free some memory"


class Lare2Error(Exception):
    """Base of every error that this project raises on purpose; ``str(error)`` is fit to be shown."""


def first_line(error: Exception) -> str:
    """Return the first line of a foreign error's text, at most 200 characters; its type's name where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class UsageError(Lare2Error):
    """The call or the command line asks for something that cannot be done."""


class ImageError(Lare2Error):
    """One image cannot be read or is refused; other images are not affected."""


class BundleError(Lare2Error):
    """A bundle is missing, damaged, unsafe or does not fit this version."""


class EngineError(Lare2Error):
    """An engine is not installed, cannot take the bundle, or failed while running."""


class OutputError(Lare2Error):
    """A result cannot be written where it was asked for."""
