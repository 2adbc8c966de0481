"""NVIDIA hardware, its driver, and packages that need both."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding
from .packages import installed, numbers

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # vendor; class of display controllers
_LIMIT = 20.0  # seconds
# CUDA 13 needs this branch of the driver or a newer one; CUDA 12 the other (NVIDIA's CUDA compatibility table).
_DRIVER = {13: 580, 12: 525}
NEEDS_GPU = ("onnxruntime-gpu", "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx")


def check_gpu() -> Iterator[Finding]:
    """Yield the GPUs, or why packages for them are of no use here."""
    packages = [name for name in NEEDS_GPU if installed(name)]
    hardware = nvidia_hardware()
    found, problem = _ask_driver()
    if found:
        for index, (name, driver, memory) in enumerate(found):
            facts = {"name": name, "driver": driver, "memory": memory}
            yield Finding("gpu", f"gpu {index}", "ok", f"{name}, {memory}, driver {driver}", facts=facts)
        yield from _driver_age(found[0][1])
        if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            yield Finding(
                "gpu", "CUDA_VISIBLE_DEVICES", "warn", "hides every GPU from this process", "unset CUDA_VISIBLE_DEVICES"
            )
    elif hardware:
        yield Finding(
            "gpu",
            "driver",
            "bad",
            f"there is an NVIDIA GPU but its driver does not answer: {problem}",
            "install the NVIDIA driver (in a container: its container toolkit, and start it with --gpus all)",
        )
    elif packages:
        yield Finding(
            "gpu",
            "driver",
            "warn",
            f"{', '.join(packages)} installed, but there is no NVIDIA GPU or driver: {problem}",
            "install the NVIDIA driver (in a container: start it with --gpus all), or use a CPU engine and "
            f"pip uninstall {' '.join(packages)}",
        )
    else:
        yield Finding("gpu", "driver", "note", "no NVIDIA GPU, and nothing installed that needs one")


def nvidia_hardware() -> bool:
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
    said = (run.stderr or run.stdout).strip().splitlines()
    return gpus if run.returncode == 0 else [], said[-1][:200] if said else "nvidia-smi names no GPU"


def _driver_age(driver: str) -> Iterator[Finding]:
    binding = installed("cuda-bindings")
    cuda = numbers(binding)[0] if binding and numbers(binding) else None
    needed = _DRIVER.get(cuda) if cuda is not None else None
    if needed is not None and numbers(driver) < (needed,):
        yield Finding(
            "gpu",
            "driver age",
            "bad",
            f"driver {driver} is too old for CUDA {cuda} (cuda-bindings {binding})",
            f"update the NVIDIA driver to {needed} or newer",
        )
