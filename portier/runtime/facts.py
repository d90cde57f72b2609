"""What there is to say of a group's ports, routers and switches, for `portier status`: plain data, and words
for people.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator
from ipaddress import IPv6Network
from typing import Any

from portier.core.engine import RouterInfo, Standing, link_local
from portier.core.histogram import Tally
from portier.core.mld import NOTHING_JOINED
from portier.core.model import Group, Live, Notice
from portier.core.notes import Noted
from portier.core.outcome import Verdict
from portier.core.plan import GroupReport, PortReport
from portier.runtime.supervisor import GroupStatus


def port_facts(port: PortReport, worker: GroupStatus | None, tally: Tally | None) -> dict[str, Any]:
    """A port of a group; the worker, where one runs, knows what part it takes, and what came of it."""
    state, reason = port.state, port.reason
    if worker is not None and (fault := worker.wires.faults.get(port.name)) is not None:
        state, reason = "waiting", fault
    standing = standing_of(port, worker)
    return {
        "name": port.name,
        "role": port.role.value,
        "state": state,
        "reason": reason,
        "index": port.ifindex,
        "mac": port.mac.hex(":") if port.mac else None,
        "source": _text(port.source),
        "source4": _text(port.source4),
        "drops": worker.wires.drops.get(port.name, 0) if worker else 0,
        "answers": answers(port.name, worker, tally),
        "relay": relay_facts(standing) if standing else None,
    }


def answers(port: str, worker: GroupStatus | None, tally: Tally | None) -> int:
    """How many answers went out by a port: at once, in defence of an address, and as soon as the target was
    found."""
    counts = worker.counters.get(port, {}) if worker else {}
    late = tally.late.get(port, 0) if tally else 0
    return sum(counts.get(verdict.label, 0) for verdict in (Verdict.ANSWERED, Verdict.DEFENDED)) + late


def _text(address: bytes | None) -> str | None:
    return str(ipaddress.ip_address(address)) if address else None


def standing_of(port: PortReport, worker: GroupStatus | None) -> Standing | None:
    """The part that a port takes in mode relay, None where it takes none."""
    standings = worker.standings if worker is not None else ()
    return next((standing for standing in standings if standing.ifindex == port.ifindex), None)


def relay_facts(standing: Standing) -> dict[str, Any]:
    """The part that a port takes in mode relay."""
    return {
        "service": standing.service.value,
        "reason": standing.reason,
        "offender": _text(standing.offender),
        "mac": standing.mac.hex(":") if standing.mac else None,
        "left": standing.left if standing.left < math.inf else None,
    }


def multicast_facts(group: Group, worker: GroupStatus | None) -> dict[str, Any]:
    """How solicitations are drawn through switches that snoop."""
    joined = worker.wires.joined if worker else NOTHING_JOINED
    drawn = list(worker.wires.drawn) if worker else []
    return {"use": group.multicast.value, **joined._asdict(), "drawn": drawn}


def missed(router: RouterInfo, of: GroupReport) -> Iterator[Notice]:
    """What a router promises, and hosts behind do not get where its advertisements are relayed."""
    who = f"the router {ipaddress.ip_address(router.address)} on {router.port}"
    if router.managed or router.other:
        flag, what = ("M", "address") if router.managed else ("O", "settings")
        yield Notice(
            "dhcpv6",
            f"{who} promises DHCPv6 (flag {flag}), which is not relayed in mode route: hosts behind get no "
            f"{what} by it; use mode: relay, or a DHCPv6 relay or server on the downstreams",
        )
    allowed = [rule.prefix for rule in of.group.rules if rule.allow and isinstance(rule.prefix, IPv6Network)]
    if any(rule.prefix is Live.UPSTREAM for rule in of.group.rules):
        allowed += [live.prefix for live in of.live if isinstance(live.prefix, IPv6Network)]
    for network in sorted(router.on_link):
        if not any(network.overlaps(prefix) for prefix in allowed):
            yield Notice(
                "router-prefix",
                f"{who} tells hosts that {network} is theirs to use, but no rule allows it: their addresses "
                "in it are not answered for; add `upstream` to the prefixes",
            )
    for server in router.name_servers:
        if link_local(server):
            yield Notice(
                "router-dns",
                f"{who} tells hosts to ask {ipaddress.ip_address(server)} for names, a link-local address, "
                "which hosts behind do not reach in mode route; have it name a global one, "
                "or use mode: relay",
            )


def router_facts(router: RouterInfo) -> dict[str, Any]:
    """A router whose advertisements are relayed."""
    return {
        "address": str(ipaddress.ip_address(router.address)),
        "port": router.port,
        "mac": router.mac.hex(":"),
        "lifetime": router.lifetime,
        "managed": router.managed,
        "other": router.other,
        "on_link": sorted(map(str, router.on_link)),
    }


def noted_facts(noted: Noted) -> dict[str, Any]:
    """What may tell why nothing happens: who asked for what in vain, and who disputes whose address."""
    return {
        "asked": {port: list(versions) for port, versions in noted.asked.items()},
        "refused": [
            {
                "target": str(ipaddress.ip_address(refused.target)),
                "port": refused.port,
                "asker": str(ipaddress.ip_address(refused.asker)),
                "mac": refused.mac.hex(":"),
                "verdict": refused.verdict.label,
                "again": refused.again,
                "age": refused.age,
            }
            for refused in noted.refused
        ],
        "contested": [
            {
                "address": str(ipaddress.ip_address(contested.address)),
                "port": contested.port,
                "mac": contested.mac.hex(":") if contested.mac else None,
                "rival_port": contested.rival_port,
                "rival_mac": contested.rival_mac.hex(":"),
                "age": contested.age,
            }
            for contested in noted.contested
        ],
    }


def notice_facts(severity: str, group: str, notice: Notice) -> dict[str, str]:
    """A notice for programs; ``group`` is the one it is about, or ""."""
    return {
        "severity": severity,
        "check": notice.check,
        "group": notice.group or group,
        "finding": notice.finding,
        "remedy": notice.remedy,
    }


def states(of: GroupReport) -> list[str]:
    """The ports that are not in use, each with the reason."""
    return [f"{port.name} is {port.state}: {port.reason}" for port in of.ports if port.state != "active"]
