"""Exit codes and messages with closed or broken streams, other encodings, and interrupts during imports."""

import os
import subprocess
import sys

import pytest

from mdistiller.errors import first_line

ENDS = {
    "prints": "lambda: print('5 \xb1 2 \u2013')", "fails": "lambda: (_ for _ in ()).throw(UserError('\xb1 wrong'))",
}


def start(main, redirect="", **environment):
    code = f"from mdistiller.command import run_command; from mdistiller.errors import UserError; run_command({main})"
    words = ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, code]
    return subprocess.run(words, capture_output=True, env=os.environ | {"PYTHONUTF8": "0"} | environment)


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(redirect):
    for main, code in (("prints", 0), ("fails", 2)):
        done = start(ENDS[main], redirect)
        assert done.returncode == code and b"Traceback" not in done.stderr


def test_a_file_of_a_run_does_not_get_the_descriptor_of_a_closed_stdout(tmp_path):
    main = f"lambda: (open({str(tmp_path / 'file')!r}, 'w').write('mine'), print('said'))[2:] or None"
    assert start(main, ">&-").returncode == 0
    assert (tmp_path / "file").read_text() == "mine"


def test_characters_outside_the_encoding_are_escaped():
    for encoding in ("ascii", "latin-1"):
        done = start(ENDS["prints"], PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and b"\\u2013" in done.stdout and not done.stderr


@pytest.mark.parametrize(("error", "whole", "alone"), [
    (KeyError("a"), "KeyError: 'a'", "'a'"), (ValueError("\n a\nb"), "ValueError: a", "a"),
    (RuntimeError(), "RuntimeError", "RuntimeError"), (OSError("x" * 300), "OSError: " + "x" * 200, "x" * 200),
])
def test_the_first_line_of_an_exception(error, whole, alone):
    assert (first_line(error), first_line(error, kind=False)) == (whole, alone)


def test_too_little_memory_is_one_line():
    done = start("lambda: bytearray(1 << 62)")
    assert done.returncode == 3 and done.stderr.startswith(b"error: not enough memory")
    assert done.stderr.count(b"\n") == 1


def test_an_error_keeps_its_exit_code_when_stderr_is_closed():
    reader, writer = os.pipe()
    os.close(reader)
    code = "from mdistiller.command import run_command; from mdistiller.errors import UserError\n"
    done = subprocess.run([sys.executable, "-c", f"{code}run_command({ENDS['fails']})"], stderr=writer)
    os.close(writer)
    assert done.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is always full")
def test_an_error_keeps_its_exit_code_when_what_was_said_before_cannot_be_written():
    done = start(f"lambda: (print('so far'), ({ENDS['fails']})())", "> /dev/full", PYTHONUNBUFFERED="")
    assert done.returncode == 2 and done.stderr.startswith(b"error: ") and done.stderr.endswith(b" wrong\n")
    assert done.stderr.count(b"\n") == 1


def test_an_interrupt_while_modules_are_imported_is_one_line():
    code = "from mdistiller.command import quiet_interrupts; quiet_interrupts(); raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_commands_that_import_much_are_quiet_from_their_first_import_on():
    tools = os.path.join(os.path.dirname(os.path.dirname(__file__)), "tools")
    for name in ("compare", "sweep", "tables", "report", "figures", "methods"):
        with open(os.path.join(tools, f"{name}.py")) as file:
            before, _, after = file.read().partition("\nquiet_interrupts()\n")
        assert after and before.count("mdistiller.") == 1 and "import yaml" not in before
