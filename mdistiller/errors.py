"""The two ways a run can end badly: the user can fix it, or the run failed."""


class UserError(ValueError):
    """Something the user can put right: a wrong key, value, name, file or missing data (exit code 2).

    The message is one line: the file and key, the value found, what was expected, and the nearest valid name or the
    command that helps.
    """


class RunError(RuntimeError):
    """A run that cannot go on, such as a non-finite loss (exit code 3). What was saved before stays intact."""
