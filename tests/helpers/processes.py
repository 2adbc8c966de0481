"""Processes of their own, for what a test must see from outside."""

import os


def environment(*folders, **variables):
    """This process's variables with ``folders`` first on Python's path, and ``variables`` set."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*map(str, folders), *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in variables.items()}}
