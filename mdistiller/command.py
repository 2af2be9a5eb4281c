"""How a command ends: exit codes and errors of one line. Needs no torch."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from mdistiller.errors import DISK_FAILS, PLACE_FAILS, RunError, UserError


class Parser(argparse.ArgumentParser):
    """Words of a command line; a wrong one is an error of one line like any other, without the page of usage."""

    def __init__(self, description: str | None = None, **options):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}; see {self.prog} --help")


class Interrupted(Exception):
    """A signal asked the run to stop; it saved its state first."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else 143  # a cluster's warning (SIGUSR1, SIGUSR2) as SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM where nobody else listens: before the training, say, or after it."""


def _terminate(number, frame):
    raise Terminated


def run_command(main: Callable[[], int | None]) -> None:
    """Call `main` and leave with 0, 2 (the user can fix it), 3 (the run failed), 130 or 143 (interrupted, resumable).

    Errors that belong to the user are one line on stderr, without a traceback; a bug keeps its traceback.
    """
    listens = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if listens:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _say(error, 2)
    except RunError as error:
        code = _say(error, 3)
    except Interrupted as stop:
        code = _say(f"interrupted by {stop}: saved; continue with --resume", stop.exit_code)
    except Terminated:
        code = _say("terminated", 143)
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        _give_up_stdout()
        code = 0
    except OSError as error:
        if error.errno in PLACE_FAILS and error.filename is not None:
            code = _say(f"{error.filename}: {error.strerror}", 2)
        elif error.errno not in DISK_FAILS:
            raise
        else:
            _give_up_stdout()
            code = _say(f"{error.filename or 'the output'}: cannot be written: {error.strerror}", 3)
    finally:
        if listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(code)


def _give_up_stdout():
    """What is still to be written to stdout goes nowhere, so that the interpreter does not fail over it as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(error, code):
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
