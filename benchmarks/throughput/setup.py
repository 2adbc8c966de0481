"""What one run of the throughput benchmark measures, in a form that travels to its worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.common.resident import Resident

if TYPE_CHECKING:  # imported where they are needed: the parent has no torch, and its workers start quickly
    from lare2_export.build.options import BuildOptions
    from lare2_ref.sources import ModelSources
    from lare2_rt.bundle.opening import Bundle
    from lare2_rt.pixels.preprocess import Pixels

# The reference's arrays, below the folder of the build ``reference``.
TRUTH = "truth.npz"
# What an engine predicts, below the folder of its build of predictions.
PREDICTIONS = "predictions.npz"


@dataclass(frozen=True, slots=True)
class Setup:
    """One model on one machine.

    Attributes:
        model: a model folder, or a kind of synthetic weights when ``synthetic``.
        bundle: folder of the bundle, which decides noise, prompt, timestep, ensemble and preprocessing of every row.
        work: folder of everything that is built for this model.
        threads: CPU threads of every process.
        images: image files, measured in turn.
    """

    model: str
    synthetic: bool
    bundle: str
    work: str
    threads: int
    images: tuple[str, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """Return the setup that ``facts`` made."""
        return cls(**{**facts, "images": tuple(facts["images"])})

    def facts(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def sources(self) -> ModelSources:
        """Return the weights; imports torch. Raises SourceError."""
        from lare2_ref import quieten_libraries
        from lare2_ref.sources import open_model_folder
        from lare2_ref.synthetic import synthetic

        quieten_libraries()
        return synthetic(self.model) if self.synthetic else open_model_folder(Path(self.model))

    def opened(self) -> Bundle:
        """Return the verified bundle; raises BundleError."""
        from lare2_rt.bundle.opening import open_bundle

        return open_bundle(self.bundle)

    def pictures(self) -> list[Pixels]:
        """Return the images as both branches see them: every row gets these arrays. Raises ImageError."""
        manifest = self.opened().manifest
        return [manifest.preprocess(path) for path in self.images]

    def folder(self, name: str) -> Path:
        """Return the folder of one thing that is built."""
        return Path(self.work) / name

    def start(self, name: str, environment: Mapping[str, str]) -> Resident:
        """Start a worker; what its libraries print goes into the folder ``logs``. Raises FailedError.

        Thread counts have to be known before the libraries are loaded. How threads wait is left to each library: they
        spin for a while after their work before they sleep, which is part of a library's speed. The pause between turns
        is longer than that (``Schedule.settle``), and what the resting process uses is measured in every turn.

        Args:
            environment: further variables, in which ``{work}`` is filled in.
        """
        logs = self.folder("logs")
        logs.mkdir(parents=True, exist_ok=True)
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads))
        variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        work = str(Path(self.work).absolute())
        variables |= {variable: value.replace("{work}", work) for variable, value in environment.items()}
        return Resident(name, logs, variables, worker="benchmarks.throughput.worker:Worker")


def build_options(bundle: Bundle, threads: int) -> BuildOptions:
    """Return the options that a bundle was built with, at batch 1 and in float32."""
    from lare2_export.build.options import BuildOptions

    method = bundle.manifest.method
    return BuildOptions(
        prompt=method.prompt,
        timestep=method.timestep,
        ensemble=method.ensemble,
        image_size=method.image_size,
        batches=(1,),
        noise_seed=method.noise_seed,
        policy=bundle.manifest.policy,
        threads=threads,
        half=False,
    )


def graph_name(component: str, ensemble: int, batch: int) -> str:
    """Return the file name of an exported graph."""
    return f"{component}.e{ensemble}.b{batch}.onnx" if component == "unet_step" else f"{component}.b{batch}.onnx"
