"""What `portier doctor` judges by: facts about the daemon, the configuration and the machine, as values.

They are gathered elsewhere (`portier.system.inspect`, `portier.cli.doctor`).  What could not be found out is
an `Unknown`, with the reason; a check gets at a fact by `known`, and is not made where it is an `Unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from portier.core.firewall import Ruleset
from portier.core.model import Bound, Config, Snapshot
from portier.core.plan import GroupReport

T = TypeVar("T")


class Unknown(NamedTuple):
    """Stands for a fact that could not be found out."""

    why: str


class CannotTellError(Exception):
    """A fact that a check needs is unknown."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


def known(fact: T | Unknown) -> T:
    """The fact, where it is known."""
    if isinstance(fact, Unknown):
        raise CannotTellError(fact.why)
    return fact


class Daemon(NamedTuple):
    """The running daemon, by its own account.  ``file`` is its configuration; ``refused`` are the problems
    of the one on disk, and ``differs`` says that it is good and not applied."""

    pid: int
    uptime: float
    file: str
    refused: tuple[str, ...]
    differs: bool


class Setup(NamedTuple):
    """The configuration tied to the links that there are: how each group stands, and the ports it has.
    ``bounds`` are by group, and only of those that have ports."""

    reports: tuple[GroupReport, ...]
    bounds: Mapping[str, Bound]


_NOT_SOUGHT: Final = Unknown("it was not looked at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the checks go by.

    ``daemon`` is None where none runs.  ``config`` is the configuration on disk, ``problems`` what is wrong
    with it.  ``snapshot`` is the kernel as it is, with all routes; ``sysctls`` are values by path below
    /proc/sys, of those that no snapshot shows.  ``ruleset`` are the packet filters.
    """

    config_file: str = ""
    problems: tuple[str, ...] = ()
    daemon: Daemon | Unknown | None = _NOT_SOUGHT
    config: Config | Unknown = _NOT_SOUGHT
    snapshot: Snapshot | Unknown = _NOT_SOUGHT
    setup: Setup | Unknown = _NOT_SOUGHT
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ruleset: Ruleset | Unknown = _NOT_SOUGHT


def running(facts: Facts) -> Daemon:
    """The daemon, where one runs."""
    daemon = known(facts.daemon)
    if daemon is None:
        raise CannotTellError("no daemon runs")
    return daemon
