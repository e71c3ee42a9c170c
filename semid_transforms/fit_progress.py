"""Watching a fit: a bar on a terminal, lines in a log, scalars for TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from models.autoencoder_training import Progress

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0


@contextlib.contextmanager
def report_progress(tensorboard: str | None, run: str) -> Iterator[Progress]:
    """Gives the progress function of one fit.

    Progress is a bar where standard error is a terminal, else a log line every few seconds; both
    show loss, use of codes and collisions. Nothing is shown when this logger is quiet.

    Args:
      tensorboard: folder for TensorBoard, None for none.
      run: subfolder of this fit.
    """
    with contextlib.ExitStack() as stack:
        watchers: list[Progress] = []
        if tensorboard is not None:
            watchers.append(stack.enter_context(_scalars(os.path.join(tensorboard, run))))
        if _log.isEnabledFor(logging.INFO):
            watchers.append(stack.enter_context(_bar()) if sys.stderr.isatty() else _log_lines())

        def progress(step: int, steps: int, scalars: Mapping[str, float]) -> None:
            for watch in watchers:
                watch(step, steps, scalars)

        yield progress


def describe(scalars: Mapping[str, float]) -> str:
    """Says in one line how training stands; see `train_autoencoder` for what is measured."""
    return (
        f"loss {scalars['loss']:.4g}  1-R2 {scalars['error']:.4f}  codes in use "
        f"{scalars['use']:.0%}  colliding {scalars['colliding']:.1%}"
    )


@contextlib.contextmanager
def _scalars(folder: str) -> Iterator[Progress]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as writer:

        def watch(step: int, steps: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)

        yield watch


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("fit"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def watch(step: int, steps: int, scalars: Mapping[str, float]) -> None:
            bar.update(task, completed=step, total=steps, description=describe(scalars))

        yield watch


def _log_lines(clock: Callable[[], float] = time.monotonic) -> Progress:
    last = clock()

    def watch(step: int, steps: int, scalars: Mapping[str, float]) -> None:
        nonlocal last
        if clock() - last >= _SECONDS_BETWEEN_LINES or step == steps:
            last = clock()
            _log.info("fit      step %d of %d  %s", step, steps, describe(scalars))

    return watch
