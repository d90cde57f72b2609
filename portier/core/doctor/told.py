"""Checks that pass on what the daemon warns of anyway, or would warn of if it ran, which is decided in one
place (portier.core.plan and what it calls, portier.daemon).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from portier.core.doctor.facts import Daemon, Facts, known, running
from portier.core.doctor.finding import Check, Finding, note, problem, warning

_MANY: Final = 500  # hosts; a kernel as it comes keeps 1,024 neighbors


def passed_on(
    facts: Facts, check: str, remedy: str = "", make_warning: Callable[..., Finding] = warning
) -> Iterator[Finding]:
    """What is told under the name of a check; ``remedy`` is for what names no command itself, and
    ``make_warning`` for warnings that are less here."""
    where = "portier status" if isinstance(facts.daemon, Daemon) else f"portier check -c {facts.config_file}"
    for told in known(facts.told):
        if told.check == check:
            make = problem if told.problem else make_warning
            subject = f"group {told.group}" if told.group else "portier"
            yield make(subject, told.finding, f"`{where}` says so too", told.remedy or remedy)


def _kernel_neighbors(facts: Facts) -> Iterator[Finding]:
    """Fewer than allowed are those of every machine as it comes, which harms nobody before there are hosts
    to fill them."""
    many = isinstance(facts.hosts, tuple) and len(facts.hosts) >= _MANY
    return passed_on(facts, "kernel-neighbors", make_warning=warning if many else note)


def _any_time(name: str, looks_for: str, remedy: str = "") -> Check:
    """A check of what follows from the configuration and the machine alone."""

    def find(facts: Facts) -> Iterator[Finding]:
        yield from passed_on(facts, name, remedy)

    return Check(name, looks_for, find)


def _running(name: str, looks_for: str, remedy: str = "") -> Check:
    """A check of what only a daemon that runs can know."""

    def find(facts: Facts) -> Iterator[Finding]:
        running(facts)
        yield from passed_on(facts, name, remedy)

    return Check(name, looks_for, find)


_ROUTE: Final = "ip route add ADDRESS dev PORT"

CHECKS: Final = (
    _any_time(
        "upstream",
        "each group has a usable upstream",
        "bring it up (`ip link set NAME up`), or correct `upstream` of the group",
    ),
    _any_time(
        "ipv4-address",
        "there is an IPv4 address to ask from",
        "ip addr add ADDRESS dev PORT, with an address of the hosts' subnet",
    ),
    _any_time(
        "upstream-prefix",
        "`upstream` stands for some prefix",
        "give the upstream an address with its prefix length, or name the prefix under `prefixes`",
    ),
    _any_time("kernel-answers", "what the kernel is to answer for has a route", _ROUTE),
    _any_time(
        "always-overlap",
        "no `always` covers addresses of hosts upstream",
        "use `answer: resolve`, or `always` for the single addresses of hosts behind",
    ),
    _any_time("routes-off", "with `routes: false` the kernel's own routes do", _ROUTE),
    _any_time("routing-table", "a rule leads to each table that host routes are in"),
    _any_time(
        "group-tables",
        "the tables of `scope: group` have an effect",
        "ip -6 rule list",
    ),
    _any_time("rp-filter", "the reverse-path filter lets IPv4 through"),
    _any_time("proxy-arp", "the kernel answers no ARP by itself"),
    Check("kernel-neighbors", "the kernel keeps as many neighbors as `limits.neighbors`", _kernel_neighbors),
    _running("sysctls", "`sysctls: check` misses none"),
    _running("steps", "nothing that the daemon wants of the kernel fails", "journalctl -u portier"),
    _running("metrics", "metrics are served where they should be", "ss -tlnp"),
    _running("hold-down", "no port is in hold-down"),
    _running("table-full", "no table is full", "raise `limits.neighbors` of the group"),
    _running(
        "multicast-groups",
        "all multicast groups are joined",
        "use `multicast: router` in the group, or turn off snooping on the switch",
    ),
    _running("dhcpv6", "no relayed router promises DHCPv6 that is not relayed", "use `mode: relay`"),
    _running(
        "router-prefix",
        "what relayed routers announce as on-link is allowed",
        "add `upstream` to the prefixes of the group",
    ),
    _running(
        "router-dns",
        "the name servers that relayed routers tell are reachable behind",
        "use `mode: relay`, or have the router name a global address",
    ),
)
