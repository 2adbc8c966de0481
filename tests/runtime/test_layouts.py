"""Index tables of folders: every layout, and what lies elsewhere."""

import os

import pytest

from lare2_rt.tools.datasets.build import build_index
from lare2_rt.tools.datasets.generators import PROGAN_CLASSES
from tests.helpers.image_sets import picture, tree
from tests.helpers.refusals import refused

R, G = 0, 1
GENIMAGE = "genimage"
# Layout -> (name of the set's folder, {file: (label, generator, split)}).
LAYOUTS = {
    "genimage as published": (
        GENIMAGE,
        "GenImage",
        {
            "Midjourney/train/ai/1_midjourney_2.png": (G, "Midjourney", "train"),
            "Midjourney/train/nature/n01440764_1.JPEG": (R, "", "train"),
            "Stable Diffusion V1.4/val/ai/1_sdv4_1.png": (G, "Stable Diffusion V1.4", "val"),
            "Stable Diffusion V1.4/val/nature/ILSVRC2012_val_1.JPEG": (R, "", "val"),
        },
    ),
    "genimage as unpacked": (
        GENIMAGE,
        "GenImage",
        {
            "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/train/ai/1.png": (G, "stable_diffusion_v_1_4", "train"),
            "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/val/nature/1.JPEG": (R, "", "val"),
            "Midjourney/imagenet_midjourney/val/ai/1.png": (G, "Midjourney", "val"),
            "VQDM/imagenet_ai_0419_vqdm/val/ai/VQDM_1.png": (G, "VQDM", "val"),
        },
    ),
    "genimage, one generator": (
        GENIMAGE,
        "BigGAN",
        {"train/ai/1.png": (G, "BigGAN", "train"), "train/nature/1.JPEG": (R, "", "train")},
    ),
    "genimage, merged": (
        GENIMAGE,
        "set",
        {
            "imagenet_ai/train/ai/371_sdv5_00145.png": (G, "stable_diffusion_v_1_5", "train"),
            "imagenet_ai/train/ai/GLIDE_1000_200_00_123_glide_00001.png": (G, "glide", "train"),
            "imagenet_ai/train/ai/nothing.png": (G, "unknown", "train"),
            "imagenet_ai/val/nature/1.JPEG": (R, "", "val"),
        },
    ),
    "tiny-genimage": (
        "tiny-genimage",
        "tiny",
        {
            "imagenet_ai_0419_biggan/train/ai/1.png": (G, "BigGAN", "train"),
            "imagenet_ai_0419_biggan/val/nature/1.JPEG": (R, "", "val"),
            "imagenet_ai_0508_adm/val/ai/1.PNG": (G, "ADM", "val"),
            "imagenet_glide/val/ai/1.png": (G, "glide", "val"),
            "imagenet_ai_0123_midjourney/val/ai/1.png": (G, "Midjourney", "val"),
        },
    ),
    "aigcdetect": (
        "aigcdetect",
        "AIGCDetectBenchmark",
        {
            "stylegan/bedroom/0_real/1.png": (R, "", ""),
            "stylegan/bedroom/1_fake/1.png": (G, "stylegan", ""),
            "progan/train/1_fake/1.png": (G, "progan", ""),
            "DALLE2/1_fake/1.png": (G, "DALLE2", ""),
            "whichfaceisreal/0_real/1.jpeg": (R, "", ""),
        },
    ),
    "forensynths, training set": (
        "aigcdetect",
        "dataset",
        {
            "train/airplane/0_real/1.png": (R, "", "train"),
            "train/train/1_fake/1.png": (G, "progan", "train"),
            "val/tvmonitor/1_fake/1.png": (G, "progan", "val"),
        },
    ),
    "forensynths, one generator": (
        "aigcdetect",
        "progan",
        {
            "airplane/0_real/1.png": (R, "", ""),
            "train/0_real/1.png": (R, "", ""),
            "train/1_fake/1.png": (G, "progan", ""),
        },
    ),
    "fire": (
        "aigcdetect",
        "set",
        {"train/kandinsky/1_fake/1.png": (G, "kandinsky", "train"), "test/kandinsky/0_real/1.png": (R, "", "test")},
    ),
    "folders": (
        "folders",
        "mine",
        {
            "train/real/1.jpg": (R, "", "train"),
            "train/fake/sdxl/1.png": (G, "sdxl", "train"),
            "test/fake/flux/deep/1.webp": (G, "flux", "test"),
            "test/real/holiday/1.jpg": (R, "", "test"),
        },
    ),
    "folders, synonyms": (
        "folders",
        "mine",
        {
            "Authentic/1.jpg": (R, "", ""),
            "synthetic/1.jpg": (G, "unknown", ""),
            "AI_generated/validation/1.jpg": (G, "unknown", "val"),
        },
    ),
    "community-forensics": (
        "community-forensics",
        "cf",
        {
            "LatentConsistency/fake/1.png": (G, "LatentConsistency", ""),
            "LatentConsistency/real/1.png": (R, "", ""),
            "ffhq/real/1.png": (R, "", ""),
        },
    ),
}


