"""The manifest of a bundle: its schema, its identity and its rules. Imported only when a bundle is opened or built."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from ..detection import Calibration, DecisionRule
from ..pixels.crop_grid import CROPS
from ..pixels.decode import DEFAULT_LIMITS, ImageSource
from ..pixels.limits import Limits
from ..pixels.policy import VERSION, AlphaPolicy, ExifPolicy, IccPolicy, PaddingPolicy, Preprocessing, Resample
from ..pixels.preprocess import DecodeTask, Pixels

SCHEMA_VERSION = 1
MAX_BYTES = 1_000_000
MANIFEST, NOISE, PARITY, NOTICE = "manifest.json", "noise.npy", "parity.json", "NOTICE.txt"
# What the reference gave on known pictures, for engines to be held against; optional, as notices are.
SELFCHECK = "selfcheck.npy"

Precision = Literal["fp32", "fp16"]
Profile = Literal["portable", "native"]
ComponentName = Literal["vae_encoder", "unet_step", "clip_backbone", "egre"]
HeadName = Literal["v6", "v7"]
PredictionType = Literal["epsilon", "v_prediction"]
COMPONENTS: tuple[ComponentName, ...] = ("vae_encoder", "unet_step", "clip_backbone", "egre")
# A plain name: no separators, no leading dot, nothing that a shell or a terminal would interpret.
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$")]
# ONNX Runtime picks a file's format by its ending, and what is not .onnx would escape the audit of ONNX files.
GraphName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,121}\.onnx$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[int, Field(ge=1)]
# A manifest must not be able to ask for more memory than any real model needs before its graphs are even opened.
Size = Annotated[int, Field(ge=1, le=1 << 16)]
Count = Annotated[int, Field(ge=1, le=4096)]  # images, noise draws, pixels along an edge
Probability = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(_Frozen):
    """Size in bytes and content hash of one file of the bundle."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class TensorSpec(_Frozen):
    """Name, element type and fixed shape of a graph input or output."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[Size, ...]


class Variant(_Frozen):
    """One graph of a component: a batch size in a precision and an ONNX profile."""

    batch: Count
    precision: Precision
    profile: Profile
    opset: Positive
    graph: GraphName
    files: tuple[PlainName, ...]
    component_key: Sha256
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Method(_Frozen):
    """What was baked into the graphs (paper sections 3.2 and 3.3; defaults of the official shell script)."""

    timestep: Annotated[int, Field(ge=0)]
    ensemble: Count
    prompt: str
    noise_seed: Annotated[int, Field(ge=0)]
    image_size: Count
    crop_size: Count
    latent_shape: tuple[Count, Count, Count]
    prediction_type: PredictionType
    alpha_bar: Annotated[float, Field(gt=0, lt=1)]
    scaling_factor: Annotated[float, Field(gt=0)]
    head: HeadName


class PreprocessingModel(_Frozen):
    """The edge form of ``policy.Preprocessing``."""

    version: Positive = VERSION
    exif: ExifPolicy
    alpha: AlphaPolicy
    icc: IccPolicy
    padding: PaddingPolicy
    resample: Resample


class Scaling(_Frozen):
    """Platt scaling: the probability of ``generated`` is sigmoid((generated − real) / temperature + bias)."""

    temperature: Annotated[float, Field(gt=0, le=1e6)]
    bias: Annotated[float, Field(ge=-1e6, le=1e6)]


_ADDED = (
    "scaling",
    "crops",
    "demonstration",
)  # fields of ``Decision`` that older readers do not know: written only where they are used


class Decision(_Frozen):
    """Thresholds on the probability of ``generated``, how that is scaled, and where both come from.

    ``crops`` is the number of windows they were measured with; absent where that is the official one.
    ``demonstration`` marks a model that was made to show the tool; absent for any other.
    """

    calibration: Calibration
    real_below: Probability | None = None
    generated_from: Probability | None = None
    data: str | None = None
    scaling: Scaling | None = None
    crops: Count | None = None
    demonstration: Literal[True] | None = None

    @model_serializer(mode="wrap")
    def _without_absent_fields(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Bundles from before there was scaling, a choice of windows or a mark, keep their bytes and their id."""
        content: dict[str, Any] = plain(self)
        return {name: value for name, value in content.items() if name not in _ADDED or value is not None}

    @model_validator(mode="after")
    def _consistent(self) -> Decision:
        given = [threshold is not None for threshold in (self.real_below, self.generated_from)]
        if given != [self.calibration == "calibrated"] * 2:
            raise ValueError("a calibrated decision needs both thresholds, any other has none")
        if self.scaling is not None and self.calibration != "calibrated":
            raise ValueError("only a calibrated decision may scale the probability")
        if self.crops is not None and (self.calibration != "calibrated" or self.crops not in CROPS):
            raise ValueError("crops must be a number of windows, and only of a calibrated decision")
        if self.real_below is not None and self.generated_from is not None and self.real_below > self.generated_from:
            raise ValueError("real_below must not exceed generated_from")
        return self


