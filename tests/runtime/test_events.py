"""Events: logged within bounds, the last ones kept."""

from __future__ import annotations

import logging
import math

import pytest

from portier.core.model import Event, EventKind
from portier.runtime.events import EventLog
from tests.fakes import FakeClock


class Desk:
    """An event log, its clock, and how often it asked for attention."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.woken = 0
        self.log = EventLog(self.clock, self.wake)

    def wake(self) -> None:
        self.woken += 1

    def flood(self, kind: EventKind, number: int) -> None:
        for i in range(number):
            self.log.emit(Event(kind=kind, text=f"no. {i}"))


@pytest.fixture
def desk(caplog: pytest.LogCaptureFixture) -> Desk:
    caplog.set_level(logging.INFO, "portier.event")
    return Desk()


def test_each_kind_has_its_lines_a_minute(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A flood of one kind logs thirty lines a minute, the rest as a count, and silences no other kind."""
    desk.flood(EventKind.CLAIM, 1000)
    desk.flood(EventKind.LEARNED, 1)
    assert len(caplog.messages) == 31
    assert desk.log.due == desk.clock() + 60.0
    assert desk.woken == 1, "the flood wakes nobody a thousand times"
    desk.clock.advance(60.0)
    desk.log.flush()
    assert caplog.messages[-1] == "claim: 970 more within the minute, not shown"
    assert desk.log.due == math.inf


def test_next_minute_starts_anew(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """An event after the minute is logged, behind the count of those before it."""
    desk.flood(EventKind.LOOP, 40)
    desk.clock.advance(61.0)
    desk.flood(EventKind.LOOP, 1)
    assert caplog.messages[-2:] == ["loop: 10 more within the minute, not shown", "loop: no. 0"]


def test_last_events_are_kept(desk: Desk) -> None:
    """The last fifty are kept for `status`, whether they were logged or not."""
    desk.flood(EventKind.LOST, 200)
    assert [event["text"] for event in desk.log.recent()] == [f"no. {i}" for i in range(150, 200)]


def test_trouble_is_a_warning(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """What somebody should look at has another level than the daily round."""
    desk.flood(EventKind.CONFLICT, 1)
    desk.flood(EventKind.LEARNED, 1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
