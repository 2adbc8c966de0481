"""docs/evaluation.md: its table of corruptions is what there is. Its commands, and training.md's: test_docs.py."""

import re

from lare2_export.build.options import BuildOptions
from lare2_export.build.plan import make_plan
from lare2_ref.sources import combine, default_model_folder, open_model_folder
from tests.conftest import ROOT
from tests.helpers.tiny import write_tiny


def test_page_lists_every_corruption():
    from lare2_rt.tools.evaluation.corruptions import CORRUPTIONS

    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    table = text.split("## Corrupted images")[1].split("\n## ")[0]
    named = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line) if line.startswith("| `")]
    assert named == list(CORRUPTIONS)


def test_base_bundle_takes_stable_diffusion_alone(tmp_path):
    """Another Stable Diffusion beside the embedded CLIP and head can be planned: that is the page's ``base``."""
    sources = combine(
        open_model_folder(default_model_folder()), sd=write_tiny(tmp_path / "sd", "epsilon").sd, clip=None, head=None
    )
    plan = make_plan(sources, BuildOptions())
    records = {record.role: record.name for record in plan.records}
    assert records["clip"] == records["head"] == open_model_folder(default_model_folder()).name
    assert plan.geometry.latent[1:] == (plan.geometry.image_size // 8,) * 2
