"""``python -m lare2_export``: what ``export/build_engines.py`` does, also from an installed package."""

import sys

EXIT_USAGE = 2  # lare2_rt may be what is missing


def run(*, install: str) -> None:
    """Build a bundle; ``install`` is the command that helps where a package is missing."""
    try:
        from .cli import main

        main()
    except ModuleNotFoundError as error:  # torch and the exporters are imported only when a build starts
        sys.stderr.write(f"build_engines: {error.name} is not installed: {install}\n")
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":  # worker processes import this file again
    run(install="pip install 'lare2-rt[cpu,export]'")
