"""Wrong inputs as data: the command line, its files, and what the error line must contain."""

from tests.wrong_inputs import command_lines, data, records, settings, weights

CASES = [case for part in (settings, command_lines, weights, data, records) for case in part.CASES]
