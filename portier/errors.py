"""The errors that one part of Portier raises and another tells the user about.

They are sorted by whose move it is: `ConfigError` asks for an edit, `Refused` for a different command or
more rights, `KernelError` says that the kernel did not do what it was asked.  Whatever else is raised is
a bug.  Each of them makes one line that a user may read; nothing here prints or exits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_LONGEST_LINE = 1000  # characters; a message may quote a value, and a value may be anything


def printable(said: str) -> str:
    """The same without anything that does more to a terminal than to show: each such character as ``ascii``
    would have it."""
    if said.isprintable():
        return said
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in said)


class Problem(NamedTuple):
    """One thing to edit.  ``line`` and ``column`` count from 1, and are 0 where the place is the file as
    a whole; ``path`` is like ``groups.guests.prefixes[1]``, empty for the top.  Sorting problems puts
    them in the order in which an editor meets them.  As text it is one line, whatever the file holds."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        line = f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"
        return printable(line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}...")


class PortierError(Exception):
    """Anything that is told to the user as one line (or one a problem), without a traceback."""


class ConfigError(PortierError):
    """The configuration cannot be used; ``problems`` are all that was found, sorted, never empty."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(set(problems)))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class KernelError(PortierError):
    """The kernel refused.  The message names the operation and the errno's text; ``errno`` is positive,
    0 where the failure has none."""

    def __init__(self, operation: str, reason: str, errno: int = 0) -> None:
        self.operation = operation
        self.reason = reason
        self.errno = errno
        super().__init__(operation, reason, errno)

    def __str__(self) -> str:
        return f"{self.operation}: {self.reason}"


class Refused(PortierError):  # noqa: N818  (a refusal is what it is, and reads so)
    """Portier will not do what it was asked, as things are: another daemon runs, rights are missing.
    ``exit_code`` is what a command that ends for it returns."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message, exit_code)

    def __str__(self) -> str:
        return str(self.args[0])
