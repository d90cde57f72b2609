"""What happens, for those who watch: events, and on request each solicitation with its verdict.

Whoever publishes only appends to a bounded queue.  One thread, there only while somebody watches, puts what
is queued into words once for all and hands it on; it rests so much that it takes a quarter of a CPU at most,
because packet threads share the interpreter.  What does not fit, into its queue or into a watcher's, is
counted, and the watcher is told how much it missed, at the place where it is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final, Generic, NamedTuple, TypeVar

from portier.core.asked import asked, solicits
from portier.core.model import Event
from portier.core.outcome import Verdict
from portier.errors import Refused
from portier.runtime.events import event_facts

PACKET: Final = "packet"  # the kind of a solicitation, beside those of events

_MISSED: Final = "missed"
_QUEUED: Final = 4096  # events, and as many packets, that were not put into words yet
_BATCH: Final = 512
_LINES: Final = 4096  # that wait for one watcher,
_OCTETS: Final = 1 << 20  # and their octets
_WATCHERS: Final = 8
_GATHER: Final = 0.02  # seconds between batches at least, so that a flood is few writes
_REST: Final = 3.0  # times as long as a batch took

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a watcher wants to see.  Nothing named wants all; ``frames`` wants the octets of packets too."""

    groups: frozenset[str] = frozenset()
    ports: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    packets: bool = False
    frames: bool = False

    def wants(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry passes."""
        kind = entry["kind"]
        if kind == _MISSED:
            return self.packets or entry["what"] != "packets"
        if kind == PACKET and not self.packets:
            return False
        if self.kinds and kind not in self.kinds:
            return False
        if self.groups and entry.get("group") not in self.groups:
            return False
        if self.ports and entry.get("port") not in self.ports:
            return False
        return not self.networks or any(
            ip_address(said) in network
            for name in ("address", "source", "target")
            if (said := entry.get(name))
            for network in self.networks
        )


class _Packet(NamedTuple):
    group: str
    port: str
    frame: bytes
    verdict: Verdict


class _Gap(NamedTuple):
    """Stands for so many items that found no room."""

    lost: int


class _Queue(Generic[_T]):
    """Keeps so many items, and a gap in the place of those that found no room.  Not for two threads."""

    def __init__(self) -> None:
        self.items: deque[tuple[float, _T | _Gap]] = deque()
        self._lost = 0

    def put(self, when: float, item: _T) -> None:
        if len(self.items) >= _QUEUED:
            self._lost += 1
            return
        if self._lost:
            self.items.append((when, _Gap(self._lost)))
            self._lost = 0
        self.items.append((when, item))

    def batch(self) -> list[tuple[float, _T | _Gap]]:
        """Take the oldest; with them, when nothing comes behind it, the gap at the end."""
        taken = [self.items.popleft() for _ in range(min(_BATCH, len(self.items)))]
        if self._lost and not self.items:
            taken.append((time.time(), _Gap(self._lost)))
            self._lost = 0
        return taken


class Watcher:
    """One who watches.  `fileno` becomes readable when there is something to `take`; that and `close` are for
    one thread."""

    def __init__(self, feed: Feed, wanted: Filter) -> None:
        self.wanted = wanted
        self._feed = feed
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._octets = 0
        self._lost = 0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """What is waited for."""
        return self._bell

    def take(self) -> bytes:
        """All that is there, one JSON object a line."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
            lines, self._lines, self._octets = self._lines, [], 0
            if self._lost:
                lines.append(_encode(_missing(time.time(), "lines", self._lost)))
                self._lost = 0
        return b"".join(lines)

    def offer(self, lines: Iterable[bytes]) -> None:
        """Put lines in, as far as there is room."""
        with self._lock:
            if self._bell < 0:
                return
            for line in lines:
                if len(self._lines) >= _LINES or self._octets + len(line) > _OCTETS:
                    self._lost += 1
                    continue
                if self._lost:
                    self._lines.append(_encode(_missing(time.time(), "lines", self._lost)))
                    self._lost = 0
                self._lines.append(line)
                self._octets += len(line)
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Watch no more."""
        self._feed.leave(self)
        with self._lock:
            if self._bell >= 0:
                os.close(self._bell)
                self._bell = -1


class Feed:
    """Hands on what happens.  For any thread; publishing never waits.  ``packets`` says whether somebody
    wants them: who has some looks there first."""

    def __init__(self) -> None:
        self.packets = False
        self._watchers: tuple[Watcher, ...] = ()
        self._ready = threading.Condition()
        self._events: _Queue[Event] = _Queue()
        self._packets: _Queue[_Packet] = _Queue()
        self._running = False
        self._idle = False

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def watch(self, wanted: Filter) -> Watcher:
        """Begin to watch.  Raises `Refused` where enough do already."""
        with self._ready:
            if len(self._watchers) >= _WATCHERS:
                raise Refused(f"{_WATCHERS} are watching already: end one of those `portier watch` first")
            watcher = Watcher(self, wanted)
            if not self._running:
                threading.Thread(target=self._run, name="feed", daemon=True).start()
                self._running = True
            self._watchers = (*self._watchers, watcher)
            self.packets = self.packets or wanted.packets
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Have one watch no more."""
        with self._ready:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)
            self.packets = any(other.wanted.packets for other in self._watchers)
            self._ready.notify_all()

    def event(self, event: Event) -> None:
        """Publish an event."""
        if self._watchers:
            self._put(self._events, event)

    def packet(self, group: str, port: str, frame: bytes, verdict: Verdict) -> None:
        """Publish a frame, virtio-net header in front, if it is a solicitation."""
        if solicits(frame):
            self._put(self._packets, _Packet(group, port, frame, verdict))

    def _put(self, queue: _Queue[_T], item: _T) -> None:
        with self._ready:
            queue.put(time.time(), item)
            if self._idle:
                self._idle = False
                self._ready.notify_all()

    def _run(self) -> None:
        """Serve the watchers until there are none."""
        while True:
            with self._ready:
                while self._watchers and not (self._events.items or self._packets.items):
                    self._idle = True
                    self._ready.wait()
                if not self._watchers:
                    self._events, self._packets = _Queue(), _Queue()
                    self._running = False
                    return
                watchers = self._watchers
                events, packets = self._events.batch(), self._packets.batch()
            begin = time.thread_time()
            _hand_on([*_entries(events, "events"), *_entries(packets, "packets")], watchers)
            del events, packets, watchers
            time.sleep(max(_GATHER, _REST * (time.thread_time() - begin)))


