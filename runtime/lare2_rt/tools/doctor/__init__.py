"""What is wrong here, and what to do: the checks behind ``lare2-rt doctor``.

This file and ``packages`` need the standard library alone, so that they can tell what keeps the rest from working.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .finding import Finding
from .packages import check_packages

Progress = Callable[[str], None]


def examine(
    bundle: str | None = None, *, engine_seconds: float = 120.0, progress: Progress | None = None
) -> Iterator[Finding]:
    """Yield what every check found, as it is found. Raises nothing for what it finds broken.

    Args:
        bundle: folder to look at; default: the one that ``infer`` would use. Engines are opened on the embedded one.
        engine_seconds: after which an engine that is being opened is given up.
        progress: called with what is looked at next.
    """
    say = progress or (lambda words: None)
    say("packages")
    packages = list(check_packages())
    yield from packages
    needed = ("imports", "numpy", "pillow", "pydantic")
    if any(finding.status == "bad" and finding.name in needed for finding in packages):
        yield Finding("packages", "the rest", "note", "was not looked at, as the packages above keep it from working")
        return
    yield from _rest(bundle, engine_seconds=engine_seconds, say=say)


def _rest(bundle: str | None, *, engine_seconds: float, say: Progress) -> Iterator[Finding]:
    from .decoding import check_decoding
    from .engine_checks import check_engines
    from .machine import check_gpu, check_host
    from .storage import check_bundle, check_cache

    say("this machine")
    yield from _guarded("machine", check_host)
    yield from _guarded("gpu", check_gpu)
    say("the bundle")
    yield from _guarded("bundle", lambda: check_bundle(bundle))
    yield from _guarded("cache", check_cache)
    say("decoding")
    yield from _guarded("decoding", check_decoding)
    yield from check_engines(limit=engine_seconds, progress=say)


def _guarded(area: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that fails itself is one more finding: whoever looks for faults must not end with a traceback."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(area, "check", "bad", f"the check itself failed: {type(error).__name__}: {error}", "report it")


__all__ = ["Finding", "examine"]
