"""Component by component: the seconds inside one run, taken by the technique itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Laps:
    """Seconds of every component in the last run; a clock is read twice a component, which is nothing beside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, component: str) -> Iterator[None]:
        """Time one component, by its name in the manifest."""
        begin = time.perf_counter()
        yield
        self.seconds[component] = time.perf_counter() - begin
