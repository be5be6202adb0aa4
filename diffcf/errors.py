"""The errors diffcf raises on purpose, each with the exit code that the command line ends with.

A message says what came, what was expected and what to do about it.
"""

from __future__ import annotations


class DiffcfError(Exception):
    """Anything diffcf refuses; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(DiffcfError):
    """A setting, an argument or a combination of them that cannot be meant."""

    exit_code = 2


class ScanError(DiffcfError):
    """A scan that cannot be read without guessing; names the file, and the tag or field."""

    exit_code = 3


class CheckpointError(DiffcfError):
    """Weights or a card that are missing, do not fit or would have to be unpickled."""

    exit_code = 4


class ConvergenceError(DiffcfError):
    """A computation that left the finite numbers, or a training that has collapsed and would be of no use."""

    exit_code = 5


def of_the_system(error: OSError) -> tuple[str, int]:
    """What the operating system refuses (permissions, a full disk), in one line, and the exit code."""
    names = [str(name) for name in (error.filename, error.filename2) if name]
    said = f"{error.strerror or error}: {', '.join(names)}" if names else str(error.strerror or error)
    if isinstance(error, PermissionError):
        return f"{said}. Give a file or folder that you may use.", ConfigError.exit_code
    return f"{said}.", DiffcfError.exit_code


# Exit codes of `diffcf explain` when the explanation was written but must not be taken at face value.
EXIT_TRUST = 10  # a trust check failed
EXIT_OUT_OF_DISTRIBUTION = 11  # the scan is unlike what the generator was trained on
EXIT_NOT_REACHABLE = 12  # the search did not reach the asked score
