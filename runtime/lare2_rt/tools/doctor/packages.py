"""Versions, clashes, and whether what is installed can be imported at all."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from ..._version import __version__
from .finding import Finding

# The oldest of each that works; a test holds this against pyproject.toml.
MINIMUM = {
    "numpy": (1, 26),
    "pillow": (11, 3),
    "platformdirs": (4,),
    "pydantic": (2, 7),
    "rich": (13,),
    "typer": (0, 19),
}
_MODULES = ("numpy", "PIL.Image", "PIL._imaging", "platformdirs", "pydantic", "rich", "typer")
OPTIONAL = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-bindings",
    "pillow-heif",
    "pyarrow",
    "torch",
)
# What its CUDA provider loads; the extra [cuda] alone brings neither cuDNN nor cuBLAS.
_ONNXRUNTIME_GPU = ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-curand", "nvidia-cufft", "nvidia-cudnn-cu13")
_LIMIT = 60.0  # seconds for all imports together


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution; None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (1, 26, 4) of 1.26.4rc1."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def check_packages() -> Iterator[Finding]:
    """Yield the versions of Python and packages, and what does not go together."""
    yield Finding("packages", "lare2-rt", "ok", __version__, facts={"version": __version__})
    python = platform.python_version()
    yield Finding("packages", "python", "ok", f"{python} on {platform.system()}", facts={"version": python})
    for name, oldest in MINIMUM.items():
        yield _required(name, oldest)
    for name in OPTIONAL:
        version = installed(name)
        if version is not None:
            yield Finding("packages", name, "ok", version, facts={"version": version})
    yield from _clashes()
    yield from _imports()


def _required(name: str, oldest: tuple[int, ...]) -> Finding:
    version = installed(name)
    least = ".".join(map(str, oldest))
    if version is None:
        return Finding("packages", name, "bad", "is not installed", f"pip install '{name}>={least}'")
    if numbers(version) < oldest:
        text = f"{version} is too old, {least} is needed"
        return Finding("packages", name, "bad", text, f"pip install --upgrade '{name}>={least}'", {"version": version})
    return Finding("packages", name, "ok", version, facts={"version": version})


def _clashes() -> Iterator[Finding]:
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    if cpu and gpu:
        yield Finding(
            "packages",
            "onnxruntime twice",
            "bad",
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'lare2-rt[cpu]' or 'lare2-rt[gpu]'",
        )
    both = [name for name in ("tensorrt-cu12", "tensorrt-cu13") if installed(name)]
    if len(both) == 2:
        yield Finding(
            "packages",
            "tensorrt twice",
            "bad",
            "TensorRT for CUDA 12 and for CUDA 13 are both installed and overwrite each other",
            "pip uninstall -y tensorrt-cu12 tensorrt-cu13, then pip install 'lare2-rt[tensorrt]'",
        )
    native = installed("tensorrt-cu13") or installed("tensorrt") or ""
    if gpu and numbers(native) >= (11,):
        yield Finding(
            "packages",
            "tensorrt and onnxruntime-gpu",
            "warn",
            f"ONNX Runtime's TensorRT provider needs TensorRT 10, and {native} is installed",
            "keep two environments: pip install 'lare2-rt[gpu-trt]' in one, 'lare2-rt[tensorrt]' in the other",
        )
    missing = [name for name in _ONNXRUNTIME_GPU if gpu and not installed(name)]
    if missing:
        yield Finding(
            "packages",
            "libraries of onnxruntime-gpu",
            "warn",
            f"{', '.join(missing)} not installed, without which onnxruntime-gpu quietly computes on the CPU",
            "pip install 'onnxruntime-gpu[cuda,cudnn]', unless CUDA 13 and cuDNN 9 are installed otherwise",
        )


def _imports() -> Iterator[Finding]:
    """Import what everything needs, in a process of its own: a broken binary may end it."""
    code = "import importlib, sys\nfor n in sys.argv[1:]: print(n, flush=True); importlib.import_module(n)"
    command = [sys.executable, "-P", "-c", code, *_MODULES]
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=_LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        text = f"Python cannot be started to import them ({error})"
        yield Finding("packages", "imports", "bad", text, "free some memory, or make a new environment")
        return
    if run.returncode == 0:
        yield Finding("packages", "imports", "ok", "everything that is needed can be imported")
        return
    name = (run.stdout.split() or ["python"])[-1].split(".")[0].replace("PIL", "pillow")
    said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
    why = said[-1][:200] if said else f"the process ended with code {run.returncode}"
    yield Finding(
        "packages", "imports", "bad", f"{name} cannot be imported: {why}", f"pip install --force-reinstall {name}"
    )
