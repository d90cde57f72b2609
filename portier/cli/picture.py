"""`portier status --format dot|svg`: groups, ports and hosts as a picture, upstream on the left.

`layout` decides what is shown, and `dot` and `svg` draw it: dot for those who have graphviz and want to go on
from there, svg for everybody, so its places are worked out here.  Names come `clean` and are escaped as each
format wants it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree as ET

from portier.cli import ports, text

_HOSTS: Final = 8  # of a port; more are summed up
_PORTS: Final = 24  # of a group that are in good order; more are summed up
_RED, _AMBER, _GREY, _GREEN, _BLUE, _INK = "#c62828", "#b26a00", "#757575", "#2e7d32", "#1565c0", "#212121"
_PAPER: Final = {_RED: "#fdecea", _AMBER: "#fff4e0", _GREY: "#f5f5f5", _GREEN: "#e8f5e9", _BLUE: "#e3f2fd"}


class _Box(NamedTuple):
    """Something that is shown: its lines, the first one its name, and a colour."""

    lines: tuple[str, ...]
    colour: str


class _Port(NamedTuple):
    """A port and what is known on it."""

    box: _Box
    hosts: list[_Box]


class _Group(NamedTuple):
    """A group with its ports on both sides."""

    box: _Box
    upstream: list[_Port]
    downstream: list[_Port]


def _groups(status: dict[str, Any], hosts: Iterable[dict[str, Any]]) -> Iterator[_Group]:
    known: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for host in hosts:
        known.setdefault((host["group"], host["port"]), []).append(host)
    in_trouble = {notice["group"] for notice in status["notices"] if notice["severity"] == "problem"}
    for group in status["groups"]:
        name = group["name"]
        lines = [f"group {name}", f"mode {group['mode']}", f"{text.plural(group['neighbors'], 'host')} known"]
        if group["worker"]["state"] != "running":
            lines.append(f"worker {group['worker']['state']}")
        sides: dict[str, list[_Port]] = {"upstream": [], "downstream": []}
        good = [port for port in group["ports"] if ports.in_service(port)]
        more = {port["name"]: known.get((name, port["name"]), []) for port in good[_PORTS:]}
        for port in group["ports"]:
            if port["name"] not in more:
                behind = list(_hosts(known.get((name, port["name"]), [])))
                sides[port["role"]].append(_Port(_port(port, name in in_trouble), behind))
        if more:
            count = sum(map(len, more.values()))
            box = _Box((f"{text.count(len(more))} more ports", "all active"), _GREEN)
            sides["downstream"].append(_Port(box, [_Box((f"{text.count(count)} hosts",), _GREY)]))
        yield _Group(_Box(tuple(lines), _RED if name in in_trouble else _BLUE), **sides)


def _port(port: dict[str, Any], in_trouble: bool) -> _Box:
    lines = [port["name"], ports.state(port)]
    if reason := ports.why(port):
        lines += text.wrap(reason, 30, hang=0)[:3]
    elif port["answers"]:
        lines.append(f"{text.count(port['answers'])} answered")
    if ports.in_service(port):
        colour = _GREEN
    elif ports.faulty(port) or (in_trouble and port["role"] == "upstream"):
        colour = _RED
    else:
        colour = _GREY if ports.state(port) == "standby" else _AMBER
    return _Box(tuple(lines), colour)


def _hosts(hosts: list[dict[str, Any]]) -> Iterator[_Box]:
    if len(hosts) > _HOSTS:
        states = Counter(host["state"] for host in hosts)
        sums = (f"{text.count(number)} {state}" for state, number in sorted(states.items()))
        yield _Box((f"{text.count(len(hosts))} hosts", *sums), _RED if states["contested"] else _GREY)
        return
    for host in sorted(hosts, key=lambda host: ipaddress.ip_address(host["address"]).packed):
        bad = host["state"] == "contested" or host["route"] in {"foreign", "failed"}
        lines = [host["address"], f"{host['mac']} {host['state']}".strip()]
        if host["route"] not in {"-", "yes"}:
            lines.append(f"route {host['route']}")
        yield _Box(tuple(lines), _RED if bad else _GREEN if host["state"] == "reachable" else _GREY)


def _verdict(status: dict[str, Any]) -> tuple[str, str]:
    if status["healthy"]:
        return "portier is healthy", _GREEN
    return f"portier is degraded: {text.plural(max(len(status['problems']), 1), 'problem')}", _RED


# -- dot -----------------------------------------------------------------------------------------------


def dot(status: dict[str, Any], hosts: list[dict[str, Any]]) -> str:
    """The picture in graphviz' language (https://graphviz.org/doc/info/lang.html)."""
    said, colour = _verdict(status)
    title = "\\l".join(map(_escaped, [said, *status["problems"]])) + "\\l"
    lines = [
        "graph portier {",
        "  rankdir=LR; ranksep=0.7; nodesep=0.15; fontname=Helvetica; labelloc=t; labeljust=l",
        f'  label="{title}"; fontcolor="{colour}"',
        '  node [shape=box, style="rounded,filled", fontname=Helvetica, fontsize=11]',
    ]
    for number, group in enumerate(_groups(status, hosts)):
        hub = f"g{number}"
        lines.append(_node(hub, group.box))
        for side, found in (("u", group.upstream), ("d", group.downstream)):
            for place, port in enumerate(found):
                name = f"{hub}{side}{place}"
                lines += [_node(name, port.box), _edge(side, name, hub, port.box.colour)]
                for last, host in enumerate(port.hosts):
                    lines += [
                        _node(f"{name}h{last}", host),
                        _edge(side, f"{name}h{last}", name, host.colour),
                    ]
    return "\n".join([*lines, "}", ""])


