"""What happens, for people: the log, and the last events for `status`.

A flood on the wire must not become a flood in the log: each kind of event logs so many lines a minute, the
rest as a count.  Nothing here decides what an event is.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from portier.core.model import Event, EventKind

_LINES: Final = 30  # a minute, of each kind
_MINUTE: Final = 60.0
_KEPT: Final = 50

_LEVELS: Final = {
    EventKind.CONFLICT: logging.WARNING,
    EventKind.CLAIM: logging.WARNING,
    EventKind.LOOP: logging.WARNING,
    EventKind.LIMIT: logging.WARNING,
    EventKind.SYSCTL: logging.WARNING,
    EventKind.WORKER: logging.WARNING,
}

log = logging.getLogger("portier.event")


def event_facts(when: float, event: Event) -> dict[str, Any]:
    """An event for programs; ``when`` is seconds since 1970."""
    about = {"group": event.group, "port": event.port, "address": event.address}
    said = {"time": when, "kind": event.kind.value, "text": event.text}
    return said | {name: value for name, value in about.items() if value}


class _Minute:
    """What one kind of event has used of its minute."""

    __slots__ = ("began", "dropped", "lines")

    def __init__(self, began: float) -> None:
        self.began = began
        self.lines = 0
        self.dropped = 0


class EventLog:
    """Logs events within bounds and keeps the last ones.  For any thread.

    ``wake`` is called when `flush` has become due at some time: at ``due``, on the clock given.
    """

    def __init__(self, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self._clock = clock
        self._wake = wake
        self._lock = threading.Lock()
        self._minutes: dict[EventKind, _Minute] = {}
        self._recent: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._counts = dict.fromkeys(EventKind, 0)

    def emit(self, event: Event) -> None:
        """Log an event, or count it."""
        now = self._clock()
        with self._lock:
            self._recent.append(event_facts(time.time(), event))
            self._counts[event.kind] += 1
            minute = self._minutes.get(event.kind)
            if minute is None or now - minute.began >= _MINUTE:
                self._summarize(event.kind, minute)
                minute = self._minutes[event.kind] = _Minute(now)
            if minute.lines >= _LINES:
                minute.dropped += 1
                if minute.dropped > 1:
                    return
            else:
                minute.lines += 1
                level = _LEVELS.get(event.kind, logging.INFO)
                log.log(level, "%s: %s", event.kind, event.text, extra={"event": event})
                return
        self._wake()

    def recent(self) -> list[dict[str, Any]]:
        """The last events, oldest first."""
        with self._lock:
            return list(self._recent)

    def counts(self) -> dict[str, int]:
        """How many there were of each kind."""
        with self._lock:
            return {kind.value: count for kind, count in self._counts.items()}

    @property
    def due(self) -> float:
        """When `flush` has something to say, infinite when it has not."""
        with self._lock:
            ends = (m.began + _MINUTE for m in self._minutes.values() if m.dropped)
            return min(ends, default=math.inf)

    def flush(self) -> None:
        """Log the counts of the minutes that are over."""
        now = self._clock()
        with self._lock:
            for kind, minute in list(self._minutes.items()):
                if now - minute.began >= _MINUTE:
                    self._summarize(kind, minute)
                    del self._minutes[kind]

    def _summarize(self, kind: EventKind, minute: _Minute | None) -> None:
        if minute is not None and minute.dropped:
            log.log(
                _LEVELS.get(kind, logging.INFO),
                "%s: %d more within the minute, not shown",
                kind,
                minute.dropped,
            )
