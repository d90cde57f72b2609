"""`portier status`: is all well, and if not, what is wrong; then the groups.

Renders what the daemon says of itself and judges nothing but ``--strict``.  On a terminal the page fits: what
is least needed goes first, and what is wrong never; where it is piped nothing is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from portier.cli import exits, picture, text
from portier.cli.ports import faulty, in_service, state, why
from portier.cli.text import BAD, BOLD, DOUBTFUL, FAINT, GOOD, PLAIN, Line
from portier.cli.verdicts import WHY
from portier.system.control import ControlClient

_ALL: Final = 1_000_000


class Detail(NamedTuple):
    """How much a page says: of ports in good order, questions in vain and events so many at most, and of what
    is only of interest when all is well whether at all."""

    ports: int
    refused: int
    events: int
    more: bool
    warnings: int


_FULL: Final = Detail(ports=_ALL, refused=16, events=10, more=True, warnings=_ALL)
_DETAILS: Final = (
    _FULL,
    Detail(ports=16, refused=4, events=5, more=True, warnings=4),
    Detail(ports=8, refused=3, events=3, more=True, warnings=2),
    Detail(ports=8, refused=3, events=3, more=False, warnings=2),
    Detail(ports=6, refused=2, events=0, more=False, warnings=1),
    Detail(ports=3, refused=1, events=0, more=False, warnings=0),
    Detail(ports=1, refused=1, events=0, more=False, warnings=0),
    Detail(ports=0, refused=0, events=0, more=False, warnings=0),
)

Rates = Mapping[tuple[str, str], "Traffic"]
"""What happens a second, by group and port."""


class Traffic(NamedTuple):
    """What came of the frames of a port."""

    answered: float
    relayed: float
    dropped: float

    def since(self, before: Traffic, seconds: float) -> Traffic:
        """The difference to an earlier time, a second."""
        return Traffic(*((now - then) / seconds for now, then in zip(self, before, strict=True)))


def run(options: argparse.Namespace) -> int:
    """Print the status; 0 healthy, 3 degraded."""
    client = ControlClient(options.runtime_dir)
    status = client.get("/v1/status")
    missing = waiting(status) if options.strict else []
    if options.json:
        json.dump(status, sys.stdout, indent=2)
        print()
    elif options.format == "text":
        colours = text.colours()
        for line in page(text.clean(status), text.width(), text.height(), text.clean(missing)):
            print(line.painted(colours=colours))
    else:
        hosts = client.get("/v1/neighbors")["neighbors"]
        draw = picture.dot if options.format == "dot" else picture.svg
        sys.stdout.write(draw(text.clean(status), text.clean(hosts)))
    return exits.OK if status["healthy"] and not missing else exits.DEGRADED


def waiting(status: dict[str, Any]) -> list[str]:
    """The ports that are not in use, as problems; but for those that the daemon names as such itself."""
    lines = [
        f"group {group['name']}: {port['name']} is {state(port)}: {why(port) or 'not there yet'}"
        for group in status["groups"]
        for port in group["ports"]
        if not in_service(port) and state(port) != "hold-down"
    ]
    return [line for line in lines if line not in status["problems"]]


def page(
    status: dict[str, Any],
    columns: int,
    rows: int,
    waiting: Iterable[str] = (),
    rates: Rates | None = None,
) -> list[Line]:
    """The status in at most so many lines of at most so many columns, problems first.  ``status`` is `clean`;
    ``waiting`` are more problems; with ``rates`` it tells what happens a second, too."""
    problems = [*status["problems"], *waiting]
    lines: list[Line] = []
    for detail in _DETAILS:
        lines = list(_render(status, columns, problems, rates, detail))
        if len(lines) <= rows:
            break
    else:
        left = len(lines) - rows + 1
        lines[rows - 1 :] = [Line(f"... {left} more lines: pipe it into less", FAINT)]
    return [line._replace(text=line.text[:columns]) for line in lines]


def _render(
    status: dict[str, Any], columns: int, problems: list[str], rates: Rates | None, detail: Detail
) -> Iterator[Line]:
    if problems or not status["healthy"]:
        yield Line(f"portier is degraded: {text.plural(max(len(problems), 1), 'problem')}", f"{BOLD};{BAD}")
    else:
        yield Line("portier is healthy", f"{BOLD};{GOOD}")
    for problem in problems:
        yield from _wrap(f"! {problem}", columns, BAD)
    for doubt in _idle(status):
        yield from _wrap(f"? {doubt}", columns, DOUBTFUL)
    yield from _config(status, columns)
    in_trouble = {notice["group"] for notice in status["notices"] if notice["severity"] == "problem"}
    groups = sorted(status["groups"], key=lambda group: group["name"] not in in_trouble)
    for group in groups:
        if detail.ports or group["name"] in in_trouble:
            yield Line("")
        yield from _group(group, columns, rates, detail)
    yield from _section("still to do", status["reconcile"]["pending_steps"], columns, _ALL, DOUBTFUL)
    events = [f"{_clock(event['time'])} {event['kind']}: {event['text']}" for event in status["events"]]
    yield from _section("last events", events[-detail.events :], columns, detail.events)
    warnings = status["config"]["warnings"]
    yield from _section("warnings about the configuration", warnings, columns, detail.warnings, DOUBTFUL)


def _idle(status: dict[str, Any]) -> Iterator[str]:
    """The groups of which no port behind is in use.  That is as it should be before containers start, and is
    what a misspelt interface looks like."""
    for group in status["groups"]:
        behind = [port for port in group["ports"] if port["role"] == "downstream"]
        if behind and not any(map(in_service, behind)):
            said = [f"{port['name']}: {why(port) or state(port)}" for port in behind[:3]]
            said += [f"{len(behind) - 3} more"] if len(behind) > 3 else []
            yield f"group {group['name']}: no port behind is in use ({', '.join(said)})"


def _config(status: dict[str, Any], columns: int) -> Iterator[Line]:
    config = status["config"]
    yield Line(f"process {status['pid']}, up {text.span(status['uptime'])}")
    yield from _wrap(
        f"{config['file']}, generation {config['generation']}, loaded {text.span(config['age'])} ago", columns
    )
    if config["differs"] and not config["error"]:
        said = "the file has changed since: apply it with `portier reload`"
        yield from _wrap(said, columns, DOUBTFUL)


def _group(group: dict[str, Any], columns: int, rates: Rates | None, detail: Detail) -> Iterator[Line]:
    upstream = group["upstream"]
    if not upstream["candidates"]:
        said = "no upstream"
    else:
        said = f"upstream {upstream['active'] or 'none'}"
        if upstream["candidates"] != [upstream["active"]]:
            said += f" of {', '.join(upstream['candidates'])}"
    lost = upstream["candidates"] and not upstream["active"]
    yield from _wrap(f"group {group['name']}: {group['mode']}, {said}", columns, BAD if lost else BOLD)
    worker = group["worker"]
    if worker["state"] != "running" or worker["restarts"]:
        restarts = f", {text.plural(worker['restarts'], 'restart')}" if worker["restarts"] else ""
        error = f": {worker['error']}" if worker["error"] else ""
        style = DOUBTFUL if worker["state"] == "running" else BAD
        yield from _wrap(f"worker: {worker['state']}{restarts}{error}", columns, style, indent=2)
    yield from _ports(group["ports"], columns, detail.ports)
    yield from _wrap(", ".join(_numbers(group)), columns, indent=2)
    yield from _traffic(group, columns, rates, detail.ports)
    yield from _in_vain(group, columns, detail.refused)
    if detail.more:
        yield from _more(group, columns)
    for warning in group["warnings"][: detail.warnings]:
        yield from _wrap(f"warning: {warning}", columns, DOUBTFUL, indent=2)
    if (left := len(group["warnings"]) - detail.warnings) > 0:
        yield Line(f"  {text.plural(left, 'more warning' if detail.warnings else 'warning')}", DOUBTFUL)


def _numbers(group: dict[str, Any]) -> Iterator[str]:
    if group["mode"] == "route":
        yield text.plural(group["rules"], "rule")
    known = text.plural(group["neighbors"], "host") + " known"
    if states := [f"{text.count(number)} {name}" for name, number in sorted(group["states"].items())]:
        known += f" ({', '.join(states)})"
    yield known
    if group["pending"]:
        yield f"{text.count(group['pending'])} being asked for"
    if group["unfound"]:
        yield f"{text.count(group['unfound'])} asked for that nobody has"
    if group["ipv4"]:
        yield f"IPv4: {group['ipv4']}"


def _more(group: dict[str, Any], columns: int) -> Iterator[Line]:
    """What is of interest when one has the time."""
    multicast = group["multicast"]
    if multicast["use"] == "router":
        yield Line("  multicast: advertised as a router (RFC 4286)")
    elif group["mode"] == "route":
        said = f"multicast: {text.plural(multicast['members'], 'group')} joined"
        if multicast["drawn"]:
            said += f"; too many for {', '.join(multicast['drawn'])}: advertised as a router there (RFC 4286)"
        yield from _wrap(said, columns, indent=2)
    if group["table"]:
        alone = f", {group['uplink_table']} for what downstreams send" if group["uplink_table"] else ""
        yield from _wrap(f"routing table {group['table']}{alone}", columns, indent=2)
    live = [
        live["prefix"]
        + (f" (gone, {text.span(live['grace_left'])} of grace left)" if live["grace_left"] else "")
        for live in group["live"]
    ]
    if live:
        yield from _wrap(f"upstream prefixes: {', '.join(live)}", columns, indent=2)
    for router in group["routers"]:
        lifetime = router["lifetime"]
        left = f"default router for {text.span(lifetime)} more" if lifetime else "no default router"
        said = f"router {router['address']} on {router['port']}: {left}"
        yield from _wrap(said, columns, indent=2)


# -- ports ---------------------------------------------------------------------------------------------


def _ports(ports: list[dict[str, Any]], columns: int, most: int) -> Iterator[Line]:
    good = [port for port in ports if in_service(port)]
    shown = [port for port in ports if not in_service(port)] + good[:most]
    rows = [("port", "role", "state", "speaks from", "IPv4 from", "link-layer", "lost", "why")]
    rows += [
        (
            port["name"],
            port["role"],
            state(port),
            port["source"] or "",
            port["source4"] or "",
            port["mac"] or "",
            text.count(port["drops"]) if port["drops"] else "",
            why(port),
        )
        for port in shown
    ]
    if shown:
        styles = [FAINT, *(_style(port) for port in shown)]
        spare = ("link-layer", "IPv4 from", "role", "speaks from")
        yield from _grid(rows, styles, columns, spare)
    if (left := len(good) - most) > 0:
        yield Line(f"  and {left} more active" if shown else f"  {text.plural(left, 'port')} active")


def _style(port: dict[str, Any]) -> str:
    if faulty(port):
        return BAD
    return PLAIN if in_service(port) or state(port) == "standby" else DOUBTFUL


# -- what was asked, and what came of it ---------------------------------------------------------------


def traffic(group: dict[str, Any], port: dict[str, Any]) -> Traffic:
    """What came of the frames of a port, in numbers since the start."""
    counts = group["counters"].get(port["name"], {})
    dropped = sum(number for verdict, number in counts.items() if verdict in WHY)
    return Traffic(port["answers"], counts.get("relayed", 0), dropped)


def _traffic(group: dict[str, Any], columns: int, rates: Rates | None, most: int) -> Iterator[Line]:
    """A table of the ports on which anything was asked, the busiest first."""
    rows = []
    for port in group["ports"]:
        counts, sums = group["counters"].get(port["name"], {}), traffic(group, port)
        if not any(sums):
            continue
        rate = rates.get((group["name"], port["name"])) if rates is not None else None
        cells = [port["name"]]
        for number, speed in zip(sums, rate or (0.0,) * len(sums), strict=True):
            cells += [text.count(int(number)) if number else "", _speed(speed)]
        reasons = sorted(((WHY[name], many) for name, many in counts.items() if name in WHY), key=_most)
        rows.append((sums, (*cells, ", ".join(f"{text.count(many)} {reason}" for reason, many in reasons))))
    rows.sort(key=lambda row: -sum(row[0]))
    first, last = ("asked on", "not answered") if group["mode"] == "route" else ("heard on", "dropped")
    head = (first, "answered", "/s", "relayed", "/s", last, "/s", "because")
    if rows and most:
        shown = [row for _, row in rows[:most]]
        yield from _grid([head, *shown], [FAINT, *(PLAIN,) * len(shown)], columns, ())
    for name, versions in group["asked"].items():
        if name == group["upstream"]["active"] and not versions and not sum_answers(group):
            said = f"{name}: nobody has asked there yet for an address that a rule allows"
            yield from _wrap(said, columns, DOUBTFUL, indent=2)


def sum_answers(group: dict[str, Any]) -> int:
    """How many answers a group has given."""
    return sum(port["answers"] for port in group["ports"])


def _most(reason: tuple[str, int]) -> int:
    return -reason[1]


def _speed(speed: float) -> str:
    return "" if not speed else f"{speed:.1f}" if speed < 10 else text.count(round(speed))


def _in_vain(group: dict[str, Any], columns: int, most: int) -> Iterator[Line]:
    """Who asked for what in vain, and who disputes whose address."""
    for question in group["refused"][:most]:
        reason = WHY.get(question["verdict"], question["verdict"])
        said = f"{question['asker']} asked on {question['port']} for {question['target']}"
        yield from _wrap(f"{text.span(question['age'])} ago {said}: {reason}", columns, indent=2)
    for dispute in group["contested"][:most]:
        owner = f"{dispute['mac']} on {dispute['port']}" if dispute["mac"] else "this host"
        said = f"{dispute['address']} is held by {owner}, and claimed by {dispute['rival_mac']} on"
        yield from _wrap(
            f"{text.span(dispute['age'])} ago {said} {dispute['rival_port']}", columns, DOUBTFUL, indent=2
        )


# -- lines ---------------------------------------------------------------------------------------------


def _wrap(said: str, columns: int, style: str = PLAIN, *, indent: int = 0) -> Iterator[Line]:
    for line in text.wrap(said, columns, indent=indent, split=True):
        yield Line(line, style)


def _grid(
    rows: Sequence[tuple[str, ...]], styles: list[str], columns: int, spare: tuple[str, ...]
) -> Iterator[Line]:
    for style, lines in zip(styles, text.grid(rows, columns, indent=2, spare=spare), strict=True):
        for line in lines:
            yield Line(line, style)


def _section(title: str, lines: list[str], columns: int, most: int, style: str = PLAIN) -> Iterator[Line]:
    if lines and most:
        yield Line("")
        yield Line(title, BOLD)
        for line in lines[:most]:
            yield from _wrap(line, columns, style, indent=2)
        if (left := len(lines) - most) > 0:
            yield Line(f"  and {left} more", style)


def _clock(when: float) -> str:
    """A time of today by the clock, another with its day."""
    then, now = datetime.fromtimestamp(when).astimezone(), datetime.now().astimezone()
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M:%S")
