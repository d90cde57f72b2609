"""Checks of what is around the ports on this machine: other proxies, and bridges that keep multicast back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from portier.core.doctor.facts import Facts, known
from portier.core.doctor.finding import Check, Finding, problem, warning


def _names(facts: Facts) -> dict[int, str]:
    """The ports of all groups, by index."""
    return {port.ifindex: port.name for bound in known(facts.setup).bounds.values() for port in bound.ports}


def _other_proxy(facts: Facts) -> Iterator[Finding]:
    ports = _names(facts)
    for rival in known(facts.proxies):
        here = sorted(ports.values() if 0 in rival.ports else {ports[i] for i in rival.ports & ports.keys()})
        if here:
            yield problem(
                ", ".join(here),
                f"{rival.name} is a proxy too and listens there: two answer, each by rules of its own",
                f"process {rival.pid} has packet sockets there",
                f"kill {rival.pid}  # and keep it from starting: systemctl disable --now {rival.name}",
            )


def _bridges(facts: Facts) -> Iterator[Finding]:
    ports = _names(facts)
    for member in known(facts.members):
        name = ports.get(member.peer) or ports.get(member.bridge)
        if name is None:
            continue
        if member.suppress:
            yield warning(
                name,
                f"bridge {member.bridge_name} answers ARP and Neighbor Discovery itself (neigh_suppress) and "
                f"keeps questions from {member.name}",
                f"neigh_suppress on, on {member.name}",
                f"bridge link set dev {member.name} neigh_suppress off",
            )
        # What a bridge's own host says is flooded in any case (Linux br_flood).
        if member.floods or member.peer not in ports:
            continue
        what = "solicitations for hosts that are not known yet" if member.snoops else "all solicitations"
        yield (warning if member.snoops else problem)(
            name,
            f"bridge {member.bridge_name} keeps {what} from it",
            f"mcast_flood off on {member.name}, mcast_snooping {'on' if member.snoops else 'off'}",
            f"bridge link set dev {member.name} mcast_flood on",
        )


CHECKS: Final = (
    Check("other-proxy", "no other proxy listens on the ports", _other_proxy),
    Check("bridge-multicast", "no bridge on this machine keeps solicitations from a port", _bridges),
)
