"""Versions, clashes, and whether what is installed can be imported at all."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterator

from ..._version import __version__
from ...engines import registry
from ...engines.registry import installed_version
from ...host.child import how_it_ended, last_line
from .finding import Finding

# The oldest of each that works; a test holds this against pyproject.toml.
MINIMUM = {
    "jinja2": (3, 1),
    "numpy": (1, 26),
    "pillow": (11, 3),
    "platformdirs": (4,),
    "pydantic": (2, 7),
    "rich": (13,),
    "typer": (0, 19),
}
_MODULES = ("jinja2", "numpy", "PIL.Image", "PIL._imaging", "platformdirs", "pydantic", "rich", "typer")
_OPTIONAL = ("pillow-heif", "pyarrow", "torch")  # beside what the engines need
# What its CUDA provider loads; the extra [cuda] alone brings neither cuDNN nor cuBLAS.
_ONNXRUNTIME_GPU = ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-curand", "nvidia-cufft", "nvidia-cudnn-cu13")
_INSTALL = {entry.name: entry.install for entry in registry.ENGINES}
_LIMIT = 60.0  # seconds for all imports together


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: (1, 26, 4) of 1.26.4rc1."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def of_engines(device: str | None = None) -> tuple[str, ...]:
    """Return the distributions that engines compute with; without ``device``, all that they need."""
    names: list[str] = []
    for entry in registry.ENGINES:
        if device in (None, entry.device):
            names += (name for library in entry.libraries for name in library.split("|"))
        if device is None:
            names += (*entry.tools, *(re.split(r"[^\w-]", requirement)[0] for requirement in entry.requirements))
    return tuple(dict.fromkeys(names))


def check_packages() -> Iterator[Finding]:
    """Yield the versions of Python and packages, and what does not go together."""
    yield Finding("packages", "lare2-rt", "ok", __version__, facts={"version": __version__})
    python = platform.python_version()
    yield Finding("packages", "python", "ok", f"{python} on {platform.system()}", facts={"version": python})
    for name, oldest in MINIMUM.items():
        yield _required(name, oldest)
    for name in (*of_engines(), *_OPTIONAL):
        version = installed_version(name)
        if version is not None:
            yield Finding("packages", name, "ok", version, facts={"version": version})
    yield from _clashes()
    yield from _imports()


def _required(name: str, oldest: tuple[int, ...]) -> Finding:
    version = installed_version(name)
    least = ".".join(map(str, oldest))
    if version is None:
        return Finding("packages", name, "bad", "is not installed", f"pip install '{name}>={least}'")
    if numbers(version) < oldest:
        text = f"{version} is too old, {least} is needed"
        return Finding("packages", name, "bad", text, f"pip install --upgrade '{name}>={least}'", {"version": version})
    return Finding("packages", name, "ok", version, facts={"version": version})


def _clashes() -> Iterator[Finding]:
    cpu, gpu = installed_version("onnxruntime"), installed_version("onnxruntime-gpu")
    if cpu and gpu:
        text = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other"
        remedy = f"{_INSTALL['onnxruntime']} or {_INSTALL['onnxruntime-cuda']}"
        remedy = f"pip uninstall -y onnxruntime onnxruntime-gpu, then {remedy}"
        yield Finding("packages", "onnxruntime twice", "bad", text, remedy)
    if installed_version("tensorrt-cu12") and installed_version("tensorrt-cu13"):
        text = "TensorRT for CUDA 12 and for CUDA 13 are both installed and overwrite each other"
        remedy = f"pip uninstall -y tensorrt-cu12 tensorrt-cu13, then {_INSTALL['tensorrt']}"
        yield Finding("packages", "tensorrt twice", "bad", text, remedy)
    native = installed_version("tensorrt-cu13") or installed_version("tensorrt") or ""
    if gpu and numbers(native) >= (11,):
        text = f"ONNX Runtime's TensorRT provider needs TensorRT 10, and {native} is installed"
        remedy = f"{_INSTALL['onnxruntime-tensorrt']} in one, {_INSTALL['tensorrt']} in the other"
        yield Finding("packages", "tensorrt and onnxruntime-gpu", "warn", text, f"keep two environments: {remedy}")
    missing = [name for name in _ONNXRUNTIME_GPU if gpu and not installed_version(name)]
    if missing:
        text = f"{', '.join(missing)} not installed, without which onnxruntime-gpu quietly computes on the CPU"
        remedy = "pip install 'onnxruntime-gpu[cuda,cudnn]', unless CUDA 13 and cuDNN 9 are installed otherwise"
        yield Finding("packages", "libraries of onnxruntime-gpu", "warn", text, remedy)


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
    why = last_line(run.stderr) or f"the process {how_it_ended(run.returncode)}"
    remedy = f"pip install --force-reinstall {name}"
    yield Finding("packages", "imports", "bad", f"{name} cannot be imported: {why}", remedy)
