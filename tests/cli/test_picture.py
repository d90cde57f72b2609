"""`portier status --format dot|svg`: what is drawn, and that no name can spoil it."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portier.cli import picture, text
from tests.cli.test_render import HEALTHY

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'a"<&>\\n]]>\x1b[2J\x00\ufffe\udcff\\'


def host(number: int, **more: str) -> dict[str, Any]:
    """A host on tap-3."""
    known = {
        "address": f"2001:db8:7::{number:x}",
        "group": "guests",
        "port": "tap-3",
        "mac": "52:54:00:00:00:07",
        "state": "reachable",
        "age": 1.0,
        "route": "yes",
    }
    return known | more


def degraded(name: str = "lan") -> dict[str, Any]:
    """A status with a second group that is in trouble."""
    value = copy.deepcopy(HEALTHY)
    group = copy.deepcopy(value["groups"][0]) | {"name": name, "neighbors": 0}
    group["upstream"]["active"] = None
    group["ports"][0] |= {"name": "wan0", "state": "waiting", "reason": "down", "source": None, "answers": 0}
    group["ports"][1] |= {"name": "br-x", "state": "refused", "reason": "enslaved to br0"}
    value["groups"].append(group)
    problem = {"severity": "problem", "check": "upstream", "group": name, "finding": "no", "remedy": ""}
    return value | {"healthy": False, "problems": ["no usable upstream"], "notices": [problem]}


def svg(status: dict[str, Any], hosts: list[dict[str, Any]]) -> ET.Element:
    """The picture, read as XML."""
    return ET.fromstring(picture.svg(text.clean(status), text.clean(hosts)))  # noqa: S314  (our own)


def written(root: ET.Element) -> list[str]:
    """The lines of text in a picture."""
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def boxes(root: ET.Element) -> list[dict[str, float]]:
    """Where the boxes are."""
    found = [element for element in root.iter(f"{SVG}rect") if "x" in element.keys()]  # noqa: SIM118
    return [{name: float(box.attrib[name]) for name in ("x", "y", "width", "height")} for box in found]


def rendered_by_dot(source: str) -> str:
    """What graphviz makes of it."""
    if shutil.which("dot") is None:
        assert not os.environ.get("PORTIER_REQUIRE"), "graphviz is not installed"
        pytest.skip("graphviz is not installed")
    done = subprocess.run(
        ["dot", "-Tsvg"], input=source, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_svg_has_everything_in_its_place() -> None:
    """Group, ports and hosts are there with their states, the upstream on the left, one beside the other,
    and nothing is drawn outside or on top of something else."""
    root = svg(degraded(), [host(1), host(2, state="contested"), host(3, port="eth0", route="-")])
    said = written(root)
    for words in ("portier is degraded: 1 problem", "no usable upstream", "group guests", "wan0", "refused"):
        assert words in said
    assert {"2001:db8:7::1", "2001:db8:7::2", "52:54:00:00:00:07 contested"} <= set(said)
    left = {element.text: float(element.attrib["x"]) for element in root.iter(f"{SVG}text")}
    assert left["2001:db8:7::3"] < left["eth0"] < left["group guests"] < left["tap-3"] < left["2001:db8:7::1"]
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    places = boxes(root)
    assert len(places) == 9
    for number, box in enumerate(places):
        assert 0 <= box["x"] <= width - box["width"]
        assert 0 <= box["y"] <= height - box["height"]
        for other in places[:number]:
            apart_x = box["x"] + box["width"] <= other["x"] or other["x"] + other["width"] <= box["x"]
            apart_y = box["y"] + box["height"] <= other["y"] or other["y"] + other["height"] <= box["y"]
            assert apart_x or apart_y


def test_what_is_wrong_is_red() -> None:
    """The group in trouble, its upstream and its refused port are red; in a healthy picture nothing is."""
    red = {
        element.text
        for element in svg(degraded(), [host(2, state="contested")]).iter(f"{SVG}text")
        if element.attrib["fill"] == picture._RED
    }
    assert {"mode route", "waiting", "refused", "no usable upstream", "52:54:00:00:00:07 contested"} <= red
    assert picture._RED not in picture.svg(HEALTHY, [host(1)])
    assert picture._RED not in picture.dot(HEALTHY, [host(1)])
    assert picture._RED in picture.dot(degraded(), [])


def test_many_hosts_are_a_number() -> None:
    """Up to eight hosts of a port are shown each; more are one box with how many there are."""
    assert "2001:db8:7::8" in written(svg(HEALTHY, [host(number) for number in range(1, 9)]))
    many = [host(number, state="stale" if number < 100 else "reachable") for number in range(1, 1235)]
    said = written(svg(HEALTHY, many))
    assert {"1,234 hosts", "99 stale", "1,135 reachable"} <= set(said)
    assert "2001:db8:7::8" not in said
    assert "1,234 hosts" in picture.dot(HEALTHY, many)


def test_many_ports_are_a_number() -> None:
    """Of ports in good order some are shown, the others summed up with their hosts; those in trouble are all
    shown."""
    status = copy.deepcopy(HEALTHY)
    eth, tap = status["groups"][0]["ports"]
    tap |= {"state": "refused", "reason": "enslaved to br0"}
    more = [eth | {"name": f"vnet{number}", "role": "downstream"} for number in range(100)]
    status["groups"][0]["ports"] = [eth, *more, tap]
    said = written(svg(status, [host(number, port=f"vnet{number + 50}") for number in range(20)]))
    assert {"eth0", "vnet22", "77 more ports", "20 hosts", "tap-3"} <= set(said)
    assert "vnet23" not in said


def test_dot_is_taken_by_graphviz() -> None:
    """The real dot draws it, hostile names and all, and they come out as they went in."""
    status = degraded()
    status["groups"][1]["ports"][1]["name"] = HOSTILE
    drawn = rendered_by_dot(picture.dot(text.clean(status), text.clean([host(1), host(2)])))
    said = [element.text for element in ET.fromstring(drawn).iter(f"{SVG}text")]  # noqa: S314  (graphviz' own)
    assert text.clean(HOSTILE) in said
    assert {"group guests", "2001:db8:7::1", "portier is degraded: 1 problem"} <= set(said)


@given(st.text(), st.text())
def test_no_name_spoils_a_picture(name: str, reason: str) -> None:
    """Whatever an interface is called, the SVG is well-formed and says its name, and so does the dot file,
    with each quoted string ended."""
    status = degraded()
    status["groups"][1]["ports"][1] |= {"name": name, "reason": reason}
    status["problems"] = [reason]
    said = written(svg(status, []))
    assert text.clean(name) in said
    source = picture.dot(text.clean(status), [])
    assert source.isascii() or source.replace("\n", "").isprintable()
    for line in source.splitlines()[3:-1]:
        assert line.replace("\\\\", "").replace('\\"', "").count('"') % 2 == 0
