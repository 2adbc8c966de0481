#!/usr/bin/env python3
"""Build a bundle of engines: ``python export/build_engines.py --help``."""

import sys

if __name__ == "__main__":  # worker processes import this file again
    try:
        from lare2_export.cli import main

        main()
    except ModuleNotFoundError as error:  # torch and the exporters are imported only when a build starts
        sys.exit(f"build_engines: {error.name} is not installed: pip install -c constraints.txt -e '.[cpu,export]'")
