#!/usr/bin/env python3
"""Build a bundle of engines: ``python export/build_engines.py --help``."""

import sys

try:
    from lare2_export.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"build_engines: {error.name} is not installed: pip install -c constraints.txt -e '.[cpu,export]'")

if __name__ == "__main__":  # worker processes import this file again
    main()
