"""`portier doctor --probe ADDR`: which hop fails on the way to a host."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from collections.abc import Iterator
from typing import Any, Final

from portier.cli import complain, exits, text
from portier.core.doctor.filters import through
from portier.core.probe import Hop, State
from portier.system import firewall
from portier.system.control import ControlClient

_TIMEOUT: Final = 40.0  # seconds; a host has 8 to answer, pings take some
_HOPS: Final = {
    "route": [
        "port",
        "solicitation",
        "rule",
        "question",
        "host",
        "route",
        "advertisement",
        "forwarding",
        "way-back",
        "firewall",
        "ping",
        "answer",
    ],
    "relay": ["port", "solicitation", "rule", "question", "host", "advertisement", "ping", "answer"],
}


def run(options: argparse.Namespace) -> int:
    """Print how each hop fared; 0 none failed, 3 one did."""
    try:
        address = ipaddress.ip_address(options.probe)
    except ValueError:
        complain("doctor", f"{options.probe!r} is not an address, like 2001:db8::5")
        return exits.USAGE
    question = {"address": str(address)} | ({"on": options.on} if options.on is not None else {})
    answer: dict[str, Any] = ControlClient(options.runtime_dir, _TIMEOUT).post("/v1/probe", **question)
    hops = _with_firewall(answer, [Hop(**hop) for hop in answer["hops"]])
    failed = next((hop for hop in hops if hop.state == State.FAILED), None)
    if options.json:
        answer["works"] = failed is None
        answer["hops"] = [hop._asdict() for hop in hops]
        json.dump(answer, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(render(answer, hops, text.width())))
    return exits.DEGRADED if failed else exits.OK


def _with_firewall(answer: dict[str, Any], hops: list[Hop]) -> list[Hop]:
    """The hops with that of the packet filters, which the daemon does not read, in its place; none behind one
    that failed."""
    behind = {"ping", "answer"}
    before = [hop for hop in hops if hop.name not in behind]
    if answer["mode"] == "route" and answer["home"] and not any(hop.state == State.FAILED for hop in before):
        if answer["home"] != answer["port"]:
            before.append(_firewall(answer))
        if before[-1].state == State.FAILED:
            return before
    return [*before, *(hop for hop in hops if hop.name in behind)]


def _firewall(answer: dict[str, Any]) -> Hop:
    try:
        rules = firewall.read()
    except firewall.UnreadableError as error:
        return Hop("firewall", State.UNKNOWN, str(error))
    found, remedy = through(rules, answer["port"], answer["home"], answer["address"], answer["router"])
    if found.dropped:
        return Hop("firewall", State.FAILED, f"packets are dropped by {found.place}", remedy)
    if found.dropped is None:
        return Hop("firewall", State.UNKNOWN, f"it depends on more than can be told: {found.place}")
    return Hop("firewall", State.OK, "no packet filter drops the packet or its answer")


def render(answer: dict[str, Any], hops: list[Hop], columns: int) -> Iterator[str]:
    """A line for each hop; then what is wrong, and what to do."""
    hops = [Hop._make(text.clean(part) for part in hop) for hop in hops]
    made = {hop.name: hop for hop in hops}
    for name in _HOPS[answer["mode"]]:
        hop = made.get(name)
        if hop is not None:
            yield from text.wrap(f"{name:14} {hop.state:8} {hop.text}", columns, hang=24)
    failed = next((hop for hop in hops if hop.state == State.FAILED), None)
    yield ""
    if failed is None:
        yield f"{answer['address']} is reached"
        return
    yield from text.wrap(f"! {answer['address']} is not reached: {failed.name}: {failed.text}", columns)
    if failed.remedy:
        yield f"    do:   {failed.remedy}"