def _node(name: str, box: _Box) -> str:
    label = "\\n".join(map(_escaped, box.lines))
    return f'  {name} [label="{label}", color="{box.colour}", fillcolor="{_PAPER[box.colour]}"]'


def _edge(side: str, outer: str, inner: str, colour: str) -> str:
    """Both ends in the order in which they stand, from left to right."""
    left, right = (outer, inner) if side == "u" else (inner, outer)
    return f'  {left} -- {right} [color="{colour}"]'


def _escaped(said: str) -> str:
    return said.replace("\\", "\\\\").replace('"', '\\"')


# -- svg -----------------------------------------------------------------------------------------------

_CHAR: Final = 6.7  # width of a character of 11 pixels in a monospaced font
_LEADING: Final = 15
_PAD: Final = 8
_GAP: Final = 12  # between boxes above each other
_REACH: Final = 64  # between columns
_MARGIN: Final = 24
_TITLE_COLUMNS: Final = 110


def _width(boxes: Iterable[_Box]) -> float:
    return max((len(line) for box in boxes for line in box.lines), default=0) * _CHAR + 2 * _PAD


def _height(box: _Box) -> float:
    return len(box.lines) * _LEADING + 2 * _PAD - 3


def _stack(heights: Iterable[float]) -> float:
    """How high boxes above each other are together."""
    found = list(heights)
    return sum(found) + _GAP * max(len(found) - 1, 0)


def _tall(port: _Port) -> float:
    return max(_height(port.box), _stack(map(_height, port.hosts)))


