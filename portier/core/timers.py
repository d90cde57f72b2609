"""What needs attention when: a heap of timers that are moved far more often than they fire."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Generator, Iterable
from typing import Final, Generic, TypeVar

# Timers that nobody waits for any more are cleared away when there are this many, or four times the live.
_STALE: Final = 1024


class Timed:
    """Something that needs attention at the monotonic second ``due``, infinity for never.  The other two
    say when the heap will bring it up."""

    __slots__ = ("backstop", "due", "queued")

    def __init__(self) -> None:
        self.due = math.inf
        self.queued = math.inf
        self.backstop = math.inf


ItemT = TypeVar("ItemT", bound=Timed)


class Timers(Generic[ItemT]):
    """Brings up items when they are due.  ``deadline`` is when to look next, infinity when never; `live`
    gives the collections of all items that still matter; it is asked often."""

    __slots__ = ("_heap", "_live", "_serial", "deadline")

    def __init__(self, live: Callable[[], Iterable[Collection[ItemT]]]) -> None:
        self.deadline = math.inf
        self._live = live
        self._heap: list[tuple[float, int, ItemT]] = []
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def schedule(self, item: ItemT, due: float) -> None:
        """Bring `item` up at `due`, and not before.  An entry of the heap that is there already, for later,
        serves again once this one is done."""
        item.due = due
        if due < item.queued:
            item.backstop = min(item.backstop, item.queued)
            item.queued = due
            heapq.heappush(self._heap, (due, next(self._serial), item))
            self.deadline = min(self.deadline, due)
            if len(self._heap) > _STALE + 4 * sum(map(len, self._live())):
                self._clear()

    def due(self, now: float, most: int) -> Generator[ItemT, None, None]:
        """Those that are due at `now`, as long as the caller takes them, at most `most` looks.  ``deadline``
        is right again when the iteration has ended or was closed."""
        heap = self._heap
        try:
            for _ in range(most):
                if not heap or heap[0][0] > now:
                    break
                when, _, item = heapq.heappop(heap)
                if when != item.queued:
                    continue  # brought up earlier, by another entry of the heap
                item.queued, item.backstop = item.backstop, math.inf
                if item.due <= now:
                    yield item
                elif item.due < math.inf:
                    self.schedule(item, item.due)
        finally:
            self.deadline = heap[0][0] if heap else math.inf

    def _clear(self) -> None:
        """Keep the timers of what is still there, one each."""
        items = [item for some in self._live() for item in some]
        self._heap[:] = [(item.due, next(self._serial), item) for item in items if item.due < math.inf]
        heapq.heapify(self._heap)
        for item in items:
            item.queued, item.backstop = item.due, math.inf
