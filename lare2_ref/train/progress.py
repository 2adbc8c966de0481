"""How far a run is, which epoch was best and when it ends. Part of every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .options import TrainOptions


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        epoch: from 1; learning_rate: that it was trained with; training_loss: mean cross-entropy, in nats.
        validation_loss, auc, average_precision, accuracy: on the validation images, accuracy at 0.5.
    """

    epoch: int
    learning_rate: float
    training_loss: float
    validation_loss: float
    auc: float
    average_precision: float
    accuracy: float


@dataclass(slots=True)
class Progress:
    """Attributes:
    epoch: the epoch in work, from 0; step: batches of it that are done; total_steps: of the whole run.
    loss_sum: of the steps done in this epoch; loss_steps: their number.
    best: the record of the best epoch so far; waited: epochs since; history: of all epochs.
    finished: nothing is left to do.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    waited: int = 0
    best: EpochRecord | None = None
    history: list[EpochRecord] = field(default_factory=list)
    finished: bool = False

    def took_step(self, loss: float) -> None:
        """Count one batch."""
        self.step += 1
        self.total_steps += 1
        self.loss_sum += loss
        self.loss_steps += 1

    def took_epoch(self, record: EpochRecord, options: TrainOptions) -> bool:
        """Count one epoch and decide whether it was the last; returns whether it is the best so far.

        Best is the highest validation AUC, of equals the one with the lowest loss, of equals the first.
        """
        self.history.append(record)
        best = self.best
        # AUC 1 is common on easy sets; the loss still tells epochs apart.
        better = best is None or (record.auc, -record.validation_loss) > (best.auc, -best.validation_loss)
        if better:
            self.best = record
        self.waited = 0 if better else self.waited + 1
        self.epoch += 1
        self.step, self.loss_sum, self.loss_steps = 0, 0.0, 0
        waited_enough = bool(options.stop_after) and self.waited >= options.stop_after
        self.finished = self.epoch >= options.epochs or waited_enough
        return better

    def as_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Progress:
        """The inverse of ``as_dict``."""
        best = content["best"]
        records = {
            "best": None if best is None else EpochRecord(**best),
            "history": [EpochRecord(**record) for record in content["history"]],
        }
        return cls(**{**content, **records})