def found(index):
    return {row.path: (row.label, row.generator, row.split) for row in index.rows()}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(tmp_path, case):
    layout, name, expected = LAYOUTS[case]
    made = build_index(tree(tmp_path / name, expected))
    assert made.index.layout == layout
    assert found(made.index) == expected
    assert not any(made.index.error)
    assert made.index.path == tuple(sorted(expected))
    assert found(build_index(tmp_path / name, layout=layout).index) == expected


def test_every_class_of_forensynths_is_progan(tmp_path):
    names = [f"train/{name}/1_fake/1.png" for name in sorted(PROGAN_CLASSES)]
    made = build_index(tree(tmp_path / "dataset", names))
    assert set(made.index.generator) == {"progan"}
    assert set(made.index.split) == {"train"}


class TestFolders:
    def test_what_lies_elsewhere_is_counted_and_left_out(self, tmp_path):
        tree(tmp_path, ["real/1.png", "fake/1.png", "cover.png", "thumbs/2.png"])
        (tmp_path / "real/notes.txt").write_text("no image")
        made = build_index(tmp_path)
        assert made.index.path == ("fake/1.png", "real/1.png")
        assert made.unlabelled == ("cover.png", "thumbs/2.png")
        assert made.others == 1

    def test_both_labels_above_a_file(self, tmp_path):
        tree(tmp_path, ["real/1.png", "fake/real/2.png"])
        with refused("--layout", about="fake/real/2.png lies below fake and real"):
            build_index(tmp_path)

    def test_no_label(self, tmp_path):
        tree(tmp_path, ["a/1.png", "b/2.png"])
        with refused("rename the folders", about="(0_real, 1_fake"):
            build_index(tmp_path)
        with refused("rename the folders", about="(ai, nature)"):
            build_index(tmp_path, layout="genimage")

    def test_a_named_layout_is_not_guessed(self, tmp_path):
        """With real and fake about, ai and nature alone count as labels."""
        tree(tmp_path, ["fake/train/ai/1.png", "fake/train/nature/1.png", "real/x/2.png"])
        made = build_index(tmp_path, layout="genimage")
        assert found(made.index) == {
            "fake/train/ai/1.png": (G, "fake", "train"),
            "fake/train/nature/1.png": (R, "", "train"),
        }
        assert made.unlabelled == ("real/x/2.png",)

    def test_empty_and_missing(self, tmp_path):
        for layout in ("auto", "genimage"):
            with refused("check the path", about="no images in"):
                build_index(tmp_path, layout=layout)
        with refused("check the path", about="nowhere"):
            build_index(tmp_path / "nowhere")
        with refused("give a file with lines", about="is a folder"):
            build_index(tmp_path, layout="list")

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        tree(tmp_path / "disk2", ["1.png", "2.png"])
        tree(tmp_path / "set", ["fake/3.png"])
        (tmp_path / "set/real").symlink_to(tmp_path / "disk2")
        (tmp_path / "set/fake/up").symlink_to(tmp_path / "set")
        assert build_index(tmp_path / "set").index.path == ("fake/3.png", "real/1.png", "real/2.png")

    def test_a_picture_that_is_none(self, tmp_path):
        tree(tmp_path, ["real/good.png", "fake/good.png"])
        (tmp_path / "real/cut.png").write_bytes(picture(9, size=(200, 200))[:-80])
        (tmp_path / "fake/text.jpg").write_text("no image")
        (tmp_path / "fake/empty.jpg").touch()
        (tmp_path / "fake/dangling.jpg").symlink_to("nowhere")
        os.mkfifo(tmp_path / "fake/pipe.jpg")
        index = build_index(tmp_path).index
        errors = {row.path: row.error for row in index.rows() if row.error}
        assert errors.keys() == {f"fake/{n}.jpg" for n in ("text", "empty", "dangling", "pipe")} | {"real/cut.png"}
        assert "not an image in a supported format" in errors["fake/text.jpg"]
        assert "truncated or damaged" in errors["real/cut.png"]
        broken = {row.path: row for row in index.rows()}
        assert broken["fake/text.jpg"].sha256
        assert broken["fake/text.jpg"].bytes == 8
        assert broken["fake/dangling.jpg"].sha256 == ""
        assert broken["fake/pipe.jpg"].sha256 == ""
        assert index.decodable.tolist() == [not row.error for row in index.rows()]
