"""How a script that an engine runs in a process of its own ends: ``compiling.run_script`` reads it on the other side.

Light, as every script pays for its imports.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

NOT_WRITTEN = 3  # exit code of a script whose result cannot be written; the error number is what it prints


def run_to_end(work: Callable[[], object]) -> None:
    """Do the work of a script; exit with ``NOT_WRITTEN`` on OSError, and with one line for anything else."""
    try:
        work()
    except OSError as error:
        print(error.errno or errno.EIO)  # noqa: T201 - for the parent
        sys.exit(NOT_WRITTEN)
    except Exception as error:  # whatever a library does
        sys.exit((str(error).splitlines() or [type(error).__name__])[-1])
