"""Tables are written only between the marks of a page."""

import os
import subprocess
import sys

import pytest

from mdistiller.errors import UserError
from mdistiller.report.pages import marks, parts_of, write_into
from tests.report.support import REPOSITORY


def test_only_text_between_the_marks_is_replaced(tmp_path):
    page, (begin, end) = tmp_path / "page.md", marks("numbers")
    page.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    write_into(page, "numbers", "new")
    assert page.read_text() == f"above\n{begin}\n\nnew\n{end}\nbelow\n"
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]


def test_what_stands_above_is_not_explained_again(tmp_path):
    page, (begin, end) = tmp_path / "page.md", marks("numbers")
    page.write_text(f"A gain is a mean.\n{begin}\nold\n{end}\n")
    write_into(page, "numbers", "A gain is a mean.\n\np is a test.\n\nnew", ("A gain is a mean.", "p is a test."))
    assert page.read_text() == f"A gain is a mean.\n{begin}\n\np is a test.\n\nnew\n{end}\n"


def test_a_page_is_utf8_in_every_locale(tmp_path):
    page, (begin, end) = tmp_path / "page.md", marks("numbers")
    page.write_text(f"5 ± 2\n{begin}\n{end}\n", encoding="utf-8")
    code = "import sys; from pathlib import Path; from mdistiller.report.pages import write_into; " \
        "write_into(Path(sys.argv[1]), 'numbers', '1 \\xb1 1')"
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code, page], cwd=REPOSITORY, env=environment, check=True)
    assert page.read_text(encoding="utf-8") == f"5 ± 2\n{begin}\n\n1 ± 1\n{end}\n"


@pytest.mark.parametrize("text", ["no marks", "{end}\n{begin}", "{begin}\n{begin}\n{end}", "{begin}"])
def test_a_page_without_marks_is_refused_and_not_changed(tmp_path, text):
    page, (begin, end) = tmp_path / "page.md", marks("numbers")
    page.write_text(text.format(begin=begin, end=end))
    with pytest.raises(UserError, match="page.md: expected one line <!-- numbers: begin -->"):
        write_into(page, "numbers", "new")
    assert page.read_text() == text.format(begin=begin, end=end)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "page.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="page.md: cannot be read as text"):
        write_into(tmp_path / "page.md", "numbers", "new")


@pytest.mark.parametrize("page, name", [("performance.md", "bench"), ("results.md", "small")])
def test_the_pages_of_this_project_have_their_marks(page, name):
    parts_of(REPOSITORY / "docs" / page, name)
