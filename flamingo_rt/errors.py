"""The errors this project raises for a reason the user can act on.

Each message says what is wrong, with which value, and what to do. The command line turns them into one line
on stderr and the exit code below; anything else that escapes is a bug.
"""


class FlamingoError(Exception):
    """Base of every error with a remedy. ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(FlamingoError):
    """The caller asked for something that does not exist or cannot be combined: an option, a preset, a backend."""

    exit_code = 2


class DataError(FlamingoError):
    """A file, picture, prompt, checkpoint or bundle that cannot be used as it is."""


class ParityError(FlamingoError):
    """An exported graph does not compute what the PyTorch model computes."""


class DependencyError(FlamingoError):
    """An optional library is missing; the message names the extra that installs it."""
