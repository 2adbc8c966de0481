"""Progress on standard error, where that is a terminal; nothing anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def counting(verb: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left; yields a function to call with the number done and the number of all.

    Args:
        verb: what is being done.
        total: where it is known beforehand; of fewer than two there is nothing to show.
    """
    if not sys.stderr.isatty() or (total is not None and total < 2):
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn as Column,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(Column):
        """Items per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f}/s")

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(verb, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)


@contextlib.contextmanager
def stepping(verb: str, total: int) -> Iterator[Callable[[object], None]]:
    """``counting``, one by one: yields a function to call after each of ``total`` items."""
    done = 0
    with counting(verb, total) as show:

        def step(item: object) -> None:
            nonlocal done
            done += 1
            show(done, total)

        yield step


@contextlib.contextmanager
def hashing_progress() -> Iterator[Callable[[int], None] | None]:
    """Yield a function to call with the bytes that were hashed; a full-size bundle has gigabytes to check at first."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("checking the bundle"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("checking", total=None)
        yield lambda count: progress.advance(task, count)
