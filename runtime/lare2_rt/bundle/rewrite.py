"""A bundle with another decision: same graphs, same files, new manifest, new id."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..detection import DecisionRule
from ..errors import OutputError, UsageError
from ..host.atomic import fsync_folder, reason, rename_new, write_bytes
from ..host.replace_folder import swap_in
from .manifest import MANIFEST, Decision, Manifest, Scaling
from .opening import Bundle, open_bundle


def check_place(source: Path, out: Path, *, force: bool) -> None:
    """Refuse a place for a new bundle before long work; raises UsageError or OutputError."""
    try:
        if out.exists() and source.exists() and out.resolve() == source.resolve():
            raise UsageError(
                f"{out} is the bundle itself, which stays as it is", remedy="name another folder with --out"
            )
        if os.path.lexists(out):
            if out.is_symlink() or not (out / MANIFEST).is_file():
                raise UsageError(f"{out} exists and is not a bundle", remedy="name another folder with --out")
            if not force:
                raise UsageError(
                    f"{out} exists already", remedy="name another folder or pass --force to replace that bundle"
                )
        if not out.resolve().parent.is_dir():
            raise UsageError(f"the folder {out.resolve().parent} does not exist", remedy="create it first")
        if not os.access(out.resolve().parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"the folder {out.resolve().parent} is not writable", remedy="name another place with --out"
            )
    except OSError as error:
        raise _cannot_write(out, error) from error


def decision_of(rule: DecisionRule, data: str) -> Decision:
    """Return the manifest's form of a calibrated rule; ``data`` says on what it was measured."""
    return Decision(
        calibration="calibrated",
        real_below=rule.real_below,
        generated_from=rule.generated_from,
        data=data,
        scaling=Scaling(temperature=rule.temperature, bias=rule.bias),
        crops=None if rule.crops == 1 else rule.crops,
        demonstration=True if rule.demonstration else None,
    )


def write_with_decision(bundle: Bundle, out: Path, decision: Decision, *, force: bool = False) -> Bundle:
    """Write ``bundle`` with another decision to ``out`` and return the new bundle; the old one is not touched.

    Files are copies, not hard links: onnx refuses weights in a file with several names, and what is edited under one
    name would change the other bundle too. The new folder appears, whole and checked, by a rename.

    Raises:
        UsageError, OutputError: as ``check_place``, or the disk is full; ``out`` is as it was.
        BundleError: a file was damaged on the way.
    """
    check_place(bundle.path, out, force=force)
    old = bundle.manifest
    manifest = old.model_copy(update={"decision": decision})
    manifest = manifest.model_copy(update={"id": manifest.compute_id()})
    target = out.resolve()
    with _staging(target) as folder:
        for name in old.files:
            _copy(bundle.path / name, folder / name)
        # Round trip: what is written is what a reader accepts.
        write_bytes(folder / MANIFEST, Manifest.model_validate_json(manifest.to_json()).to_json())
        checked = open_bundle(folder)
        fsync_folder(folder)
        if force:
            swap_in(folder, target)
        else:
            rename_new(folder, target)
            fsync_folder(target.parent)
    return replace(checked, path=out)


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def _cannot_write(out: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {out}: {reason(error)}", remedy="free some space or name another place with --out"
    )
