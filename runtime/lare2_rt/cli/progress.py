"""Progress bars on standard error, where that is a terminal; nothing anywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def scoring_progress(total: int) -> Iterator[Callable[[object], None]]:
    """Yield a function to call after each of ``total`` images."""
    with _counting(total, "scoring") as step:
        yield step


@contextlib.contextmanager
def drawing_progress(total: int) -> Iterator[Callable[[object], None]]:
    """Yield a function to call after each of ``total`` panels."""
    with _counting(total, "drawing") as step:
        yield step


@contextlib.contextmanager
def _counting(total: int, work: str) -> Iterator[Callable[[object], None]]:
    if not sys.stderr.isatty() or total < 2:
        yield lambda result: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(work), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(work, total=total)
        yield lambda result: progress.advance(task)


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
