"""Log lines, progress bars (on terminals) and TensorBoard scalars of a run."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from tqdm import tqdm

from mdistiller.command import Interrupted
from mdistiller.errors import RunError, UserError, first_line

TEXT = {"encoding": "utf-8", "errors": "backslashreplace"}
FORMAT = "%(asctime)s %(message)s"


def epoch_line(record: Mapping, epochs: int, splits: Sequence[str], task) -> str:
    """The measurements of an epoch (a line of metrics.jsonl) in one line of the log."""
    parts = [f"epoch {record['epoch']}/{epochs}", f"lr {record['lr']:.4g}", f"loss {record['train_loss']:.4f}"]
    parts += [f"{split} {record[key]:.2f}" for split in ("train", *splits)
              if (key := f"{split}_{task.headline}") in record]
    if "weight_mean" in record:
        parts.append(f"weight {record['weight_mean']:.3f} (sd {record['weight_std']:.3f})")
    return ", ".join([*parts, f"{record[f'{task.unit}_per_second']:.0f} {task.unit}/s"])


def start_logging(file: Path | None = None, enabled: bool = True) -> logging.Logger:
    """The package's logger; it writes to stdout and, if `file` is given, appends to that file.

    The file also gets the lines that were logged since the last call without a file, when its folder did not exist
    yet. On ranks other than the first, which would repeat the lines, it is not `enabled` and logs only errors.
    """
    logger = logging.getLogger("mdistiller")
    logger.setLevel(logging.INFO if enabled else logging.ERROR)
    logger.propagate = False
    tqdm.get_lock()  # made here: Ctrl-C while the first line makes it would end in a traceback
    early = [record for handler in logger.handlers for record in getattr(handler, "records", ())]
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers = [_BarSafeHandler(sys.stdout), _Early() if file is None else _LogFile(file, **TEXT)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S" if handler is handlers[0] else None))
        logger.addHandler(handler)
    for record in early if file is not None else ():
        handlers[1].handle(record)
    return logger


class _QuietOnFullDisks:
    """Ignores OSError while logging: a lost log line does not stop a run; a checkpoint that cannot be saved does."""

    def handleError(self, record):  # noqa: N802  (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _LogFile(_QuietOnFullDisks, logging.FileHandler):
    pass


class _Early(logging.Handler):
    """Keeps the lines for a file that is opened later."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


class _BarSafeHandler(_QuietOnFullDisks, logging.StreamHandler):
    """Prints above a running progress bar instead of through it."""

    def emit(self, record):
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextlib.contextmanager
def why_it_ends() -> Iterator[None]:
    """Context: the reason why a run ends before its time is the last line of its file; the command prints it too."""
    try:
        yield
    except Exception as error:
        logger = logging.getLogger("mdistiller")
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "ended: %s", (reason(error),), None)
        for handler in logger.handlers:
            if isinstance(handler, _LogFile):
                handler.handle(record)
        raise


def reason(error: BaseException) -> str:
    """Why a run ended, in one line."""
    if isinstance(error, Interrupted):
        return f"interrupted by {error}"
    return " ".join(str(error).split()) if isinstance(error, UserError | RunError) else first_line(error)


def progress(total: int | None, description: str, enabled: bool = True, **options) -> tqdm:
    """A progress bar over `total` steps, silent when stdout is not a terminal; `options` are passed to tqdm."""
    return tqdm(
        total=total, desc=description, leave=False, dynamic_ncols=True, file=sys.stdout,
        disable=not (enabled and sys.stdout.isatty()), **options,
    )


def evaluated(data, split: str, rank: int = 0, world_size: int = 1) -> Iterator[dict]:
    """The batches of `data.eval_batches` with the same arguments, and a progress bar on the first rank."""
    with progress(len(data.eval_starts(split, rank, world_size)), f"evaluating {split}", rank == 0) as bar:
        for batch in data.eval_batches(split, rank, world_size):
            yield batch
            bar.update()


@cache
def quiet_writers() -> None:
    """Suppress the traceback of TensorBoard's threads when they cannot write; `Scalars` logs one warning instead."""
    before = threading.excepthook

    def told(failure):
        if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard")):
            before(failure)

    threading.excepthook = told


class Scalars:
    """Writes TensorBoard scalars to one folder; on ranks other than the first it does nothing.

    If they cannot be written (for example on a full disk), it logs a warning and writes no more; the run continues.
    """

    def __init__(self, folder: Path, step: int = 0, every: int = 1, enabled: bool = True):
        """A run that is at `step` continues the scalars in `folder`; those of later steps are taken out.

        `every`: the number of steps of which one is shown, see `add_step`.
        """
        self.writer, self.every, self.shown = None, every, step // every
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # here, since other commands and ranks write none

            quiet_writers()
            with self._ending():
                self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, values: dict[str, float], step: int) -> None:
        with self._ending():
            for name, value in values.items() if self.writer else ():
                self.writer.add_scalar(name, value, step)

    def add_step(self, step: int, losses: Callable[[], Mapping[str, float]]) -> None:
        """Add the losses of a step, unless one was added since the last multiple of `every`; reads them only then."""
        if self.writer and step // self.every > self.shown:
            self.add({f"step/{name}": value for name, value in losses().items()}, step)
            self.shown = step // self.every

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