def _entries(items: Iterable[tuple[float, Event | _Packet | _Gap]], what: str) -> Iterator[dict[str, Any]]:
    """Items in words."""
    for when, item in items:
        match item:
            case _Gap(lost):
                yield _missing(when, what, lost)
            case _Packet():
                yield _seen(when, item)
            case Event():
                yield event_facts(when, item)


def _seen(when: float, packet: _Packet) -> dict[str, Any]:
    what = asked(packet.frame)
    return {
        "time": when,
        "kind": PACKET,
        "text": str(what),
        "group": packet.group,
        "port": packet.port,
        "verdict": packet.verdict.label,
        "dropped": packet.verdict.dropped,
        **what._asdict(),
        "frame": packet.frame[10:].hex(),
    }


def _missing(when: float, what: str, count: int) -> dict[str, Any]:
    return {
        "time": when,
        "kind": _MISSED,
        "text": f"{count} {what} are missing here: there was no room for them",
        "what": what,
        "count": count,
    }


def _hand_on(entries: list[dict[str, Any]], watchers: Iterable[Watcher]) -> None:
    """Give each watcher what it wants, in the order of time."""
    entries.sort(key=lambda entry: entry["time"])
    whole: dict[int, bytes] = {}
    plain: dict[int, bytes] = {}
    for watcher in watchers:
        wanted = watcher.wanted
        lines, encode = (whole, _encode) if wanted.frames else (plain, _without_frame)
        mine = []
        for number, entry in enumerate(entries):
            if wanted.wants(entry):
                if number not in lines:
                    lines[number] = encode(entry)
                mine.append(lines[number])
        if mine:
            watcher.offer(mine)


def _encode(entry: Mapping[str, Any]) -> bytes:
    return json.dumps({"version": 1, **entry}).encode() + b"\n"


def _without_frame(entry: Mapping[str, Any]) -> bytes:
    return _encode({name: value for name, value in entry.items() if name != "frame"})
