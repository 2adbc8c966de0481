"""``NOTICE.txt`` of a bundle: whose weights are in it and what passing it on asks for."""

from __future__ import annotations

from collections.abc import Sequence

from lare2_ref.sources import SourceRecord

_OPENRAIL = """
Weights under CreativeML OpenRAIL-M (Stable Diffusion 1.x) or CreativeML Open RAIL++-M (2.x): whoever passes this bundle
on, or offers it as a service, has to pass on the use restrictions of the licence's Attachment A as enforceable terms,
give a copy of the licence, and say that the files were changed (here: folded, rewritten and converted to ONNX). The
licence text comes with the model that the weights were taken from.
"""


def notice_text(records: Sequence[SourceRecord]) -> str:
    """Return the notice for the sources of a bundle."""
    lines = ["This bundle contains weights of:", ""]
    for record in records:
        revision = "" if record.revision is None else f" at revision {record.revision}"
        lines.append(f"  {record.role}: {record.name}{revision} ({record.licence}; sha256 {record.sha256})")
    text = "\n".join(lines) + "\n"
    if any("rail" in record.licence.lower() for record in records):
        text += _OPENRAIL
    return text + "\nBuilt with lare2-rt (Apache-2.0). The manifest holds the same in machine-readable form.\n"
