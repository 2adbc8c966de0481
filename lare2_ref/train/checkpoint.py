"""Checkpoints: accelerate's state and our progress in one folder, which appears whole by a rename."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lare2_rt.errors import OutputError, UsageError
from lare2_rt.host.atomic import fsync_folder, reason

from .options import TrainOptions

_PROGRESS = "progress.json"
_NAME = re.compile(r"step-\d{9}-\d{6}")


class Checkpoints:
    """The checkpoints of one run in ``OUT/checkpoints``; only the newest is kept.

    Args:
        folder: of the checkpoints; digest: identity of the run (options, data, weights).
        accelerator: accelerate's, with everything prepared; all processes call ``save`` and ``load`` together.
    """

    def __init__(self, folder: Path, digest: str, accelerator: Any) -> None:  # noqa: ANN401 - accelerate is untyped
        self._folder, self._digest, self._accelerator = folder, digest, accelerator

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; raises OutputError."""
        accelerator = self._accelerator
        # An epoch's end comes right after its last step, with more in it.
        name = f"step-{progress.total_steps:09d}-{progress.epoch:06d}"
        temporary, final = self._folder / f".{name}.tmp", self._folder / name
        try:
            if accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(temporary), safe_serialization=True)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                content = {"run": self._digest, "progress": progress.as_dict()}
                (temporary / _PROGRESS).write_text(json.dumps(content))
                self._publish(temporary, final)
        except OSError as error:
            raise OutputError(
                f"cannot write {final}: {reason(error)}",
                remedy="free some space and run the same command again, it goes on from the checkpoint before",
            ) from error
        accelerator.wait_for_everyone()

    def _publish(self, temporary: Path, final: Path) -> None:
        for path in temporary.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        fsync_folder(temporary)
        temporary.rename(final)
        fsync_folder(self._folder)
        for path in self._folder.iterdir():
            if path != final:
                shutil.rmtree(path, ignore_errors=True)

    def peek(self) -> Progress | None:
        """Return the newest checkpoint's progress; None where there is none.

        Raises:
            UsageError: it is of another run, or damaged.
        """
        found = self._newest()
        if found is None:
            return None
        try:
            content = json.loads((found / _PROGRESS).read_text())
            progress = Progress.from_dict(content["progress"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{found} is damaged ({error})", remedy="remove it to begin anew") from error
        if content["run"] != self._digest:
            raise UsageError(
                f"{self._folder} is of a run with other options, data or weights",
                remedy="name another --out, or remove it to begin anew",
            )
        return progress

    def load(self) -> None:
        """Restore weights and optimiser of the newest checkpoint."""
        self._accelerator.load_state(str(self._newest()))

    def _newest(self) -> Path | None:
        found = sorted(path for path in self._folder.glob("step-*") if _NAME.fullmatch(path.name))
        return found[-1] if found else None


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
