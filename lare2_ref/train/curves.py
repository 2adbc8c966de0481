"""TensorBoard curves, where they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict

from lare2_rt.errors import UsageError

from .progress import EpochRecord
from .request import TrainRequest


@contextlib.contextmanager
def curves(request: TrainRequest, main: bool) -> Iterator[Callable[[EpochRecord], None]]:
    """Yield what takes each epoch's record; raises UsageError when TensorBoard is asked for and not installed."""
    if not request.tensorboard or not main:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise UsageError(
            "tensorboard is not installed", remedy="pip install 'lare2-rt[train]', or leave --tensorboard out"
        ) from (None)
    writer = SummaryWriter(str(request.out / "tensorboard"))

    def watch(record: EpochRecord) -> None:
        for name, value in asdict(record).items():
            if name != "epoch":
                writer.add_scalar(name, value, record.epoch)
        writer.flush()

    try:
        yield watch
    finally:
        writer.close()
