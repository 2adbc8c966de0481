#!/usr/bin/env python3
"""Build a bundle of engines: ``python export/build_engines.py --help``."""

if __name__ == "__main__":  # worker processes import this file again
    from lare2_export.__main__ import run

    run(install="pip install -c constraints.txt -e '.[cpu,export]'")
