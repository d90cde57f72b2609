"""Checks of the ports: that they are there, and can be spoken from."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final, NamedTuple

from portier.core.doctor.facts import Facts, Setup, known, running
from portier.core.doctor.finding import Check, Finding, problem, warning
from portier.core.doctor.told import passed_on
from portier.core.model import Link, Role
from portier.core.plan import GroupReport, PortReport


class _Named(NamedTuple):
    """An interface that a group names or matches, with its link where there is one."""

    group: GroupReport
    port: PortReport
    link: Link | None


def _ports_of(facts: Facts) -> Iterator[_Named]:
    setup, links = known(facts.setup), {link.ifindex: link for link in known(facts.snapshot).links}
    for of in setup.reports:
        for port in of.ports:
            yield _Named(of, port, links.get(port.ifindex))


_REMEDIES: Final = {
    "no such interface": "ip link show {name}",
    "down": "ip link set {name} up",
    "no carrier": "ethtool {name}",
    "no usable address": "ip addr add fe80::1/64 dev {name}",
}


def _states(facts: Facts) -> Iterator[Finding]:
    """What is named and not in use.  A glob need match nothing, what it matches may be down, and of upstream
    candidates one is enough."""
    yield from passed_on(facts, "ports", "name another interface: of a bridge, bond or team the master")
    coming = {address.ifindex for address in known(facts.snapshot).addresses if address.tentative}
    for of, port, _ in _ports_of(facts):
        off = facts.sysctls.get(f"net/ipv6/conf/{port.name}/disable_ipv6") == "1"  # that is said by itself
        mute = port.reason == "no usable address" and not off and port.ifindex not in coming
        named = port.role is Role.DOWNSTREAM and port.name in of.group.downstream
        if port.state == "conflict":
            yield problem(
                port.name,
                f"is no port of group {of.group.name}: {port.reason}",
                "an interface belongs to one group",
                "name it in one group only; different policies behind one uplink are rules with `downstream`",
            )
        elif port.state == "waiting" and (named or (mute and port.role is Role.DOWNSTREAM)):
            yield warning(
                port.name,
                f"group {of.group.name} waits for it",
                port.reason,
                _REMEDIES.get(port.reason, "").format(name=port.name),
            )


def _downstream(facts: Facts) -> Iterator[Finding]:
    for of in known(facts.setup).reports:
        behind = [port for port in of.ports if port.role is Role.DOWNSTREAM]
        if any(port.state == "active" for port in behind):
            continue
        wanted = " ".join(of.group.downstream)
        if not of.group.downstream:
            seen = "`downstream` is empty"
        elif behind:
            seen = ", ".join(f"{port.name}: {port.reason}" for port in behind)
        else:
            seen = f"no interface matches {wanted}"
        # A glob may match nothing, today.
        report = problem if behind or not wanted else warning
        yield report(
            f"group {of.group.name}",
            "there is no port behind, so there is nobody to answer for",
            seen,
            "ip -br link",
        )


def _ipv6_off(facts: Facts) -> Iterator[Finding]:
    for of, port, link in _ports_of(facts):
        path = f"net/ipv6/conf/{port.name}/disable_ipv6"
        needed = any(rule.version == 6 for rule in of.group.rules)
        if needed and link is not None and facts.sysctls.get(path) == "1":
            yield problem(
                port.name,
                "IPv6 is off there, so nothing can be heard, asked or routed",
                f"{_sysctl(path)} = 1",
                f"sysctl -w {_sysctl(path)}=0",
            )


def _sysctl(path: str) -> str:
    """The path as sysctl(8) takes it: a dot may belong to the name of an interface."""
    return path if "." in path else path.replace("/", ".")


def _duplicate_address(facts: Facts) -> Iterator[Finding]:
    snapshot = known(facts.snapshot)
    names = _names(known(facts.setup))
    for address in snapshot.addresses:
        if address.failed and address.ifindex in names:
            name, said = names[address.ifindex], ip_address(address.address)
            yield problem(
                name,
                f"another node has the address {said} already, so this machine cannot use it",
                f"{said} is dadfailed",
                f"ip addr del {said}/{address.prefix_length} dev {name}",
            )


def _names(setup: Setup) -> dict[int, str]:
    return {port.ifindex: port.name for of in setup.reports for port in of.ports if port.ifindex}


def _frames_lost(facts: Facts) -> Iterator[Finding]:
    for work in running(facts).work.values():
        for port, count in work.drops.items():
            if count:
                yield warning(
                    port,
                    "frames are lost because they come faster than they are judged",
                    f"{count} since the daemon began",
                    f"portier watch --packets --port {port}",
                )


CHECKS: Final = (
    Check("ports", "every interface that is named is in use", _states),
    Check("downstream", "each group has a port behind", _downstream),
    Check("ipv6-off", "IPv6 is on where it is proxied", _ipv6_off),
    Check("duplicate-address", "no address of the ports is used by another node", _duplicate_address),
    Check("frames-lost", "no frames are lost", _frames_lost),
)
