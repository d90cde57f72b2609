"""`portier status`: is all well, and if not, what is wrong; then the groups.

Renders what the daemon says of itself and judges nothing but ``--strict``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from portier.cli import exits, text
from portier.system.control import ControlClient

_PORTS_SHOWN = 16  # of those in good order; the others are all shown
_EVENTS_SHOWN = 5


def run(options: argparse.Namespace) -> int:
    """Print the status; 0 healthy, 3 degraded."""
    status = ControlClient(options.runtime_dir).get("/v1/status")
    waiting = _waiting(status) if options.strict else []
    if options.json:
        json.dump(status, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(render(status, text.width(), waiting)))
    return exits.OK if status["healthy"] and not waiting else exits.DEGRADED


def _waiting(status: dict[str, Any]) -> list[str]:
    """The ports that are not in use, as problems; but for those that the daemon names as such itself."""
    lines = [
        f"group {group['name']}: {port['name']} is {_state(port)}: {_why(port) or 'not there yet'}"
        for group in status["groups"]
        for port in group["ports"]
        if not _in_service(port) and _state(port) != "hold-down"
    ]
    return [line for line in lines if line not in status["problems"]]


def render(status: dict[str, Any], columns: int, waiting: list[str]) -> Iterator[str]:
    """The status as lines of at most ``columns`` where that can be; problems first."""
    problems = [*status["problems"], *waiting]
    if status["healthy"] and not problems:
        yield "portier is healthy"
    else:
        yield f"portier is degraded: {text.plural(max(len(problems), 1), 'problem')}"
    for problem in problems:
        yield from text.wrap(f"! {problem}", columns)
    yield from _config(status, columns)
    for group in status["groups"]:
        yield ""
        yield from _group(group, columns)
    events = [f"{event['kind']}: {event['text']}" for event in status["events"][-_EVENTS_SHOWN:]]
    yield from _section("still to do", status["reconcile"]["pending_steps"], columns)
    yield from _section("last events", events, columns)
    yield from _section("warnings about the configuration", status["config"]["warnings"], columns)


def _config(status: dict[str, Any], columns: int) -> Iterator[str]:
    config = status["config"]
    yield f"process {status['pid']}, up {text.span(status['uptime'])}"
    yield from text.wrap(
        f"{config['file']}, generation {config['generation']}, loaded {text.span(config['age'])} ago", columns
    )
    if config["differs"] and not config["error"]:
        yield from text.wrap("the file has changed since: apply it with `portier reload`", columns)


def _group(group: dict[str, Any], columns: int) -> Iterator[str]:
    upstream = group["upstream"]
    if not upstream["candidates"]:
        said = "no upstream"
    else:
        said = f"upstream {upstream['active'] or 'none'}"
        if upstream["candidates"] != [upstream["active"]]:
            said += f" of {', '.join(upstream['candidates'])}"
    yield from text.wrap(f"group {group['name']}: {group['mode']}, {said}", columns)
    yield from _ports(group["ports"], columns)
    live = [
        live["prefix"]
        + (f" (gone, {text.span(live['grace_left'])} of grace left)" if live["grace_left"] else "")
        for live in group["live"]
    ]
    yield from text.wrap(
        ", ".join(
            [
                *([] if group["mode"] == "relay" else [text.plural(group["rules"], "rule")]),
                text.plural(group["neighbors"], "neighbor"),
                f"{group['pending']} pending",
                *([f"IPv4: {group['ipv4']}"] if group["ipv4"] else []),
            ]
        ),
        columns,
        indent=2,
    )
    multicast = group["multicast"]
    if multicast["use"] == "router":
        yield "  multicast: advertised as a router (RFC 4286)"
    elif group["mode"] == "route":
        said = f"multicast: {text.plural(multicast['members'], 'group')} joined"
        if multicast["drawn"]:
            said += f"; too many for {', '.join(multicast['drawn'])}: advertised as a router there (RFC 4286)"
        yield from text.wrap(said, columns, indent=2)
    if group["table"]:
        alone = f", {group['uplink_table']} for what downstreams send" if group["uplink_table"] else ""
        yield from text.wrap(f"routing table {group['table']}{alone}", columns, indent=2)
    if live:
        yield from text.wrap(f"upstream prefixes: {', '.join(live)}", columns, indent=2)
    for router in group["routers"]:
        lifetime = router["lifetime"]
        left = f"default router for {text.span(lifetime)} more" if lifetime else "no default router"
        said = f"router {router['address']} on {router['port']}: {left}"
        yield from text.wrap(said, columns, indent=2)
    worker = group["worker"]
    if worker["state"] != "running" or worker["restarts"]:
        restarts = f", {text.plural(worker['restarts'], 'restart')}" if worker["restarts"] else ""
        error = f": {worker['error']}" if worker["error"] else ""
        yield from text.wrap(f"worker: {worker['state']}{restarts}{error}", columns, indent=2)
    for port, counts in group["counters"].items():
        if counts:
            most = sorted(counts.items(), key=lambda item: -item[1])
            said = ", ".join(f"{count} {verdict}" for verdict, count in most)
            yield from text.wrap(f"{port}: {said}", columns, indent=2)
    for warning in group["warnings"]:
        yield from text.wrap(f"warning: {warning}", columns, indent=2)


def _ports(ports: list[dict[str, Any]], columns: int) -> Iterator[str]:
    good = [port for port in ports if _in_service(port)]
    shown = [port for port in ports if not _in_service(port)] + good[:_PORTS_SHOWN]
    rows = [("port", "role", "state", "speaks from", "link-layer", "drops", "why")]
    rows += [
        (
            port["name"],
            port["role"],
            _state(port),
            port["source"] or "",
            port["mac"] or "",
            str(port["drops"]) if port["drops"] else "",
            _why(port),
        )
        for port in shown
    ]
    if shown:
        yield from text.table(rows, columns, indent=2)
    if len(good) > _PORTS_SHOWN:
        yield f"  and {len(good) - _PORTS_SHOWN} more, all active"


def _in_service(port: dict[str, Any]) -> bool:
    return port["state"] == "active" and (port["relay"] is None or port["relay"]["service"] == "forwarding")


def _state(port: dict[str, Any]) -> str:
    relay = port["relay"] if port["state"] == "active" else None
    return str(relay["service"] if relay else port["state"])


def _why(port: dict[str, Any]) -> str:
    """What is to be said of a port's state: of a hold-down also how long it lasts."""
    relay = port["relay"] if port["state"] == "active" else None
    said = [port["reason"]]
    if relay:
        left = f"{text.span(relay['left'])} left" if relay["left"] is not None else ""
        said += [relay["reason"], left]
    return "; ".join(filter(None, said))


def _section(title: str, lines: list[str], columns: int) -> Iterator[str]:
    if lines:
        yield ""
        yield title
        for line in lines:
            yield from text.wrap(line, columns, indent=2)
