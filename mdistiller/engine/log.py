"""What a run says while it goes: lines, a progress bar on terminals, TensorBoard scalars."""

import contextlib
import logging
import sys
import threading
from functools import cache
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

FORMAT = "%(asctime)s %(message)s"


def start_logging(file: Path | None = None) -> logging.Logger:
    """The package's logger, writing to stdout and, when given, appending to a file."""
    logger = logging.getLogger("mdistiller")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers = [_BarSafeHandler(sys.stdout)]
    if file is not None:
        handlers.append(_LogFile(file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S" if handler is handlers[0] else None))
        logger.addHandler(handler)
    return logger


class _QuietOnFullDisks:
    """A line that cannot be written is lost: the run goes on, and fails where it cannot keep its state."""

    def handleError(self, record):  # noqa: N802  (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _LogFile(_QuietOnFullDisks, logging.FileHandler):
    pass


class _BarSafeHandler(_QuietOnFullDisks, logging.StreamHandler):
    """Prints above a running progress bar instead of through it."""

    def emit(self, record):
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def progress(total: int | None, description: str, enabled: bool = True, **options) -> tqdm:
    """A bar over `total` steps (or tqdm's `unit`, ...); silent when stdout is no terminal."""
    return tqdm(
        total=total, desc=description, leave=False, dynamic_ncols=True, file=sys.stdout,
        disable=not (enabled and sys.stdout.isatty()), **options,
    )


@cache
def quiet_writers() -> None:
    """Let TensorBoard's threads end without a traceback where they cannot write; `Scalars` says so in one line."""
    before = threading.excepthook

    def told(failure):
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard")):
            before(failure)

    threading.excepthook = told


class Scalars:
    """TensorBoard scalars below one folder; nothing at all on ranks other than the first.

    Where they cannot be written, on a full disk, they end with a warning and the run goes on.
    """

    def __init__(self, folder: Path, purge_step: int | None = None, enabled: bool = True):
        self.writer = None
        if enabled:
            quiet_writers()
            with self._ending():
                self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, values: dict[str, float], step: int) -> None:
        with self._ending():
            for name, value in values.items() if self.writer else ():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        with self._ending():
            if self.writer:
                self.writer.close()

    @contextlib.contextmanager
    def _ending(self):
        try:
            yield
        except OSError as error:
            self.writer = None
            logging.getLogger("mdistiller").warning("no more TensorBoard scalars: %s", error)
