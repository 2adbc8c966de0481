"""Component keys: everything that decides an exported graph, hashed before the export is run."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json

from ..components import Component, Geometry

# Raise whenever this package or the reference starts to export other graphs from the same inputs: a bundle's identity
# and the reuse of finished components depend on it, while comments and messages may change freely.
EXPORT_REVISION = 3
_PACKAGES = ("torch", "diffusers", "open_clip_torch", "transformers", "onnx", "onnx-ir", "onnxscript")


def exporter_versions() -> dict[str, str]:
    """Return the versions of the packages whose code ends up in the graphs."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def component_key(
    component: Component, geometry: Geometry, sources: dict[str, str], *, batch: int, precision: str, opset: int
) -> str:
    """Return sha256 in hex over sources (role -> sha256), baked fields, shapes, precision, opset and exporter."""
    if component.name in ("vae_encoder", "unet_step"):
        baked: dict[str, object] = geometry.lare_fields()
    else:
        baked = {"crop_size": geometry.crop_size, "latent": geometry.latent, **dataclasses.asdict(geometry.egre)}
    content = {
        "component": component.name,
        "sources": {role: sources[role] for role in component.roles},
        "baked": baked,
        "batch": batch,
        "precision": precision,
        "opset": opset,
        "versions": exporter_versions(),
        "revision": EXPORT_REVISION,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
