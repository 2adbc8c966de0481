"""Training an EGRE head: the official recipe with its bugs mended, the same bits from one seed, resumed exactly.

``python -m lare2_ref.train --help``; docs/training.md explains the choices.
"""
