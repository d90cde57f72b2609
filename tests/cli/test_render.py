"""What people see: status and neighbors as text, and the helpers that shape it."""

import copy
from typing import Any

import pytest

from portier.cli import neighbors, status, text

HEALTHY: dict[str, Any] = {
    "version": 1,
    "pid": 4711,
    "uptime": 11_530.0,
    "healthy": True,
    "problems": [],
    "config": {
        "file": "/etc/portier.yaml",
        "generation": 3,
        "age": 720.0,
        "error": None,
        "differs": False,
        "warnings": [],
    },
    "groups": [
        {
            "name": "guests",
            "mode": "route",
            "table": 1_350_000_000,
            "uplink_table": 1_350_000_001,
            "upstream": {"candidates": ["eth0", "eth1"], "active": "eth0"},
            "ports": [
                {
                    "name": "eth0",
                    "role": "upstream",
                    "state": "active",
                    "reason": "",
                    "index": 2,
                    "mac": "52:54:00:00:00:01",
                    "source": "fe80::1",
                    "drops": 0,
                    "relay": None,
                },
                {
                    "name": "tap-3",
                    "role": "downstream",
                    "state": "waiting",
                    "reason": "no usable address",
                    "index": 3,
                    "mac": "52:54:00:00:00:02",
                    "source": None,
                    "drops": 0,
                    "relay": None,
                },
            ],
            "live": [
                {"prefix": "2001:db8:7::/64", "grace_left": None},
                {"prefix": "2001:db8:6::/64", "grace_left": 430.0},
            ],
            "routers": [
                {
                    "address": "fe80::1",
                    "port": "eth0",
                    "mac": "52:54:00:00:00:ff",
                    "lifetime": 1750.0,
                    "managed": False,
                    "other": False,
                    "on_link": ["2001:db8:7::/64"],
                }
            ],
            "rules": 3,
            "neighbors": 12,
            "pending": 1,
            "ipv4": "no rule",
            "worker": {"state": "running", "restarts": 0, "error": None},
            "counters": {"eth0": {"answered": 120, "no-rule": 7}, "tap-3": {}},
            "multicast": {"use": "groups", "members": 36, "refused": 0, "error": "", "drawn": []},
            "limits": {},
            "warnings": [],
        }
    ],
    "reconcile": {"rounds": 8, "last_ms": 3.2, "pending_steps": [], "errors": []},
    "sysctls": [],
    "events": [{"time": 1_800_000_000.0, "kind": "learned", "text": "2001:db8:7::5 on tap-3"}],
}


PORTS = ("eth0", "tap-3", "tap-4")


def rendered(change: Any = None, columns: int = 80, waiting: list[str] | None = None) -> list[str]:
    """The healthy status after ``change`` has been made to a copy of it, as lines."""
    value = copy.deepcopy(HEALTHY)
    if change:
        change(value)
    return list(status.render(value, columns, waiting or []))


def test_a_healthy_status_says_so_first() -> None:
    """The first line is the verdict, and what follows names file, process, group, ports and counts."""
    lines = rendered(columns=200)
    assert lines[0] == "portier is healthy"
    whole = "\n".join(lines)
    for said in (
        "process 4711, up 3 h 12 min",
        "/etc/portier.yaml, generation 3, loaded 12 min ago",
        "group guests: route, upstream eth0 of eth0, eth1",
        "no usable address",
        "3 rules, 12 neighbors, 1 pending, IPv4: no rule",
        "multicast: 36 groups joined",
        "2001:db8:7::/64, 2001:db8:6::/64 (gone, 7 min 10 s of grace left)",
        "eth0: 120 answered, 7 no-rule",
        "learned: 2001:db8:7::5 on tap-3",
    ):
        assert said in whole


def test_problems_come_first() -> None:
    """What is wrong stands directly below the verdict, before anything else."""

    def break_it(value: dict[str, Any]) -> None:
        value["healthy"] = False
        value["problems"] = ["guests: no usable upstream", "the configuration on disk was refused"]

    lines = rendered(break_it)
    assert lines[:3] == [
        "portier is degraded: 2 problems",
        "! guests: no usable upstream",
        "! the configuration on disk was refused",
    ]


def test_ports_in_trouble_come_before_the_others() -> None:
    """A port that is not active is listed above those that are."""
    lines = rendered()
    tap = next(number for number, line in enumerate(lines) if line.startswith("  tap-3"))
    eth = next(number for number, line in enumerate(lines) if line.startswith("  eth0 "))
    assert tap < eth


