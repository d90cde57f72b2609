"""The feed: who watches is told in order, or told what is missing; who publishes never waits."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from portier.core.model import Event, EventKind
from portier.core.outcome import Verdict
from portier.errors import Refused
from portier.runtime.feed import Feed, Filter, Watcher
from tests.runtime.rig import PATIENCE, wait_for

SOLICITATION = (
    bytes(10)
    + bytes.fromhex("3333ff00000502000000000186dd6000000000203aff")
    + bytes.fromhex("fe800000000000000000000000000001ff0200000000000000000001ff000005")
    + bytes.fromhex("8700000000000000")
    + bytes.fromhex("20010db8000000000000000000000005")
    + bytes.fromhex("0101020000000001")
)


def event(number: int = 0, kind: EventKind = EventKind.LEARNED, **about: str) -> Event:
    """An event that says its number."""
    return Event(kind=kind, text=f"no. {number}", **about)


def entries(watcher: Watcher, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """What a watcher is told until that is enough."""
    told: list[dict[str, Any]] = []
    deadline = time.monotonic() + PATIENCE
    while not enough(told):
        assert time.monotonic() < deadline, told[-5:]
        if select.select([watcher], [], [], 0.1)[0]:
            told += map(json.loads, watcher.take().splitlines())
    return told


def texts(watcher: Watcher, count: int) -> list[str]:
    """The texts of the next so many."""
    return [entry["text"] for entry in entries(watcher, lambda told: len(told) >= count)]


def test_events_are_told_in_order() -> None:
    """All that watch are told of every event, in order, with what it is about."""
    feed = Feed()
    watchers = [feed.watch(Filter()) for _ in range(3)]
    for number in range(100):
        feed.event(event(number, group="lan", port="tap0", address="2001:db8::5"))
    for watcher in watchers:
        told = entries(watcher, lambda told: len(told) >= 100)
        assert [entry["text"] for entry in told] == [f"no. {number}" for number in range(100)]
        assert told[0] | {"time": 0} == {
            "version": 1,
            "time": 0,
            "kind": "learned",
            "text": "no. 0",
            "group": "lan",
            "port": "tap0",
            "address": "2001:db8::5",
        }
        watcher.close()
    assert feed.watchers == 0


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (Filter(), "abcd"),
        (Filter(groups=frozenset({"lan"})), "ab"),
        (Filter(ports=frozenset({"tap0"})), "a"),
        (Filter(kinds=frozenset({"moved", "config"})), "bd"),
        (Filter(networks=(ip_network("2001:db8::/64"),)), "a"),
        (Filter(networks=(ip_network("2001:db8::5"), ip_network("192.0.2.5"))), "ac"),
        (Filter(groups=frozenset({"lan"}), kinds=frozenset({"moved"})), "b"),
        (Filter(packets=True), "abcdp"),
        (Filter(packets=True, kinds=frozenset({"packet"})), "p"),
        (Filter(packets=True, networks=(ip_network("fe80::/10"),)), "p"),
        (Filter(packets=True, ports=frozenset({"tap0"})), "a"),
    ],
)
def test_filters_choose(wanted: Filter, seen: str) -> None:
    """Each filter names what passes; all that are given must be met."""
    feed = Feed()
    watcher = feed.watch(wanted)
    feed.event(Event(kind=EventKind.LEARNED, text="a", group="lan", port="tap0", address="2001:db8::5"))
    feed.event(Event(kind=EventKind.MOVED, text="b", group="lan", port="tap1", address="2001:db8:1::5"))
    feed.event(Event(kind=EventKind.LOST, text="c", group="wan", address="192.0.2.5"))
    feed.event(Event(kind=EventKind.CONFIG, text="d"))
    feed.packet("wan", "eth0", SOLICITATION, Verdict.NO_RULE)
    told = entries(watcher, lambda told: len(told) >= len(seen))
    assert [entry["text"] if entry["kind"] != "packet" else "p" for entry in told] == list(seen)
    watcher.close()


def test_packets_are_decoded_only_while_wanted() -> None:
    """A solicitation is told with its verdict, its octets only to who wants them, other frames to nobody."""
    feed = Feed()
    assert not feed.packets
    plain, whole = feed.watch(Filter(packets=True)), feed.watch(Filter(packets=True, frames=True))
    assert feed.packets
    feed.packet("lan", "eth0", bytes(100), Verdict.NOT_ND)
    feed.packet("lan", "eth0", SOLICITATION, Verdict.NO_RULE)
    (told,) = entries(plain, bool)
    assert told["text"] == "fe80::1 asks for 2001:db8::5 (02:00:00:00:00:01 to 33:33:ff:00:00:05)"
    assert (told["verdict"], told["dropped"], told["group"], told["port"]) == ("no-rule", True, "lan", "eth0")
    assert (told["protocol"], told["source"], told["target"]) == ("nd", "fe80::1", "2001:db8::5")
    assert "frame" not in told
    (told,) = entries(whole, bool)
    assert bytes.fromhex(told["frame"]) == SOLICITATION[10:]
    whole.close()
    assert feed.packets
    plain.close()
    assert not feed.packets


def test_stuck_watcher_misses_and_hurts_nobody() -> None:
    """Twenty thousand events beside a watcher that takes none: publishing stays fast, the other watcher is
    told of all, and the stuck one of the first ones and of how many it missed."""
    feed = Feed()
    stuck, quick = feed.watch(Filter()), feed.watch(Filter())
    count = 20_000
    told: list[dict[str, Any]] = []
    reader = threading.Thread(
        target=lambda: told.extend(
            entries(quick, lambda told: bool(told) and told[-1]["text"] == f"no. {count - 1}")
        )
    )
    reader.start()
    longest = 0.0
    for number in range(count):
        begin = time.perf_counter()
        feed.event(event(number))
        longest = max(longest, time.perf_counter() - begin)
        if number % 100 == 99:
            time.sleep(0.02)  # 5,000 a second at most
    reader.join(PATIENCE)
    assert [entry["text"] for entry in told] == [f"no. {number}" for number in range(count)]
    assert longest < 0.5
    missed = entries(stuck, lambda told: bool(told) and told[-1]["kind"] == "missed")
    assert [entry["text"] for entry in missed[:-1]] == [f"no. {n}" for n in range(len(missed) - 1)]
    assert len(missed) - 1 + missed[-1]["count"] == count
    feed.event(event(count))
    assert texts(stuck, 1) == [f"no. {count}"], "it goes on where it takes again"
    stuck.close()
    quick.close()


def test_flood_of_packets_leaves_events_alone() -> None:
    """Packets that come faster than they are told are missing, in number; no event is, and who did not ask
    for packets hears nothing of it."""
    feed = Feed()
    events, packets = feed.watch(Filter()), feed.watch(Filter(packets=True))
    count = 50_000
    for _ in range(count):
        feed.packet("lan", "eth0", SOLICITATION, Verdict.ANSWERED)
    for number in range(10):
        feed.event(event(number))
    assert texts(events, 10) == [f"no. {number}" for number in range(10)]

    def seen(told: list[dict[str, Any]]) -> int:
        return sum(1 if entry["kind"] == "packet" else entry.get("count", 0) for entry in told)

    told = entries(packets, lambda told: seen(told) >= count)
    assert seen(told) == count
    assert any(entry["kind"] == "missed" and entry["what"] == "packets" for entry in told)
    events.close()
    packets.close()


def test_watchers_are_bounded() -> None:
    """Eight may watch; one more is refused, in words, and one that leaves makes room."""
    feed = Feed()
    watchers = [feed.watch(Filter()) for _ in range(8)]
    with pytest.raises(Refused, match="8 are watching already"):
        feed.watch(Filter())
    watchers.pop().close()
    watchers.append(feed.watch(Filter()))
    for watcher in watchers:
        watcher.close()


def test_nothing_runs_without_watchers() -> None:
    """The thread is there only while somebody watches, and is there again for the next."""

    def threads() -> int:
        return sum(thread.name == "feed" for thread in threading.enumerate())

    wait_for(lambda: threads() == 0, "the end of those of other tests")
    feed = Feed()
    for _ in range(3):
        feed.event(event())
        watcher = feed.watch(Filter())
        feed.event(event(7))
        assert texts(watcher, 1) == ["no. 7"], "not what was before"
        watcher.close()
    wait_for(lambda: threads() == 0, "the end of the feed's thread")
