"""The machine: processors, memory, NVIDIA hardware and its driver, and what of them this process may use."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...engines.registry import installed_version
from ...host.child import last_line
from ...host.machine import available_memory, available_threads, cpu_facts, processors
from .finding import Finding
from .packages import numbers, of_engines

_CPUINFO = Path("/proc/cpuinfo")
# Instruction sets that engines have kernels for.
FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "sve", "i8mm", "bf16"),
)
_LEAST_MEMORY = 512_000_000  # bytes; the embedded model takes half of it, and one of full size seven times as much
_LEAST_DISK = 100_000_000
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # vendor; class of display controllers
_LIMIT = 20.0  # seconds
# CUDA 13 needs this branch of the driver or a newer one; CUDA 12 the other (NVIDIA's CUDA compatibility table).
_DRIVER = {13: 580, 12: 525}


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
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return tuple(feature for feature in FEATURES if feature in flags)


def _processor() -> Finding:
    name, features = cpu_facts()["cpu"], cpu_features()
    facts = {"cpu": name, "architecture": platform.machine(), "features": " ".join(features)}
    text = f"{name} ({platform.machine()}): {' '.join(features) or 'instruction sets unknown'}"
    if platform.machine() in ("x86_64", "AMD64") and features and "avx2" not in features:
        remedy = "let the virtual machine pass its host's processor through, or use another machine"
        text += "; without AVX2 engines are many times slower"
        return Finding("machine", "processor", "warn", text, remedy, facts)
    return Finding("machine", "processor", "ok", text, facts=facts)


def _cores() -> Finding:
    host, allowed, threads = os.cpu_count() or 1, processors(), available_threads()
    facts = {"host": host, "affinity": allowed, "threads": threads}
    text = f"{threads} of {host} can be used"
    if threads == 1 and host > 1:
        why, remedy = "the container's quota", "give the container more, such as 'docker run --cpus 4'"
        if allowed == 1:
            why, remedy = "the affinity mask", "start it without taskset, or with more processors in its set"
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


def check_gpu() -> Iterator[Finding]:
    """Yield the GPUs, or why packages for them are of no use here."""
    packages = [name for name in of_engines("cuda") if installed_version(name)]
    found, problem = _ask_driver()
    if found:
        for index, (name, driver, memory) in enumerate(found):
            facts = {"name": name, "driver": driver, "memory": memory}
            yield Finding("gpu", f"gpu {index}", "ok", f"{name}, {memory}, driver {driver}", facts=facts)
        yield from _driver_age(found[0][1])
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            text = "hides every GPU from this process"
            yield Finding("gpu", "CUDA_VISIBLE_DEVICES", "warn", text, "unset CUDA_VISIBLE_DEVICES")
    elif _nvidia_hardware():
        text = f"there is an NVIDIA GPU but its driver does not answer: {problem}"
        remedy = "install the NVIDIA driver (in a container: its container toolkit, and start it with --gpus all)"
        yield Finding("gpu", "driver", "bad", text, remedy)
    elif packages:
        text = f"{', '.join(packages)} installed, but there is no NVIDIA GPU or driver: {problem}"
        remedy = "install the NVIDIA driver (in a container: start it with --gpus all), or use a CPU engine and "
        yield Finding("gpu", "driver", "warn", text, f"{remedy}pip uninstall {' '.join(packages)}")
    else:
        yield Finding("gpu", "driver", "note", "no NVIDIA GPU, and nothing installed that needs one")


def _nvidia_hardware() -> bool:
    """Tell whether an NVIDIA display controller is on the bus, driver or not."""
    try:
        devices = list(_PCI.iterdir())
    except OSError:
        return False
    for device in devices:
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            return True
    return False


def _ask_driver() -> tuple[list[tuple[str, str, str]], str]:
    """Return (name, driver, memory) of each GPU, or why there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "nvidia-smi is not here"
    command = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=_LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi does not answer ({type(error).__name__})"
    rows = [tuple(cell.strip() for cell in line.split(",")) for line in run.stdout.splitlines()]
    gpus = [(row[0], row[1], row[2]) for row in rows if len(row) == 3]
    return gpus if run.returncode == 0 else [], last_line(run.stderr or run.stdout) or "nvidia-smi names no GPU"


def _driver_age(driver: str) -> Iterator[Finding]:
    binding = installed_version("cuda-bindings")
    cuda = next(iter(numbers(binding or "")), 0)
    needed = _DRIVER.get(cuda)
    if needed is not None and numbers(driver) < (needed,):
        text = f"driver {driver} is too old for CUDA {cuda} (cuda-bindings {binding})"
        yield Finding("gpu", "driver age", "bad", text, f"update the NVIDIA driver to {needed} or newer")
