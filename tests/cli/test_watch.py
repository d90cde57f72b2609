"""`portier watch`: a line for people, and how it ends."""

from __future__ import annotations

import re
from typing import Any

import pytest

from portier.cli.watch import render
from tests.cli.conftest import Portier

LEARNED = {
    "time": 1_800_000_000.25,
    "kind": "learned",
    "text": "2001:db8::5 is on tap0",
    "group": "lan",
    "port": "tap0",
    "address": "2001:db8::5",
}
PACKET = {
    "time": 1_800_000_000.0,
    "kind": "packet",
    "text": "fe80::1 asks for 2001:db8::5",
    "group": "lan",
    "port": "eth0",
    "verdict": "no-rule",
    "dropped": True,
}
MISSED = {"time": 0.0, "kind": "missed", "text": "7 lines are missing here: there was no room for them"}


@pytest.mark.parametrize(
    ("entry", "line", "colour"),
    [
        (LEARNED, "learned lan tap0 2001:db8::5 is on tap0", "\x1b[32m"),
        (PACKET, "packet lan eth0 no-rule: fe80::1 asks for 2001:db8::5", "\x1b[31m"),
        (PACKET | {"verdict": "heard", "dropped": False}, "packet lan eth0 heard: fe80::1 asks for", ""),
        (MISSED, "missed 7 lines are missing here: there was no room for them", "\x1b[31m"),
        (LEARNED | {"port": "a\x1b[2Jb"}, r"learned lan a\x1b[2Jb 2001:db8::5", "\x1b[32m"),
    ],
)
def test_a_line_says_it_all(entry: dict[str, Any], line: str, colour: str) -> None:
    """Time, kind, group, port, verdict and text, in one line; colours only where wanted; no name can do
    anything to the terminal."""
    plain = render(entry, colours=False)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} .*", plain)
    assert plain[13:].startswith(line)
    assert "\x1b" not in plain
    coloured = render(entry, colours=True)
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain
    assert f"\x1b[0m {colour}{entry['kind']}" in coloured


def test_without_a_daemon(portier: Portier, tmp_path: Any) -> None:
    """No daemon: exit 4, one line; and no file is made for packets that nobody will see."""
    done = portier("watch", "--write", str(tmp_path / "out.pcap"))
    assert done.returncode == 4
    assert "no daemon answers" in done.stderr
    assert not (tmp_path / "out.pcap").exists()
