"""A file's pages leave memory while somebody loads from it, and nothing that is read changes."""

import mmap
import sys
import time
from pathlib import Path

import pytest

from lare2_rt.engines.openvino.library import let_go

SIZE = 4 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are let go on Linux only")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights of a model.data"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def resident(path):
    """How many bytes of a file this process has in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def read(mapped):
    return sum(mapped[:: mmap.PAGESIZE])


def test_pages_go_and_come_again(file):
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        before = read(mapped)
        assert resident(file) == SIZE
        with let_go(file):
            deadline = time.monotonic() + 10
            while resident(file) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert resident(file) == 0
            assert read(mapped) == before
        assert resident(file) == 0
        assert mapped[:] == file.read_bytes()


def test_other_files_and_what_can_be_written_stay(file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes())
    with (
        file.open("rb") as one,
        other.open("rb") as two,
        mmap.mmap(one.fileno(), 0, access=mmap.ACCESS_COPY) as own,
        mmap.mmap(two.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        own[0] = 7
        read(own), read(mapped)
        with let_go(file):
            time.sleep(0.2)
        assert own[0] == 7
        assert (resident(file), resident(other)) == (SIZE, SIZE)


def test_an_error_passes_and_a_file_may_be_missing(tmp_path):
    with pytest.raises(RuntimeError, match="as it was"), let_go(tmp_path / "none"):
        raise RuntimeError("as it was")
