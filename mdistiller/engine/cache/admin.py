"""Management of teacher caches outside a run: list, fill, verify and delete them."""

import glob
import logging
import shutil
import tempfile
import time
from pathlib import Path

from yacs.config import CfgNode

from mdistiller.config import errors_name_files
from mdistiller.config.length import num_epochs
from mdistiller.data import build_data
from mdistiller.distillers import DISTILLERS, class_for
from mdistiller.engine.cache import replay
from mdistiller.engine.cache.hidden_cache import HiddenCache
from mdistiller.engine.cache.logit_cache import LogitCache
from mdistiller.engine.cache.logit_store import LogitStore, read_metadata, record_bytes, remedy
from mdistiller.engine.cache.replay import ReplayCache, ReplayStore
from mdistiller.engine.cache.teacher_cache import TeacherCache, in_bytes, open_cache, why_live
from mdistiller.engine.log import progress
from mdistiller.engine.networks import ready_teacher
from mdistiller.engine.periods import in_periods
from mdistiller.engine.setup import prepare_device, set_seed, settle_precision
from mdistiller.errors import RunError, UserError
from mdistiller.tasks import build_task

SECONDS_BETWEEN_LINES = 60
DELETED = ".deleted-"  # how the name of a folder begins into which a store is moved
log = logging.getLogger("mdistiller")


def find_stores(directory: str | Path) -> list[Path]:
    """The stores in `directory`, ordered by name, and `directory` itself if it is a store."""
    directory = Path(directory)
    if read_metadata(directory):
        return [directory]
    return [folder for folder in sorted(directory.iterdir()) if read_metadata(folder)]


def inspect(directory: str | Path) -> str:
    """One line per store: teacher, data, stored rows, disk space. Raises UserError for a damaged store or no folder."""
    if not Path(directory).is_dir():
        raise UserError(f"{directory}: no such folder of teacher caches; runs make TEACHER_CACHE.DIR")
    lines = [_line(folder) for folder in find_stores(directory)]
    return "\n".join(lines) or f"{directory}: no teacher caches"


def _line(folder):
    store, used = _open(folder), sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    key, held = store.metadata["key"], store.num_held
    try:
        made_of = (f"{key['teacher']} ({key['teacher_sha256'][:12]}) on {key['data']} ({key['fingerprint'][:12]}), "
                   f"{key['num_classes']} classes, {key['views']}, {key['dtype']}, computed on {key['device']}")
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/metadata.json: damaged ({error}); {remedy(folder)}") from None
    made_of += "".join(f", {name.replace('_', ' ')} {key[name]}" for name in ("data_seed", "topk") if name in key)
    full = store.num_records * record_bytes(store.metadata["num_classes"], store.metadata["dtype"])
    return (
        f"{folder}: {made_of}: {held} of {store.num_records} rows ({100 * held / max(store.num_records, 1):.1f} %), "
        f"{in_bytes(used)} used, {in_bytes(full)} when full{store.words}"
    )


def open_for(cfg: CfgNode, epochs: int | None = None, create: bool = True) -> TeacherCache | ReplayCache | HiddenCache:
    """The cache that runs of this config use; disk space is checked for `epochs` (None: all rows, see `prefill`).

    Raises UserError when runs of this config use no cache, and without `create` when there is none yet.
    """
    method = DISTILLERS[cfg.DISTILLER.TYPE]
    if not method.needs_teacher:
        raise UserError(f"DISTILLER.TYPE: {method.method} has no teacher; expected a method with a teacher")
    device = prepare_device(cfg)
    settle_precision(cfg, device)
    kind = cfg.TEACHER_CACHE.KIND
    data = build_data(cfg, device)
    task = build_task(cfg, data.info)
    method = class_for(method, task)
    reason = why_live(method, data, kind)
    if reason is not None:
        raise UserError(f"DISTILLER.TYPE: {reason}: its runs have no teacher cache")
    set_seed(cfg.EXPERIMENT.SEED)
    teacher, metadata = ready_teacher(cfg, task, method, device)
    teacher.eval()
    if kind == replay.KIND:
        data = in_periods(data, cfg.SOLVER)
    else:
        epochs = len(data.view_numbers) if epochs is None else epochs
    return open_cache(cfg, data, teacher, metadata["teacher_sha256"], device, epochs, method.views, create)


