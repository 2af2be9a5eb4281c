"""How a command ends: exit codes and errors of one line. Needs no torch."""

import os
import signal
import sys
from collections.abc import Callable

from mdistiller.errors import RunError, UserError


class Interrupted(Exception):
    """A signal asked the run to stop; it saved its state first."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_command(main: Callable[[], int | None]) -> None:
    """Call `main` and leave with 0, 2 (the user can fix it), 3 (the run failed), 130 or 143 (interrupted, resumable).

    Errors that belong to the user are one line on stderr, without a traceback; a bug keeps its traceback.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = _say(error, 2)
    except RunError as error:
        code = _say(error, 3)
    except Interrupted as stop:
        code = _say(f"interrupted by {stop}: saved; continue with --resume", 130 if stop.number == signal.SIGINT else 143)
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _say(error, code):
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