def svg(status: dict[str, Any], hosts: list[dict[str, Any]]) -> str:
    """The picture as an SVG document: columns from left to right are what is known upstream, the upstream's
    ports, the group, the downstream ports, and what is known there."""
    groups = list(_groups(status, hosts))
    ups = [port for group in groups for port in group.upstream]
    downs = [port for group in groups for port in group.downstream]
    widths = [
        _width(host for port in ups for host in port.hosts) if any(port.hosts for port in ups) else 0,
        _width(port.box for port in ups) if ups else 0,
        _width(group.box for group in groups),
        _width(port.box for port in downs) if downs else 0,
        _width(host for port in downs for host in port.hosts) if any(port.hosts for port in downs) else 0,
    ]
    places, left = [], float(_MARGIN)
    for width in widths:
        places.append(left)
        left += width + _REACH if width else 0
    root = ET.Element("svg", xmlns="http://www.w3.org/2000/svg")
    ET.SubElement(root, "title").text = "Portier: groups, ports and hosts"
    ET.SubElement(root, "rect", width="100%", height="100%", fill="#ffffff")
    said, colour = _verdict(status)
    sentences = [line for problem in status["problems"] for line in text.wrap(problem, _TITLE_COLUMNS)]
    top = float(_MARGIN)
    _write(root, _MARGIN, top + 12, [said], colour, size=15, bold=True)
    _write(root, _MARGIN, top + 32, sentences, colour)
    top += 28 + len(sentences) * _LEADING + _GAP
    for group in groups:
        high = max(
            _height(group.box), _stack(map(_tall, group.upstream)), _stack(map(_tall, group.downstream))
        )
        middle = top + high / 2
        inner, outer = places[2], places[2] + widths[2]
        for found, edge, column, beyond in (
            (group.upstream, inner, 1, 0),
            (group.downstream, outer, 3, 4),
        ):
            at = middle - _stack(map(_tall, found)) / 2
            for port in found:
                centre = at + _tall(port) / 2
                near, far = places[column], places[column] + widths[column]
                if column == 1:
                    near, far = far, near
                _curve(root, (edge, middle), (near, centre), port.box.colour)
                host_at = centre - _stack(map(_height, port.hosts)) / 2
                for host in port.hosts:
                    end = places[beyond] + (widths[beyond] if beyond == 0 else 0)
                    _curve(root, (far, centre), (end, host_at + _height(host) / 2), host.colour)
                    _draw(root, places[beyond], host_at, widths[beyond], host)
                    host_at += _height(host) + _GAP
                _draw(root, places[column], centre - _height(port.box) / 2, widths[column], port.box)
                at += _tall(port) + _GAP
        _draw(root, inner, middle - _height(group.box) / 2, widths[2], group.box)
        top += high + 2 * _MARGIN
    titles = [said, *sentences]
    wide = max(left - _REACH + _MARGIN, max(map(len, titles)) * _CHAR * 1.4 + 2 * _MARGIN)
    high = top - _MARGIN
    root.attrib |= {"width": f"{wide:.0f}", "height": f"{high:.0f}", "viewBox": f"0 0 {wide:.0f} {high:.0f}"}
    return ET.tostring(root, encoding="unicode") + "\n"


def _draw(root: ET.Element, left: float, top: float, width: float, box: _Box) -> None:
    colour = box.colour
    frame = {"x": left, "y": top, "width": width, "height": _height(box), "rx": 6.0}
    style = {"fill": _PAPER[colour], "stroke": colour, "stroke-width": "1.5"}
    ET.SubElement(root, "rect", {name: f"{value:.1f}" for name, value in frame.items()} | style)
    first = top + _PAD + 10
    _write(root, left + _PAD, first, box.lines[:1], _INK, bold=True)
    _write(root, left + _PAD, first + _LEADING, box.lines[1:], colour if colour != _GREY else _INK)


def _write(
    root: ET.Element,
    left: float,
    top: float,
    lines: Iterable[str],
    colour: str,
    *,
    size: int = 11,
    bold: bool = False,
) -> None:
    for number, line in enumerate(lines):
        style = {"font-family": "monospace", "font-size": str(size), "fill": colour}
        style |= {"font-weight": "bold"} if bold else {}
        style |= {"x": f"{left:.1f}", "y": f"{top + number * _LEADING:.1f}", "xml:space": "preserve"}
        ET.SubElement(root, "text", style).text = line


def _curve(root: ET.Element, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    bend = (start[0] + end[0]) / 2
    points = (start, (bend, start[1]), (bend, end[1]), end)
    first, *others = (f"{left:.1f},{top:.1f}" for left, top in points)
    path = f"M{first} C{' '.join(others)}"
    ET.SubElement(root, "path", {"d": path, "fill": "none", "stroke": colour, "stroke-width": "1.5"})