def prefill(cfg: CfgNode, epochs: int | None = None) -> TeacherCache | ReplayCache | HiddenCache:
    """Store the rows that the first `epochs` epochs of a run read. None: the rows of all views of all training images,
    or with TEACHER_CACHE.KIND replay those of all epochs of the run.

    It can be interrupted and continued at any time, and several processes may do it at once. Raises RunError when the
    disk does not take the rows.
    """
    with errors_name_files(cfg):
        cache = open_for(cfg, epochs)
    if cfg.TEACHER_CACHE.KIND == replay.KIND:
        epochs = epochs or num_epochs(cfg.SOLVER)
        total = cache.num_rows(epochs)
    else:
        total = cache.data.info.num_train * (epochs or len(cache.data.view_numbers))
    started = said = time.monotonic()
    with progress(total, "filling", unit=" rows") as bar:
        for number in cache.fill(range(1, epochs + 1) if epochs else None):
            bar.update(number)
            if cache.misses and not cache.store.writable:  # a run would go on without; the reason is in the log
                raise RunError(f"{cache.store.folder}: cannot grow, see above; {cache.store.count} rows are stored")
            if bar.disable and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                log.info("%d rows computed, %.0f a second", cache.misses, cache.misses / (said - started))
    log.info("%s: %s rows computed, %d stored", cache.store.folder, cache.misses, cache.store.count)
    return cache


def verify(folder: str | Path) -> int:
    """Check the checksums of all rows of a store; returns the number of rows. Raises UserError for damaged rows."""
    store = _open(folder)
    held, damaged = store.num_held, store.damaged()
    if damaged:
        raise UserError(f"{folder}: {damaged} of {held} rows are damaged; runs compute them again, or {remedy(folder)}")
    return held


def verify_against_teacher(cfg: CfgNode, rows: int) -> tuple[Path, int, str]:
    """Compare at most `rows` random rows of the cache of this config with the teacher.

    Returns the folder of the cache, the number of compared rows, and a text about their error (empty for text data).
    Raises UserError when a row differs, and when there is none.
    """
    cfg.TEACHER_CACHE.CHECK = rows
    with errors_name_files(cfg):
        cache = open_for(cfg, epochs=0, create=False)
    if not cache.store.num_held:
        raise UserError(f"{cache.store.folder}: holds no rows yet")
    error = cache.error(rows) if isinstance(cache, LogitCache) else ""
    return cache.store.folder, min(rows, cache.store.num_held), error


def delete(folder: str | Path) -> None:
    """Delete a store. Raises UserError for any other folder. Runs that use the store continue with their open files."""
    folder = Path(folder).resolve()  # "." cannot be renamed
    begun = list(folder.parent.glob(f"{DELETED}*/{glob.escape(folder.name)}"))  # by a process that was stopped
    if read_metadata(folder):
        removed = Path(tempfile.mkdtemp(dir=folder.parent, prefix=DELETED))
        try:
            begun.append(folder.rename(removed / folder.name))  # atomic: no process opens a partly deleted store
        except OSError as error:
            removed.rmdir()
            raise UserError(f"{folder}: cannot be deleted: {error.strerror}") from None
    elif not begun:
        raise UserError(f"{folder}: not a teacher cache (metadata.json is missing)")
    for store in begun:
        shutil.rmtree(store.parent)


def _open(folder):
    metadata = read_metadata(Path(folder))
    if not metadata:
        raise UserError(f"{folder}: not a teacher cache (metadata.json is missing)")
    return (ReplayStore if metadata.get("kind") == replay.KIND else LogitStore)(Path(folder), metadata)
