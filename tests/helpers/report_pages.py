"""Pages to test: made of results that nobody has to compute, with the names that hurt."""

from __future__ import annotations

import numpy as np

from lare2_rt.detection import DecisionRule, Provenance, failed, scored
from lare2_rt.pixels.preprocess import View
from lare2_rt.tools.evidence.maps import Scale, Scales
from lare2_rt.tools.evidence.report import ModelFacts, Report
from lare2_rt.tools.evidence.run import shown

HOSTILE = (
    "<script>alert(1)</script>.jpg",
    "\"><img src=x onerror='alert(2)'>.png",
    "a&amp;b & c.jpg",
    "line\nbreak\x1b[31m\u202egpj.exe",
    "\udcff\udc80.jpg",
    "https://example.org/picture.jpg",
    "$rows ${style} $$.jpg",
    "--></style></title>.jpg",
    "中文.jpg",
)
SCALES = Scales(Scale(0.4, 2.8), Scale(0.8, 1.4))
CALIBRATED = DecisionRule("calibrated", 0.3, 0.7)


def provenance(crops=1):
    return Provenance("mini<b>", "ab" * 32, "/a & b", "onnxruntime", "1", "cpu", "fp32", 1, 2, "cd" * 32, crops)


def facts(rule=CALIBRATED, crops=1):
    weights = ("head: <script>alert(3)</script> (MIT)",)
    return ModelFacts(provenance(crops), rule, "a <i>model</i>", "12 & 13 images", weights, "exif apply")


def result(source, probability, *, rule=CALIBRATED, picture=True):
    generator = np.random.default_rng(round(probability * 1e6))
    gap = float(np.log(probability / (1 - probability)))
    size = (90, 60) if picture else (1, 1)
    windows = generator.integers(0, 256, (1, size[0], size[0], 3), np.uint8)
    view = View((900, 600), generator.integers(0, 256, (size[1], size[0], 3), np.uint8), ((338, 188),), windows, True)
    return scored(
        source,
        np.array([0.0, gap]),
        lare=generator.uniform(0.3, 3, (4, 8, 8)).astype(np.float32),
        attention=generator.uniform(0, 0.5, (2, 4)).astype(np.float32),
        provenance=provenance(),
        rule=rule,
        timings={},
        view=view,
    )


def add(report, one):
    report.add(one, shown(one))


def filled(*, rule=CALIBRATED, names=HOSTILE, errors=1):
    """A report on as many images as names, with probabilities spread over 0..1, and some that failed."""
    report = Report()
    for index, name in enumerate(names):
        add(report, result(name, (index + 0.5) / len(names), rule=rule))
    for index in range(errors):
        text = f"not <b>an</b> image {index}; convert it"
        add(report, failed(f"failed-{index}.jpg", text, provenance=provenance(), rule=rule))
    return report


def page_of(report, rule=CALIBRATED, **options):
    return "".join(report.pieces(SCALES, facts(rule), **options))
