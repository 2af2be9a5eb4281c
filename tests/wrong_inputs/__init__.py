"""Wrong inputs as data: what is typed, on which files, and what the one line that answers must name."""

from tests.wrong_inputs import command_lines, data, records, settings, weights

CASES = [case for part in (settings, command_lines, weights, data, records) for case in part.CASES]
