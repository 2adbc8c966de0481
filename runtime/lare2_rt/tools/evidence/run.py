"""What a run shows besides its records: a panel per image, a report, or both, all on one scale.

The scale is known when the last image has been scored, so what a panel shows is put aside on the disk of its folder
until then, in a file without a name that vanishes with the process, whatever ends it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ...detection import Detection
from ...detector import Detector
from ...errors import OutputError, UsageError
from ...host.atomic import atomic_text, reason, write_bytes
from .drawing import font
from .maps import Scales, Spread
from .panel import draw_panel
from .record import Evidence, evidence_of, pack, unpack, without_arrays
from .report import ModelFacts, Report

INDEX = "panels.jsonl"
_LONGEST = 60  # with the hash and the ending far below the 143 bytes that the strictest file systems allow
Step = Callable[[object], None]
Progress = Callable[[int], AbstractContextManager[Step]]


class RunEvidence(AbstractContextManager["RunEvidence"]):
    """Takes results one by one; ``write`` draws everything once all are there. Use it in a ``with`` block.

    Args:
        heatmap: folder of panels; None for none.
        report: whether a page is wanted.
        overwrite: whether what is there may be replaced.

    Raises:
        OutputError, UsageError: as ``Heatmaps``.
    """

    def __init__(self, *, heatmap: Path | None, report: bool = False, overwrite: bool) -> None:
        self._stack = contextlib.ExitStack()
        self._lare, self._attention = Spread(), Spread()
        self._heatmaps: Heatmaps | None = None
        self._report = Report() if report else None
        if heatmap is not None:
            self._heatmaps = self._stack.enter_context(Heatmaps(heatmap, overwrite=overwrite))

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def scales(self) -> Scales:
        """The scales of the images so far."""
        return Scales(self._lare.scale(), self._attention.scale())

    def add(self, result: Detection) -> None:
        """Take one result, which needs its ``view`` unless it failed. Raises OutputError."""
        evidence = shown(result)
        if self._report is not None:
            self._report.add(result, evidence)
        if evidence is None:
            return
        self._lare.add(evidence.lare)
        self._attention.add(evidence.attention)
        if self._heatmaps is not None:
            self._heatmaps.add(evidence)

    def write_panels(self, progress: Progress) -> None:
        """Write the panels, if any were asked for; ``progress`` gives a step to call after each. Raises OutputError."""
        if self._heatmaps is not None and len(self._heatmaps):
            with progress(len(self._heatmaps)) as step:
                self._heatmaps.write(self.scales, step)

    def write_report(self, path: Path, facts: ModelFacts, *, overwrite: bool, stopped: str | None = None) -> Path:
        """Write the page that was asked for and return the name that it got. Raises OutputError; see ``Report``."""
        report = self._report if self._report is not None else Report()
        return report.write(path, self.scales, facts, overwrite=overwrite, stopped=stopped)


def facts_of(detector: Detector) -> ModelFacts:
    """Return what a report says about a detector."""
    manifest, info = detector.bundle.manifest, detector.info
    return ModelFacts(
        provenance=info.provenance,
        rule=info.rule,
        description=manifest.model.description,
        calibrated_on=manifest.decision.data,
        weights=tuple(f"{source.role}: {source.name} ({source.licence})" for source in manifest.sources),
        policy=", ".join(f"{name} {value}" for name, value in manifest.preprocessing.model_dump().items()),
    )


class Heatmaps(AbstractContextManager["Heatmaps"]):
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

    def __exit__(self, *error: object) -> None:
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

    def write(self, scales: Scales, step: Step = lambda item: None) -> None:
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
            step(None)
        lare, attention = scales.lare, scales.attention
        ends = {"lare": [lare.low, lare.high], "attention": [attention.low, attention.high]}
        with atomic_text(self._folder / INDEX) as stream_of_lines:
            stream_of_lines.write(json.dumps({"schema": "lare2-rt/panels/1", "scales": ends}) + "\n")
            stream_of_lines.writelines(lines)


def shown(result: Detection) -> Evidence | None:
    """Return what can be shown of a result; None where the image failed."""
    return None if result.error is not None else evidence_of(result)


def panel_name(source: str) -> str:
    """Return the file name of a source's panel, such as ``photo-1f0c9a3b5d7e.png``.

    The same source always gets the same name and two sources get different ones: it ends in 48 bits of the sha256 of
    the whole path, in small hex digits, so that disks which ignore case keep them apart too. The rest is for people.
    """
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:12]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source).stem)[:_LONGEST].strip("._-")
    return f"{plain or 'image'}-{digest}.png"


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
