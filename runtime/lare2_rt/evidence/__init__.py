"""What the detector saw, for people: maps as arrays, panels as pictures, a run as one page.

``render_panel(result).save("panel.png")`` draws one image, where ``result`` comes from a detector that was loaded with
``keep_views=True``.
"""

from .maps import attention_map, lare_map, overlay
from .panel import render_panel
from .scale import Scale, Scales, run_scales

__all__ = ["Scale", "Scales", "attention_map", "lare_map", "overlay", "render_panel", "run_scales"]
