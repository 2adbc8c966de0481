"""The four components, in the order of the chain."""

from .clip_backbone import CLIP_BACKBONE
from .egre import EGRE
from .spec import Component, ComponentGraph, Geometry
from .unet_step import UNET_STEP
from .vae_encoder import VAE_ENCODER

COMPONENTS: tuple[Component, ...] = (VAE_ENCODER, UNET_STEP, CLIP_BACKBONE, EGRE)

__all__ = ["COMPONENTS", "Component", "ComponentGraph", "Geometry"]
