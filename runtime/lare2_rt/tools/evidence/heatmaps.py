"""``--heatmap DIR``: a panel per image, all on one scale.

The scale is known when the last image has been scored, so what a panel shows is put aside on the disk of its folder
until then, in a file without a name that vanishes with the process, whatever ends it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from ...detection import Detection
from ...errors import OutputError, UsageError
from ...host.atomic import atomic_text, reason, write_bytes
from .names import panel_name
from .panel import draw_panel
from .record import Evidence, evidence_of, pack, unpack, without_arrays
from .scale import Scales
from .text import font

INDEX = "panels.jsonl"
Step = Callable[[object], None]


class Heatmaps:
    """Collects results and writes their panels at the end. Use it in a ``with`` block.

    Args:
        folder: where the panels go; made if its parent exists.
        overwrite: whether the folder may hold something already.

    Raises:
        OutputError: the folder cannot be used; nothing was changed.
        UsageError: Pillow has no FreeType.
    """

    def __init__(self, folder: Path, *, overwrite: bool = False) -> None:
        font(14)
        self._folder = folder
        self._made = _prepare(folder, overwrite=overwrite)
        self._aside = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._records: dict[str, tuple[Evidence, int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._aside.close()
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()  # where nothing came of it

    def __len__(self) -> int:
        return len(self._records)

    def add(self, evidence: Evidence) -> None:
        """Put one image aside; a path that comes twice has one panel. Raises OutputError."""
        content = pack(evidence)
        try:
            start = self._aside.seek(0, os.SEEK_END)
            self._aside.write(content)
        except OSError as error:
            raise OutputError(
                f"cannot put panels aside in {self._folder}: {reason(error)}",
                remedy="free some space or name another folder",
            ) from error
        self._records[evidence.source] = (without_arrays(evidence), start, len(content))

    def write(self, scales: Scales, step: Step | None = None) -> None:
        """Write every panel, each complete or not at all, and then ``panels.jsonl``, which says whose they are.

        Args:
            scales: of the run; step: called after each panel.

        Raises:
            OutputError: a panel cannot be written; those before it stand.
        """
        lines = []
        for record, start, length in self._records.values():
            self._aside.seek(start)
            panel = draw_panel(unpack(record, self._aside.read(length)), scales)
            stream = io.BytesIO()
            panel.save(stream, "PNG")
            name = panel_name(record.source)
            write_bytes(self._folder / name, stream.getvalue())
            lines.append(json.dumps({"source": record.source, "panel": name}) + "\n")
            if step is not None:
                step(None)
        lare, attention = scales.lare, scales.attention
        ends = {"lare": [lare.low, lare.high], "attention": [attention.low, attention.high]}
        with atomic_text(self._folder / INDEX) as stream_of_lines:
            stream_of_lines.write(json.dumps({"schema": "lare2-rt/panels/1", "scales": ends}) + "\n")
            stream_of_lines.writelines(lines)


def shown(result: Detection) -> Evidence | None:
    """Return what can be shown of a result; None where the image failed."""
    return None if result.error is not None else evidence_of(result)


def _prepare(folder: Path, *, overwrite: bool) -> bool:
    """Make the folder ready; returns whether it is new. Raises OutputError or UsageError."""
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is not a folder", remedy="name another one for the panels")
        if not folder.parent.is_dir():
            raise OutputError(f"the folder {folder.parent} does not exist", remedy="create it first")
        made = not folder.exists()
        folder.mkdir(exist_ok=True)
        if not overwrite and next(folder.iterdir(), None) is not None:
            raise OutputError(
                f"{folder} is not empty", remedy="name a new folder for the panels, or pass --force to add to it"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {folder} is not writable", remedy="choose another place for the panels")
        return made
    except OSError as error:
        raise OutputError(f"cannot use {folder} for panels: {reason(error)}", remedy="name another folder") from error
    except ValueError as error:
        raise UsageError(f"{str(folder)!r} is no name of a folder ({error})", remedy="name another one") from None
