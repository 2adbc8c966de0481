"""The machine: processors, memory, and what of them this process may use."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...host.machine import available_memory, available_threads, cpu_facts, processors
from .finding import Finding

_CPUINFO = Path("/proc/cpuinfo")
# Instruction sets that engines have kernels for.
FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "sve", "i8mm", "bf16"),
)
_LEAST_MEMORY = 512_000_000  # bytes; the embedded model takes half of it, and one of full size seven times as much
_LEAST_DISK = 100_000_000


def check_host() -> Iterator[Finding]:
    """Yield processor, cores, memory and the folder for temporary files."""
    yield _processor()
    yield _cores()
    yield _memory()
    yield _temporary()


def cpu_features() -> tuple[str, ...]:
    """Return which of ``FEATURES`` the processor has, in that order; nothing where the system does not tell."""
    try:
        text = _CPUINFO.read_text(errors="replace")
    except OSError:
        return ()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            return tuple(feature for feature in FEATURES if feature in flags)
    return ()


def _processor() -> Finding:
    name, features = cpu_facts()["cpu"], cpu_features()
    facts = {"cpu": name, "architecture": platform.machine(), "features": " ".join(features)}
    text = f"{name} ({platform.machine()}): {' '.join(features) or 'instruction sets unknown'}"
    if platform.machine() in ("x86_64", "AMD64") and features and "avx2" not in features:
        remedy = "let the virtual machine pass its host's processor through, or use another machine"
        return Finding(
            "machine", "processor", "warn", f"{text}; without AVX2 engines are many times slower", remedy, facts
        )
    return Finding("machine", "processor", "ok", text, facts=facts)


def _cores() -> Finding:
    host, allowed, threads = os.cpu_count() or 1, processors(), available_threads()
    facts = {"host": host, "affinity": allowed, "threads": threads}
    text = f"{threads} of {host} can be used"
    if threads == 1 and host > 1:
        why = "the affinity mask" if allowed == 1 else "the container's quota"
        remedy = (
            "start it without taskset, or with more processors in its set"
            if allowed == 1
            else "give the container more, such as 'docker run --cpus 4'"
        )
        return Finding("machine", "cores", "warn", f"{text}: {why} allows no more", remedy, facts)
    return Finding("machine", "cores", "ok", text, facts=facts)


def _memory() -> Finding:
    free = available_memory()
    facts = {"available_bytes": free}
    if free is None:
        return Finding("machine", "memory", "note", "the system does not tell how much is available", facts=facts)
    text = f"{free / 1e9:.1f} GB available"
    if free < _LEAST_MEMORY:
        remedy = "close other programs, or give the container more memory"
        return Finding("machine", "memory", "bad", f"{text}, which is too little for any model", remedy, facts)
    return Finding("machine", "memory", "ok", text, facts=facts)


def _temporary() -> Finding:
    try:
        with tempfile.TemporaryFile() as handle:
            handle.write(b"x")
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        text = f"no temporary file can be written ({error.strerror or error})"
        return Finding("machine", "temporary files", "bad", text, "free some space, or set TMPDIR to another folder")
    text, facts = f"{free / 1e9:.1f} GB free in {folder}", {"free_bytes": free}
    if free < _LEAST_DISK:
        remedy = "free some space, or set TMPDIR to a folder on another disk"
        return Finding("machine", "temporary files", "bad", text, remedy, facts)
    return Finding("machine", "temporary files", "ok", text, facts=facts)
