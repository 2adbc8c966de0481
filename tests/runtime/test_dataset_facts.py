"""What an index measures of a file, and its cache."""

import os
import sqlite3
from pathlib import Path

import pytest
from PIL import Image

from lare2_rt.tools.datasets import facts
from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.datasets.facts import estimate_quality
from tests.helpers.image_sets import picture, tree


class TestMeasured:
    @pytest.mark.parametrize("quality", range(1, 101))
    def test_quality_of_libjpeg_is_exact(self, quality, tmp_path):
        """Two qualities with one table are the same setting."""
        path = tmp_path / "x.jpg"
        path.write_bytes(picture(5, form="JPEG", quality=quality))
        estimated = facts.measure(str(path)).jpeg_quality
        if estimated != quality:
            path.write_bytes(picture(5, form="JPEG", quality=estimated))
            tables = Image.open(path).quantization
            path.write_bytes(picture(5, form="JPEG", quality=quality))
            assert tables[0] == Image.open(path).quantization[0]

    def test_quality_of_other_encoders_is_near(self):
        tables = Image.open(_stream(picture(5, form="JPEG", quality=80))).quantization
        bent = [max(1, round(value * 1.03)) for value in tables[0]]
        assert abs(estimate_quality(bent) - 80) <= 2
        assert estimate_quality(None) == estimate_quality([]) == estimate_quality([0] * 64) == -1

    def test_formats(self, tmp_path):
        for form, suffix in (("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp"), ("GIF", "gif")):
            path = tmp_path / f"x.{suffix}"
            path.write_bytes(picture(5, form=form, size=(9, 7)))
            measured = facts.measure(str(path))
            assert (measured.format, measured.width, measured.height, measured.jpeg_quality) == (form, 9, 7, -1)
        Image.new("RGB", (9, 7)).save(
            tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (9, 7))]
        )
        measured = facts.measure(str(tmp_path / "x.jpg"))
        assert (measured.format, measured.jpeg_quality) == ("JPEG", 75)

    def test_as_stored(self, tmp_path):
        """Width and height are the file's: EXIF turns nothing here."""
        exif = Image.Exif()
        exif[0x0112] = 6
        for form in ("JPEG", "TIFF"):
            path = tmp_path / f"x.{form}"
            path.write_bytes(picture(5, form=form, size=(9, 7), exif=exif))
            measured = facts.measure(str(path))
            assert (measured.width, measured.height, measured.format) == (9, 7, form)


def _stream(content):
    import io

    return io.BytesIO(content)


class TestCache:
    @pytest.fixture
    def photos(self, tmp_path, monkeypatch):
        monkeypatch.setattr(facts, "_SETTLED", -1.0)
        return tree(tmp_path / "set", [f"real/{i}.png" for i in range(5)] + ["fake/9.png"])

    @pytest.fixture
    def decoded(self, monkeypatch):
        """Names of the files that are really looked at."""
        seen = []
        original = facts._measured
        monkeypatch.setattr(
            facts, "_measured", lambda path, read: (seen.append(Path(path).name), original(path, read))[1]
        )
        return seen

    def test_only_what_changed_is_decoded_again(self, photos, decoded, tmp_path):
        cache = tmp_path / "cache"
        first = build_index(photos, cache=cache).index
        assert len(decoded) == 6
        decoded.clear()
        assert list(build_index(photos, cache=cache).index.rows()) == list(first.rows())
        assert decoded == []
        (photos / "real/2.png").write_bytes(picture(99))
        os.utime(photos / "real/3.png")
        (photos / "real/4.png").rename(photos / "real/moved.png")
        again = build_index(photos, cache=cache).index
        assert sorted(decoded) == ["2.png", "3.png", "moved.png"]
        assert again.sha256[again.path.index("real/2.png")] != first.sha256[first.path.index("real/2.png")]

    def test_a_file_touched_just_now_is_not_trusted(self, photos, decoded, tmp_path, monkeypatch):
        monkeypatch.setattr(facts, "_SETTLED", 2.0)
        for _ in range(2):
            build_index(photos, cache=tmp_path / "cache")
        assert len(decoded) == 12

    def test_an_interrupted_run_is_taken_up(self, photos, decoded, tmp_path):
        def stop(done, total):
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_index(photos, cache=tmp_path / "cache", threads=1, progress=stop)
        decoded.clear()
        build_index(photos, cache=tmp_path / "cache", threads=1)
        assert len(decoded) <= 2

    def test_broken_and_hostile_caches_are_not_used(self, photos, tmp_path):
        good = list(build_index(photos, cache=tmp_path / "cache").index.rows())
        (tmp_path / "cache/facts.sqlite").write_bytes(b"no database" * 1000)
        assert list(build_index(photos, cache=tmp_path / "cache").index.rows()) == good
        (tmp_path / "file").touch()
        assert list(build_index(photos, cache=tmp_path / "file").index.rows()) == good
        build_index(photos, cache=tmp_path / "third")
        with sqlite3.connect(tmp_path / "third/facts.sqlite") as rows:
            rows.execute("UPDATE facts SET value = '[1, 2, 3]'")
        assert list(build_index(photos, cache=tmp_path / "third").index.rows()) == good

    def test_errors_are_remembered_but_absence_is_not(self, photos, decoded, tmp_path):
        (photos / "real/text.png").write_text("no image")
        (photos / "real/gone.png").symlink_to("nowhere")
        first = build_index(photos, cache=tmp_path / "cache").index
        decoded.clear()
        assert list(build_index(photos, cache=tmp_path / "cache").index.rows()) == list(first.rows())
        assert decoded == ["gone.png"]

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_threads_change_nothing(self, photos, tmp_path, threads):
        index = build_index(photos, threads=threads, cache=tmp_path / f"cache{threads}").index
        assert list(index.rows()) == list(build_index(photos, threads=3, cache=tmp_path / "other").index.rows())