class ModelInfo(_Frozen):
    """What the bundle is, for people."""

    name: PlainName
    description: str
    synthetic: bool = False


class Source(_Frozen):
    """One set of weights that the bundle was built from."""

    role: Literal["vae", "unet", "scheduler", "text_encoder", "clip", "head"]
    name: str
    sha256: Sha256
    licence: str
    revision: str | None = None


class ParitySummary(_Frozen):
    """The end-to-end lines of ``parity.json``."""

    passed: bool
    engine: str
    worst_component: ComponentName
    worst_relative_l2: float
    probability_difference: float


class Manifest(_Frozen):
    """``manifest.json``."""

    schema_version: Literal[1]
    id: Sha256
    lare_id: Sha256
    model: ModelInfo
    method: Method
    preprocessing: PreprocessingModel
    components: dict[ComponentName, tuple[Variant, ...]]
    files: dict[PlainName, FileEntry]
    sources: tuple[Source, ...]
    decision: Decision
    parity: ParitySummary | None
    build: dict[str, str]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        if set(self.components) != set(COMPONENTS) or not all(self.components.values()):
            raise ValueError(f"components must be {', '.join(COMPONENTS)}, each with a variant")
        for name, variants in self.components.items():
            if len({(v.batch, v.precision, v.profile) for v in variants}) < len(variants):
                raise ValueError(f"{name} has two variants of the same batch, precision and profile")
        if not set.intersection(*({v.batch for v in variants} for variants in self.components.values())):
            raise ValueError("the components have no batch size in common")
        used = {name for variants in self.components.values() for v in variants for name in (v.graph, *v.files)}
        needed, listed = used | {NOISE, PARITY}, set(self.files) - {NOTICE, SELFCHECK}
        if needed != listed:
            missing, idle = ", ".join(sorted(needed - listed)), ", ".join(sorted(listed - needed))
            raise ValueError(f"files does not list {missing}" if missing else f"files lists {idle}, which nothing uses")
        return self

    @property
    def policy(self) -> Preprocessing:
        """The preprocessing policies as the runtime's own type."""
        return Preprocessing(**self.preprocessing.model_dump())

    def decoding(self, limits: Limits = DEFAULT_LIMITS, *, crops: int = 1, view: bool = False) -> DecodeTask:
        """Return what is done with every file that this bundle scores; see ``DecodeTask``."""
        return DecodeTask(self.policy, self.method.image_size, self.method.crop_size, limits, crops, view)

    def preprocess(self, source: ImageSource) -> Pixels:
        """Decode one image for this bundle, with the official window alone; raises ImageError as ``preprocess``."""
        return self.decoding().decode(source)

    @property
    def rule(self) -> DecisionRule:
        """The decision rule as the runtime's own type."""
        decision = self.decision
        crops = decision.crops or 1
        rule = DecisionRule(
            decision.calibration,
            decision.real_below,
            decision.generated_from,
            crops=crops,
            demonstration=bool(decision.demonstration),
        )
        scaling = decision.scaling
        return rule if scaling is None else replace(rule, temperature=scaling.temperature, bias=scaling.bias)

    def variant(
        self, component: ComponentName, *, batch: int, precision: Precision, profile: Profile
    ) -> Variant | None:
        """Return the matching variant of a component, or None."""
        for candidate in self.components[component]:
            if (candidate.batch, candidate.precision, candidate.profile) == (batch, precision, profile):
                return candidate
        return None

    def compute_id(self) -> str:
        """sha256 over what decides a verdict: graphs, weights and noise, method, preprocessing, decision.

        ``parity.json`` and ``selfcheck.npy`` are left out because they hold measurements of the detector, which differ
        between machines, and ``NOTICE.txt`` because it is for people.
        """
        beside = (PARITY, SELFCHECK, NOTICE)
        files = {name: entry.sha256 for name, entry in self.files.items() if name not in beside}
        parts = {"method": self.method, "preprocessing": self.preprocessing, "decision": self.decision}
        return _digest({"files": files, **{name: part.model_dump(mode="json") for name, part in parts.items()}})

    def compute_lare_id(self) -> str:
        """sha256 over what determines LaRE alone: source weights, prompt, noise, sizes and constants, preprocessing.

        Source weights, not graphs: the same weights at another batch size give the same maps.
        """
        roles = ("vae", "unet", "scheduler", "text_encoder")
        weights = sorted((source.role, source.sha256) for source in self.sources if source.role in roles)
        method = self.method.model_dump(mode="json", exclude={"head", "crop_size", "noise_seed"})
        preprocessing = self.preprocessing.model_dump(mode="json", exclude={"padding"})
        noise = self.files[NOISE].sha256
        return _digest({"weights": weights, "noise": noise, "method": method, "preprocessing": preprocessing})

    def to_json(self) -> bytes:
        """Return the canonical file content: sorted keys, indented, one newline at the end."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
