"""Exit codes of commands, and error messages of one line. Imports no torch."""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mdistiller.errors import DISK_FAILS, PLACE_FAILS, RunError, UserError

NEGATIVE = re.compile(r"-\.?\d.*")  # a value, such as -1e-3, which argparse takes for an option
# The first word of KEY VALUE, but not the name of a file such as Dolly.jsonl.
OVERRIDE = re.compile(r"(?![^=]*\.(ya?ml|jsonl?)$)[A-Z][A-Za-z_]*(\.\w+)+(=.*)?|(DEVICE|COMPILE)(=.*)?")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s, one line like all others, without the usage text."""

    def __init__(self, description: str | None = None, **options):
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options}
        super().__init__(description=description, **options)
        self._negative_number_matcher = NEGATIVE

    def parse_args(self, *args, **options) -> argparse.Namespace:
        return self._without_empty_words(super().parse_args(*args, **options))

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """As in argparse, but KEY VALUE may also follow an option of several words, which would take them as well."""
        words = self._overrides_first(sys.argv[1:] if args is None else args)
        return self._without_empty_words(super().parse_intermixed_args(words, namespace))

    def _without_empty_words(self, namespace):
        """The namespace. Raises UserError for an empty word, unless it is the value of a key of KEY VALUE."""
        names = {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}
        for name, words in vars(namespace).items():
            words = words if isinstance(words, list) else [words]
            keys = (place for place, word in enumerate(words) if isinstance(word, str) and OVERRIDE.fullmatch(word))
            if name != "opts" and "" in words[: next(keys, None)]:  # an empty key is unknown as others are
                self.error(f"{names.get(name, name)}: expected a value, found an empty one, perhaps of a variable of "
                           "the shell that is not set")
        return namespace

    def _overrides_first(self, words):
        """The words, with KEY VALUE from behind options of several words moved in front of the first option."""
        moved, rest, several, moves = [], [], False, False
        for word in words:
            if word.startswith("--") or word in self._option_string_actions:
                action = self._option_string_actions.get(word)
                several, moves = action is not None and action.nargs in ("+", "*"), False
            moves = moves or (several and OVERRIDE.fullmatch(word) is not None)
            (moved if moves else rest).append(word)
        place = next((index for index, word in enumerate(rest) if word in self._option_string_actions), len(rest))
        return [*rest[:place], *moved, *rest[place:]]

    def refuse_more_seeds(self, args: argparse.Namespace) -> None:
        """Raise UserError for seeds that are listed, where --seeds is their number."""
        if args.seeds is not None and args.opts and args.opts[0].isdecimal():
            self.error(f"--seeds takes one number N and trains seeds 0 ... N-1; found also {args.opts[0]}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}; see {self.prog} --help")


def add_public_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the training commands of logit standardization's code and of SDD's.

    `public.with_standardization` applies the former.
    """
    parser.add_argument("--logit-stand", action="store_true", help="EXPERIMENT.LOGIT_STAND True, and the next two")
    parser.add_argument("--base-temp", metavar="T", help="KD.TEMPERATURE, or those of DKD, SDD and RLD (default: 2)")
    parser.add_argument("--kd-weight", metavar="W", help=(
        "KD.LOSS.KD_WEIGHT, DKD.LS_WEIGHT, or the factor of ALPHA and BETA for RLD and SDD with DKD (default: 9)"))
    parser.add_argument("--M", metavar="LIST", help="SDD.M")
    parser.add_argument("--gpu", metavar="N", help="DEVICE cuda:N")


class Interrupted(Exception):
    """A signal stopped the run, after it saved its state."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else 143  # SIGTERM, SIGHUP, SIGUSR1, SIGUSR2


class Terminated(KeyboardInterrupt):
    """SIGTERM at a time without another handler, such as before or after the training."""


def _terminate(number, frame):
    raise Terminated


def run_command(main: Callable[[], int | None], how_to_continue: str = "continue with --resume") -> None:
    """Call `main` and exit with the code of `exit_code`; SIGTERM ends the command with one line."""
    _ready_streams()
    listens = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if listens:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = exit_code(main, how_to_continue)
    finally:
        if listens:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        sys.stdout.flush()
    except OSError:  # a closed terminal: the interpreter, which flushes too, would exit with 120
        _give_up(sys.stdout)
    sys.exit(code)


def exit_code(main: Callable[[], int | None], how_to_continue: str = "continue with --resume") -> int:
    """Call `main`: 0 or its code, 2 (the user can fix it), 3 (the run failed), 130 or 143 (interrupted, resumable).

    Errors of the user and of the run are one line on stderr, without a traceback; other exceptions are raised.
    """
    code = 0
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        code = say(error, 2)
    except RunError as error:
        code = say(error, 3)
    except Interrupted as stop:
        code = say(f"interrupted by {stop}: saved; {how_to_continue}", stop.exit_code)
    except Terminated:
        code = say("terminated", 143)
    except KeyboardInterrupt:
        code = say("interrupted", 130)
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and "failed to map" not in str(error):  # a library that does not fit
            raise
        code = say("not enough memory for this command; see the limits of this process (ulimit -v)", 3)
    except BrokenPipeError:  # the reader of the output has ended, such as `| head`
        _give_up(sys.stdout)
        code = 0
    except OSError as error:
        if error.errno in PLACE_FAILS and error.filename is not None:
            code = say(f"{error.filename}: {error.strerror}", 2)
        elif error.errno not in DISK_FAILS:
            raise
        else:
            _give_up(sys.stdout)
            code = say(f"{error.filename or 'the output'}: cannot be written: {error.strerror}", 3)
    return code


def quiet_interrupts() -> None:
    """Let Ctrl-C end a command with one line while its modules are imported, before `run_command` handles it."""

    def in_one_line(kind, error, trace):
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        say("interrupted", 130)
        os._exit(130)  # nothing has started; without this, the signal would end the interpreter

    sys.excepthook = in_one_line


def _ready_streams():
    """Open closed standard streams on the null device, and write characters that an encoding lacks as escapes."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # otherwise a file of the run would become stdout
        pass
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _give_up(stream):
    """Discard what is still to be written to a stream, so that the interpreter can exit without an error."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(error: object, code: int) -> int:
    """Print an error in one line on stderr; returns the exit code."""
    try:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    except OSError:  # the reader of stderr has ended, or its terminal was closed
        _give_up(sys.stderr)
    return code