def test_a_relay_shows_what_part_its_ports_take() -> None:
    """Of a port in hold-down: why, and how long it lasts; `status --strict` counts those that wait too."""

    def relay(value: dict[str, Any]) -> None:
        group = value["groups"][0]
        group |= {"mode": "relay", "rules": 0, "ipv4": "not relayed"}
        rogue = {"reason": "an RA by fe80::bad", "offender": "fe80::bad", "mac": "02:00:00:00:0b:ad"}
        nobody = {"reason": "", "offender": None, "mac": None, "left": None}
        eth, tap = group["ports"]
        eth["relay"] = {"service": "forwarding", **nobody}
        tap |= {"state": "active", "reason": "", "relay": {"service": "hold-down", **rogue, "left": 3541.0}}
        group["ports"].append(tap | {"name": "tap-4", "relay": {"service": "waiting for RAs", **nobody}})

    lines = rendered(relay, columns=200)
    whole = "\n".join(lines)
    eth, tap, other = (next(line for line in lines if line.startswith(f"  {n} ")) for n in PORTS)
    assert "hold-down" in tap
    assert tap.endswith("an RA by fe80::bad; 59 min 1 s left")
    assert "waiting for RAs" in other
    assert "forwarding" in eth
    assert lines.index(tap) < lines.index(other) < lines.index(eth)
    assert "12 neighbors, 1 pending, IPv4: not relayed" in whole
    assert "rules" not in whole

    value = copy.deepcopy(HEALTHY)
    relay(value)
    told = [line.split(":")[1] for line in status._waiting(value)]
    assert told == [" tap-4 is waiting for RAs"], "a hold-down is a problem in any case"


def test_a_hundred_good_ports_do_not_scroll_away_the_bad_one() -> None:
    """Of many active ports some are shown and the rest counted; one that waits is always shown."""

    def multiply(value: dict[str, Any]) -> None:
        ports = value["groups"][0]["ports"]
        ports += [ports[0] | {"name": f"lxc{number}"} for number in range(100)]

    lines = rendered(multiply)
    assert any("tap-3" in line for line in lines)
    assert "  and 85 more, all active" in lines
    assert len(lines) < 40


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_it_fits_the_terminal(columns: int) -> None:
    """No line is longer than the terminal is wide."""

    def lengthen(value: dict[str, Any]) -> None:
        value["problems"] = ["word " * 60]
        value["groups"][0]["warnings"] = ["word " * 60]
        value["groups"][0]["counters"]["eth0"] = {f"verdict-{number}": number for number in range(40)}
        for port in value["groups"][0]["ports"]:
            port["reason"] = "word " * 20

    assert max(map(len, rendered(lengthen, columns))) <= max(columns, 84)


def test_strict_shows_why_it_is_degraded() -> None:
    """With --strict a waiting port is a problem like any other."""
    assert status._waiting(HEALTHY) == ["group guests: tap-3 is waiting: no usable address"]
    lines = rendered(waiting=status._waiting(HEALTHY))
    assert lines[0] == "portier is degraded: 1 problem"


def test_a_worker_in_trouble_is_shown() -> None:
    """A worker that restarts is shown with its number of restarts and its error."""

    def crash(value: dict[str, Any]) -> None:
        value["groups"][0]["worker"] = {"state": "restarting", "restarts": 2, "error": "KeyError: 7"}

    assert "  worker: restarting, 2 restarts: KeyError: 7" in rendered(crash)


def test_neighbors_are_sorted_and_aligned() -> None:
    """Hosts come by group, port and address as a number, in columns."""
    host = {
        "address": "2001:db8:7::10",
        "group": "guests",
        "port": "tap-3",
        "mac": "52:54:00:00:00:03",
        "state": "reachable",
        "age": 12.0,
        "route": "yes",
    }
    lines = neighbors.render([host, host | {"address": "2001:db8:7::9", "age": 0.3}], 100)
    assert lines[0].split() == ["address", "group", "port", "link-layer", "state", "age", "route"]
    assert [line.split()[0] for line in lines[1:]] == ["2001:db8:7::9", "2001:db8:7::10"]
    assert lines[1].index("tap-3") == lines[2].index("tap-3")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (0, "0.0 s"),
        (0.25, "0.2 s"),
        (1, "1 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (11_530, "3 h 12 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_spans(seconds: float | None, said: str) -> None:
    """A span of time is told in its two largest units."""
    assert text.span(seconds) == said
