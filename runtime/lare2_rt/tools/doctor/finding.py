"""One line of ``lare2-rt doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...errors import Lare2Error

Status = Literal["ok", "note", "warn", "bad"]
Fact = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        area: such as ``engines``; name: of the thing looked at, unique within the area.
        status: ``ok``; ``note``: worth knowing; ``warn``: works, but not as well as it could; ``bad``: does not work.
        text: what was found, in words.
        remedy: what to do; always there where the status is ``warn`` or ``bad``.
        facts: the same for programs.
    """

    area: str
    name: str
    status: Status
    text: str
    remedy: str | None = None
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status in ("warn", "bad") and not self.remedy:
            raise ValueError(f"{self.area} {self.name} has no remedy: {self.text}")


def broken(area: str, name: str, error: Lare2Error) -> Finding:
    """Return the finding for something that raised one of our errors."""
    return Finding(area, name, "bad", error.problem, error.remedy or "report it")
