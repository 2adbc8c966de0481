"""A disk that fills up at any write of a build: one sentence, the old bundle untouched, nothing that misleads a rerun.

The builds run in this process and are quick, see ``tests.helpers.quick_build``.
"""

import random
import shutil
import time
from types import SimpleNamespace

import pytest

from lare2_export.build import bundle as build
from lare2_rt.bundle.manifest import COMPONENTS
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.errors import Lare2Error, OutputError
from lare2_rt.host import integrity
from tests.helpers.full_disk import FullDisk
from tests.helpers.quick_build import OPTIONS, SOURCES, quicken

SEEDED = random.Random(20240617)


@pytest.fixture
def quick_build(monkeypatch, tmp_path):
    """Build at ``out`` on a disk; the cache is on it as well."""
    quicken(monkeypatch)
    monkeypatch.setenv("LARE2_CACHE", str(tmp_path / "cache"))
    # The cache of hashes takes files that have not changed for a while. A build that is slow, because the machine is
    # busy, would write it once more than the build whose calls were counted.
    now = time.time()
    monkeypatch.setattr(integrity, "time", SimpleNamespace(time=lambda: now))

    def run(out, disk, report=lambda line: None):
        with monkeypatch.context() as patch:
            disk.mount(patch)
            return build.build_bundle(SOURCES, out, OPTIONS, report=report)

    return run


# Hashes that are remembered only to save time, folders that cannot be made durable, and an old bundle that could not be
# moved out of the way once the new one stood in its place.
HARMLESS = {
    *((kind, "hashes.json") for kind in ("open", "write", "fsync", "rename")),
    *(("fsync", name) for name in ("cache", "there", "engines.building", "engines.finished")),
    ("mkdir", "cache"),
    ("rename", "engines.old"),
}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Disks:
    """The calls of an unbroken build that replaces a bundle, and that build on disks that are full at one of them."""

    def __init__(self, quick_build, embedded, folder):
        self.build, self.embedded, self.folder = quick_build, embedded, folder
        disk = FullDisk(folder)
        self.id = quick_build(self.fresh(), disk).manifest.id
        self.calls = disk.calls

    def fresh(self):
        """Return a bundle in a folder of its own, with nothing else on the disk."""
        for path in self.folder.iterdir():
            shutil.rmtree(path)
        return shutil.copytree(self.embedded, self.folder / "there" / "engines")

    def check(self, number, *, once):
        case = f"call {number}, {self.calls[number]}, {'once' if once else 'from there on'}"
        out = self.fresh()
        before = contents(out)
        disk = FullDisk(self.folder, full_from=number, once=once)
        fatal = [call not in HARMLESS for call in self.calls[number:]]
        try:
            built = self.build(out, disk)
        except Lare2Error as error:
            assert fatal[0] if once else any(fatal), case
            sentence = str(error)
            assert "no space left on device; " in sentence, case
            assert "free some space" in sentence, case
            assert "\n" not in sentence, case
            assert contents(out) == before, case
        else:
            assert not (fatal[0] if once else any(fatal)), case
            assert built.manifest.id == self.id, case
        assert disk.struck, case
        assert disk.calls[: number + 1] == self.calls[: number + 1], case
        assert self.build(out, FullDisk(self.folder)).manifest.id == self.id, case
        assert [path.name for path in out.parent.iterdir()] == ["engines"], case
        assert open_bundle(out, verify=True).manifest.id == self.id, case


@pytest.fixture
def disks(quick_build, embedded, tmp_path):
    return Disks(quick_build, embedded, tmp_path)


def test_every_file_of_a_build_is_counted(disks):
    """A write that goes past the disk would make the tests below prove nothing."""
    files = {path.name for path in disks.embedded.iterdir() if ".b4." not in path.name}
    files |= {f"{name}.done.json" for name in ("vae_encoder", "unet_step", "clip_backbone", "egre")}
    for kind in ("open", "write", "fsync"):
        assert files <= {name for k, name in disks.calls if k == kind}, kind
    renamed = {name for name in files if not name.endswith((".onnx", ".data"))} | {"engines", "engines.old"}
    assert renamed <= {name for kind, name in disks.calls if kind == "rename"}
    assert set(disks.calls) >= HARMLESS


def test_full_at_seeded_calls(disks):
    """One call of each kind that matters, and a few more anywhere."""
    fatal = [number for number, call in enumerate(disks.calls) if call not in HARMLESS]
    chosen = [SEEDED.choice([n for n in fatal if disks.calls[n][0] == kind]) for kind in ("open", "write", "fsync")]
    chosen += [disks.calls.index(("mkdir", "engines.building")), disks.calls.index(("rename", "engines"))]
    for number in [*chosen, *SEEDED.sample(range(len(disks.calls)), 3)]:
        disks.check(number, once=SEEDED.random() < 0.5)


def test_finished_components_outlive_a_bundle_that_cannot_be_published(disks):
    """The sentence says that they are kept: the next build exports none of them."""
    out = disks.fresh()
    disk = FullDisk(disks.folder, full_from=disks.calls.index(("rename", "engines")), once=False)
    with pytest.raises(OutputError) as refused:
        disks.build(out, disk)
    assert "finished components are kept" in refused.value.remedy
    lines = []
    assert disks.build(out, FullDisk(disks.folder), report=lines.append).manifest.id == disks.id
    assert [line.split(":")[0] for line in lines if "already exported" in line] == list(COMPONENTS)
    assert not any("exporting" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("row", range(16))
def test_full_at_every_call(disks, row):
    """Of the hundreds of writes of a file of weights, which are alike, one in four, and no failure that passes."""
    for turn, number in enumerate(range(row, len(disks.calls), 16)):
        kind, name = disks.calls[number]
        alike = name.endswith(".data") and disks.calls[number - 1] == (kind, name)
        if not alike:
            disks.check(number, once=True)
        if not alike or turn % 4 == 0:
            disks.check(number, once=False)
