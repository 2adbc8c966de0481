"""``python -m lare2_rt``."""

from .cli import main

main()
