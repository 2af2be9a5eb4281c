"""Words of messages."""

import pytest

from mdistiller.errors import counted


@pytest.mark.parametrize(("number", "word", "text"), [
    (1, "run", "1 run"), (0, "run", "0 runs"), (2, "finished run", "2 finished runs"), (1, "class", "1 class"),
    (2, "class", "2 classes"),
])
def test_one_of_a_thing_is_singular(number, word, text):
    assert counted(number, word) == text
