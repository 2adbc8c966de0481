"""A report of the miniature in which every figure is the same."""

from benchmarks.miniature.protocol import GENERATORS, SEEN, SPLITS, TIMESTEPS, TRUNKS, VARIANTS
from benchmarks.miniature.report import PAIRS
from benchmarks.miniature.why import CHANGES, VARIANTS as WHY_VARIANTS
from benchmarks.render.miniature import MINIATURE


def sample_report():
    """As ``miniature_report.report`` gives it, every figure the same, with what is there only after a full run."""
    area = {"value": 0.6, "low": 0.55, "high": 0.65}
    judged = {"auc": area, "accuracy": area}
    against = {"mean": area, "deviation": 0.1}
    for reference in ("real", "roundtrip"):
        against |= {f"d_{reference}": -0.2, f"auc_{reference}": area, f"dz_{reference}": -0.3}
    pictures = ("real", "roundtrip", *GENERATORS)
    sweep = {name: {"mean": area, "network": area} for name in GENERATORS}
    coded = {"plain": 0.31, "jpeg": area}
    return {
        "data": {"splits": {name: {"photographs": 7, "groups": 5, "pictures": 42} for name in SPLITS}},
        "timesteps": {str(t): dict.fromkeys((*pictures, "memorised"), against) for t in TIMESTEPS},
        "complexity": {
            reference: {kind: dict.fromkeys(GENERATORS, area) for kind in ("energy", "lare", "normalised")}
            for reference in ("real", "roundtrip")
        },
        "re_encoding": {
            name: coded if name == "roundtrip" else {**coded, "auc_plain": area, "auc_jpeg": area} for name in pictures
        },
        "normalised_beside_heads": {
            "pretrained/egre": dict.fromkeys(("seen", "unseen"), area),
            "earns_its_place": True,
        },
        "ablation": {
            f"{trunk}/{variant}": {r: dict.fromkeys((*GENERATORS, "unseen"), judged) for r in ("real", "roundtrip")}
            for trunk in TRUNKS
            for variant in VARIANTS
        },
        "differences": {f"{TRUNKS[0]}: {a} − {b}": dict.fromkeys((SEEN, "unseen"), area) for a, b in PAIRS},
        "why": {change: {v: {"seen": area, "unseen": area} for v in WHY_VARIANTS} for change in CHANGES},
        "noise": {"fixed 1": sweep, "per-image 4": sweep},
        "timesteps_trained": {"50": sweep, "200": sweep},
        "cost": {
            "threads": 2, "ratio_of_seconds": 290.0, "ratio_of_tflop": 190.0,
            "dire": {"steps": 40, "seconds": 900.0, "tflop": 45.0}, "lare": {"seconds": 3.1, "tflop": 0.24},
        },
    }  # fmt: skip


def assert_tables(report):
    """Every table of the page is one: each row as wide as its header."""
    for name, render in MINIATURE.items():
        lines = render(report).splitlines()
        assert len(lines) > 2, name
        assert len({line.count("|") for line in lines}) == 1, name
