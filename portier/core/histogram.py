"""How values spread: counted by size, as Prometheus counts them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple


class Histogram:
    """Counts values by the ``bounds`` that they do not exceed; the last count is of those beyond all.  One
    thread writes; others may read meanwhile, and may be one value behind."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds: Final = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


# Seconds from the first solicitation for a target to its being found.  Neighbors on a wire take less than a
# millisecond, those that sleep or sit behind a radio up to seconds; more than RetransTimer means a retry.
FOUND_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# Seconds that a worker is busy with one frame.
SERVED_BOUNDS: Final = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2)


class Tally(NamedTuple):
    """What an engine has done and knows, in numbers.  ``states`` are known hosts by state; ``late`` the
    answers that had to wait until their target was found, by port; ``found`` how long that took, ``failed``
    how often nobody was found; ``routes`` the host routes wanted, ``announcements`` the advertisements sent
    unasked."""

    states: Mapping[str, int]
    late: Mapping[str, int]
    found: Histogram
    failed: int
    routes: int
    announcements: int
