"""What ``lare2-rt infer`` is given: arguments, lists of paths, one image on standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Union

from ..errors import UsageError
from ..host.atomic import reason
from ..tools.inputs import expand, expand_names, read_list

Source = Union[str, IO[bytes]]
STDIN = "-"


def gather(arguments: list[str], lists: tuple[str, ...], *, null: bool) -> list[Source]:
    """Return the images in order: those of the arguments, then those of the lists.

    ``-`` among the arguments is one image's bytes on standard input; as a list it is the list itself.

    Raises:
        UsageError: nothing was named, a list cannot be read, or standard input would be read twice.
    """
    if not arguments and not lists:
        raise UsageError("Missing argument: name images, folders or patterns, or give a list with --list FILE")
    if null and not lists:
        raise UsageError("--null says how a list is separated", remedy="add --list FILE, or leave it out")
    if (*arguments, *lists).count(STDIN) > 1:
        raise UsageError("standard input (-) can be read once only", remedy="put the other images into files")
    sources: list[Source] = []
    for place in _around_stdin(arguments):
        sources.extend([_standard_input("image")] if place is None else expand(place))
    for name in lists:
        sources.extend(expand_names(_paths_of(name, null=null)))
    return sources


def _around_stdin(arguments: list[str]) -> list[list[str] | None]:
    """Split at ``-``, which is None then, so that a run without it is one call of ``expand``."""
    if STDIN not in arguments:
        return [arguments] if arguments else []
    at = arguments.index(STDIN)
    return [part for part in (arguments[:at], None, arguments[at + 1 :]) if part != []]


def _paths_of(name: str, *, null: bool) -> list[str]:
    if name == STDIN:
        return read_list(_standard_input("list"), null=null, name="the list on standard input")
    try:
        with Path(name).open("rb") as stream:
            return read_list(stream, null=null, name=name)
    except OSError as error:
        raise UsageError(f"the list {name} cannot be read: {reason(error)}", remedy="check the path") from error


def _standard_input(what: str) -> IO[bytes]:
    if sys.stdin is None:
        raise UsageError("standard input is closed", remedy=f"pipe the {what} into the command, or name a file")
    if sys.stdin.isatty():
        raise UsageError("standard input (-) is a terminal", remedy=f"pipe the {what} into the command, or name a file")
    return sys.stdin.buffer
