"""The ``lare2-rt`` command."""

from .app import main

__all__ = ["main"]
