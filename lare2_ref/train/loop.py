"""The training loop: epochs of steps, a look at the validation images after each, checkpoints in between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from lare2_rt.detection import DecisionRule
from lare2_rt.host.atomic import write_bytes
from lare2_rt.tools.evaluation.scores import Floats
from lare2_rt.tools.evaluation.summary import Sample as ScoredSample, group_numbers, summarise
from lare2_rt.tools.features.reader import Features

from ..checkpoints import read_safetensors
from .checkpoint import Checkpoints, EpochRecord, Progress
from .clip_cache import ClipCache
from .data import Part, Parts, order, seed_torch
from .dataset import Geometry, Sample, Samples, batches, shards
from .network import Networks
from .options import TrainOptions

BEST = "best.safetensors"
Report = Callable[[str], None]
Show = Callable[[str], contextlib.AbstractContextManager[Callable[[int, int], None]]]


@contextlib.contextmanager
def show_nothing(verb: str) -> Iterator[Callable[[int, int], None]]:
    """A ``Show`` without a sign."""
    yield lambda done, total: None


@dataclass(frozen=True, slots=True)
class Workshop:
    """Everything that a run works with.

    Attributes:
        options: the recipe; parts: the images; features: stored LaRE or None; cache: stored CLIP features or None.
        geometry: sizes and policies; workers: processes that decode, 0 for none; out: folder of the results.
        clean: options under which validation and test images are seen: as at run time.
    """

    options: TrainOptions
    parts: Parts
    features: Features | None
    cache: ClipCache | None
    geometry: Geometry
    workers: int
    out: Path
    clean: TrainOptions

    def samples(self, part: Part, epoch: int | None) -> Samples:
        """Return a part as an epoch trains on it, or, without an epoch, as the runtime sees it."""
        options = self.clean if epoch is None else self.options
        return Samples(
            part,
            options,
            0 if epoch is None else epoch,
            geometry=self.geometry,
            features=self.features,
            # A random view of an image is not the one whose features are kept.
            cache=self.cache if options.fixed_view else None,
        )


class Trainer:
    """One run on one or several processes (accelerate's), from its newest checkpoint to its end."""

    def __init__(
        self,
        workshop: Workshop,
        networks: Networks,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        *,
        digest: str,
        report: Report,
        watch: Callable[[EpochRecord], None] = lambda record: None,
        show: Show = show_nothing,
    ) -> None:
        options = workshop.options
        self._shop, self._networks, self._accelerator = workshop, networks, accelerator
        self._report, self._watch, self._show = report, watch, show
        trained = [p for p in networks.trainee.parameters() if p.requires_grad]
        # Official: Adam, no weight decay, gradient norm 5, the learning rate halved on a plateau.
        optimiser = torch.optim.Adam(trained, lr=options.learning_rate)
        self._model, self._optimiser = accelerator.prepare(networks.trainee, optimiser)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimiser.optimizer,
            mode="max",
            factor=options.factor,
            patience=options.patience,
            min_lr=options.min_learning_rate,
        )
        self._checkpoints = Checkpoints(workshop.out / "checkpoints", digest, accelerator)

    def run(self) -> Progress:
        """Train to the end; raises OutputError, ImageError."""
        progress = self._checkpoints.peek() or Progress()
        for record in progress.history:
            self._plateau.step(record.auc)  # the scheduler is a function of the history
        if progress.total_steps:
            self._checkpoints.load()
            self._report(f"going on after epoch {progress.epoch}, step {progress.step}")
        while not progress.finished:
            self._epoch(progress)
        return progress

    def _epoch(self, progress: Progress) -> None:
        shop, options = self._shop, self._shop.options
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        numbers = order(options.seed, progress.epoch, len(shop.parts.train)).tolist()
        chosen = shards(numbers, options.batch, rank=rank, world=world)
        self._set_modes(training=True)
        rate = float(self._optimiser.param_groups[0]["lr"])
        stream = batches(shop.samples(shop.parts.train, progress.epoch), chosen[progress.step :], workers=shop.workers)
        every = options.checkpoint_steps
        with self._show(f"epoch {progress.epoch + 1}") as shown:
            for batch in stream:
                progress.took_step(self._step(batch, progress.total_steps))
                if every and progress.total_steps % every == 0 and progress.step < len(chosen):
                    self._checkpoints.save(progress)
                shown(min(progress.step * options.batch, len(numbers)), len(numbers))
        record = self._measure(progress, rate)
        self._plateau.step(record.auc)
        if progress.took_epoch(record, options) and self._accelerator.is_main_process:
            self._keep_best()
        self._checkpoints.save(progress)
        self._watch(record)
        self._report(
            f"epoch {record.epoch}: loss {record.training_loss:.4f}, validation loss {record.validation_loss:.4f}, AUC "
            f"{record.auc:.4f}, ACC at 0.5 {record.accuracy:.4f}, learning rate {rate:.1e}"
            + (", best so far" if record is progress.best else "")
        )

    def _step(self, batch: Sample, number: int) -> float:
        """Take one optimiser step on a batch of this process; returns the loss over all processes."""
        accelerator, options = self._accelerator, self._shop.options
        inputs = self._networks.inputs(batch, accelerator.device)
        seed_torch(options.seed, "step", number, accelerator.process_index)
        logits = self._model(**inputs)
        loss = F.cross_entropy(logits.float(), batch["label"].to(accelerator.device))
        self._optimiser.zero_grad()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self._model.parameters(), options.clip_norm)
        self._optimiser.step()
        return float(accelerator.reduce(loss.detach(), "mean"))

    def _set_modes(self, *, training: bool) -> None:
        self._model.train(training)
        if self._networks.frozen is not None:
            self._networks.frozen.eval()

    def logits(self, part: Part) -> Floats:
        """Return the logits [n,2] of a part's images as the runtime sees them; the same in every process."""
        accelerator = self._accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        own = list(range(rank, len(part), world))
        chosen = [own[i : i + self._shop.options.batch] for i in range(0, len(own), self._shop.options.batch)]
        self._set_modes(training=False)
        rows: list[tuple[int, list[float]]] = []
        with torch.no_grad():
            for numbers, batch in zip(
                chosen, batches(self._shop.samples(part, None), chosen, workers=self._shop.workers), strict=True
            ):
                inputs = self._networks.inputs(batch, accelerator.device)
                values = self._model(**inputs).float().cpu().tolist()
                rows.extend(zip(numbers, values, strict=True))
        gathered: Sequence[tuple[int, list[float]]] = _gather(rows)
        return np.array([values for _, values in sorted(gathered)], np.float64)

    def _measure(self, progress: Progress, rate: float) -> EpochRecord:
        part = self._shop.parts.validation
        logits = self.logits(part)
        labels = np.array([item.label for item in part.items])
        summary = summarise(scored_sample(part, logits), DecisionRule("uncalibrated"), resamples=0)
        values = {name: interval.value for name, interval in summary.metrics.items()}
        gaps = np.where(labels == 1, logits[:, 0] - logits[:, 1], logits[:, 1] - logits[:, 0])
        return EpochRecord(
            epoch=progress.epoch + 1,
            learning_rate=rate,
            training_loss=progress.loss_sum / progress.loss_steps,
            validation_loss=float(np.logaddexp(0, gaps).mean()),
            auc=values["auc"],
            average_precision=values["average_precision"],
            accuracy=values["accuracy_at_half"],
        )

    def _keep_best(self) -> None:
        trainee = self._accelerator.unwrap_model(self._model)
        state = {name: value.detach().cpu().contiguous() for name, value in trainee.state_dict().items()}
        write_bytes(self._shop.out / BEST, save(state))

    def restore_best(self) -> None:
        """Put the best epoch's weights into the network."""
        self._accelerator.wait_for_everyone()
        trainee = self._accelerator.unwrap_model(self._model)
        state: dict[str, Tensor] = read_safetensors(self._shop.out / BEST)
        trainee.load_state_dict(state, strict=True)

    @property
    def trainee(self) -> Any:  # noqa: ANN401 - accelerate is untyped
        """The network in training, without accelerate's wrapping."""
        return self._accelerator.unwrap_model(self._model)


def scored_sample(part: Part, logits: Floats) -> ScoredSample:
    """Return a part with its probabilities, for metrics."""
    rule = DecisionRule("uncalibrated")
    return ScoredSample(
        np.array([item.label == 1 for item in part.items], np.bool_),
        np.array([rule.probability(pair) for pair in logits.tolist()]),
        group_numbers([item.source for item in part.items]),
    )


def _gather(rows: list[tuple[int, list[float]]]) -> list[tuple[int, list[float]]]:
    from accelerate.utils import gather_object

    gathered: list[tuple[int, list[float]]] = gather_object(rows)
    return gathered
