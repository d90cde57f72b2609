"""What `portier doctor` judges by: facts about the daemon, the configuration and the machine, as values.

They are gathered elsewhere (`portier.system.inspect`, `portier.cli.doctor`).  What could not be found out is
an `Unknown`, with the reason; a check gets at a fact by `known`, and is not made where it is an `Unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from portier.core.firewall import Ruleset
from portier.core.model import Bound, Config, KernelRoute, Network, Snapshot
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


class Told(NamedTuple):
    """What the daemon warns of anyway, or would: ``check`` is the check that passes it on."""

    check: str
    problem: bool
    group: str
    finding: str
    remedy: str = ""


class Refusal(NamedTuple):
    """A target that somebody asked for and the rules refuse; see `portier.core.notes.Refused`.
    Addresses are as people write them."""

    target: str
    port: str
    asker: str
    mac: str
    verdict: str
    again: int


class Dispute(NamedTuple):
    """An address that two say they have; see `portier.core.notes.Contested`.  ``mac`` is "" where it is the
    proxy itself that has it."""

    address: str
    port: str
    mac: str
    rival_port: str
    rival_mac: str


class Work(NamedTuple):
    """What a group's worker has seen since it began.  ``counters`` are frames by port and verdict; ``asked``
    the versions of IP, by port, in which somebody asked for an allowed address; ``drops`` frames lost by
    port; ``restarts`` how often it was begun anew, and ``error`` the last reason."""

    counters: Mapping[str, Mapping[str, int]]
    asked: Mapping[str, tuple[int, ...]]
    refused: tuple[Refusal, ...]
    contested: tuple[Dispute, ...]
    drops: Mapping[str, int]
    restarts: int = 0
    error: str = ""


class Daemon(NamedTuple):
    """The running daemon, by its own account.  ``uptime`` is in seconds; ``file`` its configuration;
    ``refused`` are the problems of the one on disk, and ``differs`` says that it is good and not applied;
    ``work`` is by group."""

    pid: int
    uptime: float
    file: str
    refused: tuple[str, ...] = ()
    differs: bool = False
    work: Mapping[str, Work] = {}


class Setup(NamedTuple):
    """The configuration tied to the links that there are: how each group stands, and the ports it has.
    ``bounds`` are by group, and only of those that have ports."""

    reports: tuple[GroupReport, ...]
    bounds: Mapping[str, Bound]


class Host(NamedTuple):
    """A host that the daemon knows behind a downstream.  ``state`` is that of its host route by the daemon's
    word; ``way`` the interface by which the kernel's best route for it leaves, "" where there is none but the
    default route; ``asked`` the command that shows the same; ``best`` that route, where it leads astray."""

    address: str
    group: str
    port: str
    state: str
    way: str
    asked: str
    best: KernelRoute | None = None


class Barrier(NamedTuple):
    """A route that ends in nothing: ``kind`` is blackhole, unreachable or prohibit."""

    network: Network
    kind: str
    table: int


class Proxy(NamedTuple):
    """Another program that answers for others.  ``ports`` are the interfaces (by index) that it listens on, 0
    for all."""

    name: str
    pid: int
    ports: frozenset[int]


class Member(NamedTuple):
    """A member of a bridge.  ``peer`` is the interface (by index) at the other end of its cable, 0 where that
    is not here; ``snoops`` says that the bridge does (MLD), ``floods`` that multicast goes out of the member
    without a membership, and ``suppress`` that the bridge answers in the place of who is asked for."""

    ifindex: int
    name: str
    bridge: int
    bridge_name: str
    peer: int
    snoops: bool
    floods: bool
    suppress: bool


class Networkd(NamedTuple):
    """systemd-networkd, which runs here.  ``routes`` and ``rules`` say whether it removes those that others
    made; ``unmanaged`` are the interfaces (by index) that it leaves alone."""

    routes: bool
    rules: bool
    unmanaged: frozenset[int]


_NOT_SOUGHT: Final = Unknown("it was not looked at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the checks go by.

    ``mute`` says of a daemon that does not answer who it is and why.
    ``problems`` is what is wrong with the configuration on disk, and ``unreadable`` are the files of it that
    the service cannot read.  ``daemon`` is None where none runs;
    ``told`` what it warns of, or would if it ran; ``lacking`` the capabilities it does not have; ``hosts``
    those it knows behind downstreams, the first of many.  ``snapshot`` is the kernel as it is, with all
    routes; ``sysctls`` are values by path below /proc/sys, of those that no snapshot shows.  ``networkd`` is
    None where it does not run.  ``ruleset`` are the packet filters, ``proxies`` other proxies
    that run here, ``members`` those of bridges.
    """

    config_file: str = ""
    mute: str = ""
    problems: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    daemon: Daemon | Unknown | None = _NOT_SOUGHT
    told: tuple[Told, ...] | Unknown = _NOT_SOUGHT
    lacking: tuple[str, ...] | Unknown = _NOT_SOUGHT
    hosts: tuple[Host, ...] | Unknown = _NOT_SOUGHT
    barriers: tuple[Barrier, ...] | Unknown = _NOT_SOUGHT
    networkd: Networkd | Unknown | None = _NOT_SOUGHT
    config: Config | Unknown = _NOT_SOUGHT
    snapshot: Snapshot | Unknown = _NOT_SOUGHT
    setup: Setup | Unknown = _NOT_SOUGHT
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ruleset: Ruleset | Unknown = _NOT_SOUGHT
    proxies: tuple[Proxy, ...] | Unknown = _NOT_SOUGHT
    members: tuple[Member, ...] | Unknown = _NOT_SOUGHT


def running(facts: Facts) -> Daemon:
    """The daemon, where one runs."""
    daemon = known(facts.daemon)
    if daemon is None:
        raise CannotTellError("no daemon runs")
    return daemon
