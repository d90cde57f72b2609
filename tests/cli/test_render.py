"""What people see: status and neighbors as text, and the helpers that shape it."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from portier.cli import neighbors, status, text
from portier.cli.verdicts import WHY
from portier.core.outcome import Verdict
from tests.cli.conftest import ROOT

HEALTHY: dict[str, Any] = {
    "version": 1,
    "pid": 4711,
    "uptime": 11_530.0,
    "healthy": True,
    "problems": [],
    "notices": [],
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
                    "source4": "192.0.2.2",
                    "drops": 0,
                    "answers": 12034,
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
                    "source4": None,
                    "drops": 0,
                    "answers": 0,
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
            "states": {"stale": 2, "reachable": 10},
            "pending": 1,
            "unfound": 31,
            "ipv4": "no rule",
            "worker": {"state": "running", "restarts": 0, "error": ""},
            "counters": {"eth0": {"answered": 12000, "no-rule": 7, "heard": 4}, "tap-3": {}},
            "multicast": {"use": "groups", "members": 36, "refused": 0, "error": "", "drawn": []},
            "asked": {"eth0": [6]},
            "refused": [
                {
                    "target": "2001:db8:9::5",
                    "port": "eth0",
                    "asker": "fe80::ff",
                    "mac": "52:54:00:00:00:ff",
                    "verdict": "no-rule",
                    "again": 3,
                    "age": 12.0,
                }
            ],
            "contested": [],
            "limits": {
                "neighbors": 4096,
                "per_port": 1024,
                "per_host": 64,
                "pending": 256,
                "resolutions": 1000,
                "per_source": 50,
                "route_changes": 500,
            },
            "warnings": [],
        }
    ],
    "reconcile": {"rounds": 8, "last_ms": 3.2, "pending_steps": [], "errors": []},
    "sysctls": [],
    "events": [{"time": 1_800_000_000.0, "kind": "learned", "text": "2001:db8:7::5 on tap-3"}],
}


PORTS = ("eth0", "tap-3", "tap-4")


def rendered(
    change: Callable[[dict[str, Any]], object] | None = None,
    columns: int = 80,
    waiting: list[str] | None = None,
    rows: int = 10_000,
) -> list[str]:
    """The healthy status after ``change`` has been made to a copy of it, as lines."""
    value = copy.deepcopy(HEALTHY)
    if change:
        change(value)
    return [line.text for line in status.page(text.clean(value), columns, rows, waiting or [])]


def test_the_status_here_is_one() -> None:
    """What these tests render is a status as its format has it."""
    document = json.loads((ROOT / "schema" / "portier.status.schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(document).validate(HEALTHY)


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
        "3 rules, 12 hosts known (10 reachable, 2 stale), 1 being asked for, 31 asked for that nobody has",
        "fe80::1      192.0.2.2",
        "multicast: 36 groups joined",
        "2001:db8:7::/64, 2001:db8:6::/64 (gone, 7 min 10 s of grace left)",
        "eth0      12,034    7             7 no rule allows it",
        "12 s ago fe80::ff asked on eth0 for 2001:db8:9::5: no rule allows it",
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


def test_a_group_with_nothing_behind_is_told_at_once() -> None:
    """Where no port behind is in use, as with a misspelt name, that stands right below the verdict; not while
    another is, nor where none is wanted."""
    lines = rendered(columns=200)
    assert lines[1] == "? group guests: no port behind is in use (tap-3: no usable address)"

    def some(value: dict[str, Any]) -> None:
        ports = value["groups"][0]["ports"]
        ports.append(ports[1] | {"name": "tap-4", "state": "active", "reason": ""})

    def none(value: dict[str, Any]) -> None:
        del value["groups"][0]["ports"][1:]

    def many(value: dict[str, Any]) -> None:
        ports = value["groups"][0]["ports"]
        ports.extend(ports[1] | {"name": f"tap-{number}"} for number in range(4, 104))

    for change in (some, none):
        assert not any(line.startswith("?") for line in rendered(change))
    assert rendered(many, columns=200)[1].endswith("tap-5: no usable address, 98 more)")


def test_nothing_of_a_problem_is_lost_on_a_narrow_terminal() -> None:
    """A word that is longer than a line, like a path, is split, because lines are cut where they end."""
    problem = f"the configuration on disk is refused: /srv/{'long/' * 20}portier.yaml:4:5: no"

    def break_it(value: dict[str, Any]) -> None:
        value["problems"] = [problem]

    lines = rendered(break_it, columns=40)
    end = next(number for number, line in enumerate(lines) if line.startswith("?"))
    assert max(map(len, lines)) <= 40
    assert "".join(lines[1:end]).replace(" ", "") == f"! {problem}".replace(" ", "")


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
    assert "1 being asked for, 31 asked for that nobody has, IPv4: not relayed" in whole
    assert "rules" not in whole

    value = copy.deepcopy(HEALTHY)
    relay(value)
    told = [line.split(":")[1] for line in status.waiting(value)]
    assert told == [" tap-4 is waiting for RAs"], "a hold-down is a problem in any case"


def test_a_hundred_good_ports_do_not_scroll_away_the_bad_one() -> None:
    """Of many active ports some are shown and the rest counted; one that waits is always shown."""

    def multiply(value: dict[str, Any]) -> None:
        ports = value["groups"][0]["ports"]
        ports += [ports[0] | {"name": f"lxc{number}"} for number in range(100)]

    lines = rendered(multiply, rows=40)
    assert any("tap-3" in line for line in lines)
    assert any(re.fullmatch("  and [0-9]+ more active", line) for line in lines)
    assert len(lines) <= 40
    whole = rendered(multiply)
    assert any("lxc99" in line for line in whole), "nothing is left out where it need not fit"


@pytest.mark.parametrize(("columns", "rows"), [(40, 10), (60, 15), (80, 24), (80, 4), (120, 50)])
def test_it_fits_the_terminal(columns: int, rows: int) -> None:
    """No line is longer than the terminal is wide, and there are no more than it is high; the verdict and the
    first problem are there in any case, and that something is missing is said."""

    def lengthen(value: dict[str, Any]) -> None:
        value["problems"] = ["word " * 60]
        value["groups"][0]["warnings"] = ["word " * 60]
        value["groups"][0]["counters"]["eth0"] = {f"verdict-{number}": number for number in range(40)}
        for port in value["groups"][0]["ports"]:
            port["reason"] = "word " * 20
        value["groups"] += [value["groups"][0] | {"name": f"g{number}"} for number in range(30)]

    lines = rendered(lengthen, columns, rows=rows)
    assert max(map(len, lines)) <= columns
    assert len(lines) == rows
    assert lines[0] == "portier is degraded: 1 problem"
    assert lines[1].startswith("! word")
    assert "more lines: pipe it into less" in lines[-1]


def test_what_matters_least_goes_first() -> None:
    """With fewer and fewer lines the events go before the questions in vain, those before the ports in good
    order, and the port in trouble stays."""
    whole = rendered()
    said = {"events": "last events", "vain": "fe80::ff asked", "good": "  eth0  ", "bad": "no usable address"}
    here = []
    for rows in range(len(whole), 6, -1):
        page = "\n".join(rendered(rows=rows))
        assert page.count("\n") < rows
        here.append([name for name, words in said.items() if words in page])
    assert here[0] == list(said)
    assert ["vain", "good", "bad"] in here
    assert here[-1] == ["bad"]
    assert all("bad" in found for found in here)


def test_rates_are_shown_where_there_are_any() -> None:
    """With rates, what happens a second stands beside each number."""
    rates = {("guests", "eth0"): status.Traffic(5.25, 0.0, 0.5), ("guests", "tap-3"): status.Traffic(0, 0, 0)}
    lines = [line.text for line in status.page(HEALTHY, 120, 100, rates=rates)]
    (row,) = (line.split() for line in lines if line.startswith("  eth0      12,034"))
    assert row[:5] == ["eth0", "12,034", "5.2", "7", "0.5"]


def test_words_for_all_that_is_not_answered() -> None:
    """Each verdict in which somebody may wait in vain has its words, and no other."""
    assert list(WHY) == [verdict.label for verdict in Verdict if verdict.dropped]


def test_nobody_has_asked() -> None:
    """That nobody ever asked upstream for what is allowed is said, as long as nothing was answered."""

    def quiet(value: dict[str, Any]) -> None:
        group = value["groups"][0]
        group |= {"asked": {"eth0": [], "tap-3": []}, "counters": {}}
        group["ports"][0]["answers"] = 0

    assert "  eth0: nobody has asked there yet for an address that a rule allows" in rendered(quiet)
    assert not any("nobody has asked" in line for line in rendered())


def test_names_do_nothing_to_the_terminal() -> None:
    """Control characters, bytes that are no text, and what turns the direction of writing are shown as
    escapes, wherever they stand."""

    def rename(value: dict[str, Any]) -> None:
        group = value["groups"][0]
        group["ports"][1]["name"] = "a\x1b[2J\u202e\udcff\n"
        group["ports"][1]["reason"] = "\x9b31m"
        group["counters"]["a\x1b[2J\u202e\udcff\n"] = {"no-rule": 3}
        value["problems"] = ["\x07 rings"]
        value["events"][0]["text"] = "\r\x1b]0;title\x07"

    lines = rendered(rename, columns=200)
    assert all(line.isprintable() for line in lines)
    assert any(r"a\x1b[2J\u202e\udcff\n" in line for line in lines)
    assert any(r"\x9b31m" in line for line in lines)


def test_what_is_wrong_is_red() -> None:
    """Verdict and problems have the colour of trouble, and without colours nothing but text is printed."""
    value = copy.deepcopy(HEALTHY) | {"healthy": False, "problems": ["no"]}
    first, second, *_ = status.page(value, 80, 100)
    assert first.painted(colours=True) == "\x1b[1;31mportier is degraded: 1 problem\x1b[0m"
    assert second.painted(colours=True) == "\x1b[31m! no\x1b[0m"
    assert second.painted(colours=False) == "! no"
    assert status.page(HEALTHY, 80, 100)[0].painted(colours=True).startswith("\x1b[1;32m")


def test_strict_shows_why_it_is_degraded() -> None:
    """With --strict a waiting port is a problem like any other."""
    assert status.waiting(HEALTHY) == ["group guests: tap-3 is waiting: no usable address"]
    lines = rendered(waiting=status.waiting(HEALTHY))
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
