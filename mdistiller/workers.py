"""Worker processes that load data: how they end, and how a run ends if one is killed. Imports no torch."""

import contextlib
import multiprocessing
import os
import signal
import threading

from mdistiller.errors import RunError

CAN_WAIT_FOR_SIGNALS = hasattr(signal, "sigwaitinfo")  # not on macOS and Windows, where SIGTERM ends a worker


@contextlib.contextmanager
def dead_workers_fail_the_run():
    """Context that turns the errors of a worker killed by the system into one RunError: PyTorch's RuntimeError, or a
    broken connection if it was killed while it sent a batch."""
    try:
        yield
    except RunError:
        raise
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if isinstance(error, RuntimeError) and "DataLoader" not in str(error):
            raise
        handler = signal.getsignal(signal.SIGCHLD)
        if isinstance(handler, _ChildHandler):
            handler.told = True
        said = str(error) if isinstance(error, RuntimeError) else f"DataLoader worker ended: {error!r}"
        raise RunError(f"{said} (a smaller DATASET.NUM_WORKERS needs less memory)") from error


def begin(loader):
    """iter(loader), whose workers start with stop signals blocked, so that none arrives before they are ready.

    Raises RunError when they cannot start.
    """
    # Workers inherit what is blocked. A spawned one (macOS) takes seconds until it can ignore SIGINT.
    held = {signal.SIGINT, signal.SIGTERM} if CAN_WAIT_FOR_SIGNALS else {signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        if loader.num_workers:
            multiprocessing.Lock()  # raises what the loader would, without the traceback that the loader then prints
        return iter(loader)
    except ConnectionError:  # a worker of the pass before has ended
        raise
    except OSError as error:  # /dev/shm is missing or read-only, or there are too many processes
        raise RunError(f"the data workers cannot start: {error.strerror}; they need /dev/shm and processes of their "
                       "own; set DATASET.NUM_WORKERS 0 to do without them") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _report_dead_workers()


def _report_dead_workers():
    """Let PyTorch's handler of SIGCHLD, which raises at any point of a run if a worker is killed, raise RunError."""
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, _ChildHandler):
        handler.told = False
    elif callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, _ChildHandler(handler))


class _ChildHandler:
    """Calls PyTorch's handler only once, as a second exception would disturb the orderly end of the run."""

    def __init__(self, handler):
        self.handler, self.told = handler, False

    def __call__(self, number, frame):
        if not self.told:
            with dead_workers_fail_the_run():
                self.handler(number, frame)


def leave_signals_to_the_parent(worker: int) -> None:
    """Let a worker end only by a signal of its parent, and ignore signals that are sent to all processes of a group.

    Ctrl-C and a cluster's SIGTERM reach the workers too. If they ended then, the run could not save its state.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if CAN_WAIT_FOR_SIGNALS:
        parent = multiprocessing.parent_process().pid  # os.getppid() may be the server that forks for it
        threading.Thread(target=_end_with_the_parent, args=(parent,), daemon=True).start()


def _end_with_the_parent(parent):
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
