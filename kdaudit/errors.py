"""Every way kdaudit stops early, and the exit code that goes with it.

KdauditError                2  base: catch this one
├── UsageError              2  an option, a setting or a combination of them makes no sense
├── DataError               2  a data set is missing, empty or of a kind that kdaudit does not read
├── ModelRefused            2  the model was not admitted; carries a stable rule id
├── RunDirectoryError       2  the run directory cannot be used
└── Inconclusive            3  the question was fair and cannot be answered
    └── DeviceMissing       3  a demanded device or provider is not there

A message is one sentence for a tired reader: what, where, what to do. Exit code 0 is a passed gate,
1 a failed gate, 130 an interrupted run; none of these is an error. docs/exit-codes.md has the table.
"""

from enum import IntEnum


class Exit(IntEnum):
    """The process's exit codes; they do not depend on the output format."""

    PASSED = 0
    FAILED = 1
    ERROR = 2
    INCONCLUSIVE = 3
    INTERRUPTED = 130


class KdauditError(Exception):
    """Base of all errors that kdaudit raises on purpose; its text is shown to the user as it is."""

    exit_code: Exit = Exit.ERROR


class UsageError(KdauditError):
    """An option, a setting, or a combination of them makes no sense."""


class DataError(KdauditError):
    """A data set is missing, empty, or of a kind that kdaudit does not read."""


class ModelRefused(KdauditError):
    """The model was not admitted.

    Attributes:
        rule: stable rule id, such as ``KDA011``; never reused for another reason.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{message} [{rule}]")
        self.rule = rule


class RunDirectoryError(KdauditError):
    """The run directory cannot be created, belongs to another model, or is unfinished."""


class Inconclusive(KdauditError):
    """The question was fair and cannot be answered with this control, data or calibration set."""

    exit_code = Exit.INCONCLUSIVE


class DeviceMissing(Inconclusive):
    """A demanded device or execution provider is not there."""
