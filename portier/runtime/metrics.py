"""The metrics page: what the daemon knows of itself, in Prometheus' text format.

Nothing here is counted on the way of a frame: the engines' own counters are read when somebody asks.  What
takes time is measured where it costs nothing: how long hosts take to be found, once a host (see
`portier.core.histogram`), and how long a worker is busy with a frame, for one batch in 64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from portier.core.engine import Service
from portier.core.histogram import Histogram, Tally
from portier.core.plan import GroupReport
from portier.runtime.facts import answers
from portier.runtime.reconcile import Round, Settings
from portier.runtime.supervisor import GroupStatus

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Figures(NamedTuple):
    """What a page is made of.  ``started`` is seconds since 1970, ``now`` and the times in ``settings`` are
    monotonic; ``failures`` are rounds that ended with errors."""

    version: str
    started: float
    now: float
    problems: int
    settings: Settings
    rounds: int
    failures: int
    last: Round
    groups: tuple[GroupReport, ...]
    workers: Mapping[str, GroupStatus]
    tallies: Mapping[str, Tally]
    events: Mapping[str, int]
    watchers: int


def page(figures: Figures) -> bytes:
    """The whole page."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Collector(figures))
    return generate_latest(registry)


class _Collector:
    """What prometheus_client asks for families."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Tell of nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from _process(self._figures)
        yield from _groups(self._figures)
        yield from _ports(self._figures)


def _process(figures: Figures) -> Iterator[Metric]:
    settings, last = figures.settings, figures.last
    yield _gauge("build_info", "Which version runs.", ["version"], [([figures.version], 1)])
    for name, what, value in (
        ("start_time_seconds", "When the daemon started, in seconds since 1970.", figures.started),
        ("healthy", "1 if `portier status` says healthy, 0 if degraded.", figures.problems == 0),
        ("problems", "How many problems `portier status` shows.", figures.problems),
        ("config_generation", "Configurations taken since the start.", settings.generation),
        (
            "config_age_seconds",
            "Since the configuration in force was loaded.",
            figures.now - settings.loaded_at,
        ),
        ("config_refused", "1 if the configuration on disk is refused.", bool(settings.refused)),
        (
            "config_differs",
            "1 if the configuration on disk is good but not applied (watch: false).",
            settings.differs,
        ),
        ("reconcile_pending_steps", "Steps that the last round left to do.", len(last.pending)),
        ("reconcile_errors", "Errors of the last round.", len(last.errors)),
        ("reconcile_last_round_seconds", "How long the last round took.", last.seconds),
        ("watchers", "How many watch events.", figures.watchers),
    ):
        yield _gauge(name, what, [], [([], value)])
    yield _counter("reconcile_rounds", "Looks at the kernel, and what followed.", [], [([], figures.rounds)])
    yield _counter("reconcile_failed_rounds", "Rounds that ended with errors.", [], [([], figures.failures)])
    yield _counter(
        "events", "Events, by kind.", ["kind"], [([kind], count) for kind, count in figures.events.items()]
    )


def _groups(figures: Figures) -> Iterator[Metric]:
    group = ["group"]
    groups = [of.group for of in figures.groups]
    workers = [(name, worker) for name, worker in figures.workers.items()]
    tallies = [(name, tally) for name, tally in figures.tallies.items()]
    yield _gauge(
        "upstream_active",
        "1 for the upstream in use, 0 for the other candidates.",
        ["group", "upstream"],
        [([of.group.name, name], name == of.active) for of in figures.groups for name in of.group.upstream],
    )
    yield _gauge(
        "neighbors",
        "Hosts known, by state.",
        ["group", "state"],
        [([name, state], count) for name, tally in tallies for state, count in tally.states.items()],
    )
    yield _gauge(
        "neighbors_limit", "limits.neighbors.", group, [([of.name], of.limits.neighbors) for of in groups]
    )
    yield _gauge(
        "pending", "Targets being asked for.", group, [([name], worker.pending) for name, worker in workers]
    )
    yield _gauge("pending_limit", "limits.pending.", group, [([of.name], of.limits.pending) for of in groups])
    yield _gauge(
        "worker_up",
        "1 while the group's worker runs.",
        group,
        [([name], worker.state == "running") for name, worker in workers],
    )
    yield _counter(
        "worker_restarts",
        "Restarts of the group's worker after a crash.",
        group,
        [([name], worker.restarts) for name, worker in workers],
    )
    yield _counter(
        "unsent_frames",
        "Frames that no link took.",
        group,
        [([name], worker.wires.unsent) for name, worker in workers],
    )
    yield _gauge(
        "multicast_groups",
        "Multicast groups joined.",
        group,
        [([name], worker.wires.joined.members) for name, worker in workers],
    )
    yield _gauge(
        "multicast_groups_refused",
        "Multicast groups that the kernel did not let be joined.",
        group,
        [([name], worker.wires.joined.refused) for name, worker in workers],
    )
    yield _gauge("host_routes", "Host routes wanted.", group, [([name], of.routes) for name, of in tallies])
    yield _counter(
        "announcements",
        "Advertisements sent unasked, for hosts learned or moved.",
        group,
        [([name], tally.announcements) for name, tally in tallies],
    )
    yield _counter(
        "unfound",
        "Targets that were asked for, and nobody answered.",
        group,
        [([name], tally.failed) for name, tally in tallies],
    )
    yield _histogram(
        "found_seconds",
        "From the first solicitation for a target until it was found, and those who waited were answered.",
        [(name, tally.found) for name, tally in tallies],
    )
    yield _histogram(
        "frame_seconds",
        "How long the worker was busy with a frame, from taking it to having sent what came of it: the mean "
        "of a batch, for one batch in 64.",
        [(name, worker.wires.served) for name, worker in workers],
    )


def _ports(figures: Figures) -> Iterator[Metric]:
    port = ["group", "port"]
    workers = figures.workers
    yield _gauge(
        "port_up",
        "1 for a port in use, 0 for one that waits.",
        ["group", "port", "role"],
        [
            (
                [of.group.name, this.name, this.role.value],
                this.state == "active" and not _fault(of, this.name, workers),
            )
            for of in figures.groups
            for this in of.ports
        ],
    )
    yield _counter(
        "frames",
        "Frames judged, by verdict.",
        ["group", "port", "verdict"],
        [
            ([name, this, verdict], count)
            for name, worker in workers.items()
            for this, counts in worker.counters.items()
            for verdict, count in counts.items()
        ],
    )
    yield _counter(
        "answers",
        "Answers sent: at once, in defence of an address, and as soon as the target was found.",
        port,
        [
            ([name, this], answers(this, worker, figures.tallies.get(name)))
            for name, worker in workers.items()
            for this in worker.counters
        ],
    )
    yield _counter(
        "socket_drops",
        "Frames lost because they were not read in time.",
        port,
        [
            ([name, this], count)
            for name, worker in workers.items()
            for this, count in worker.wires.drops.items()
        ],
    )
    names = {(of.group.name, this.ifindex): this.name for of in figures.groups for this in of.ports}
    yield _gauge(
        "hold_down",
        "1 while a port of mode relay is in hold-down.",
        port,
        [
            ([name, names[name, standing.ifindex]], standing.service is Service.HOLD_DOWN)
            for name, worker in workers.items()
            for standing in worker.standings
            if (name, standing.ifindex) in names
        ],
    )


def _fault(of: GroupReport, port: str, workers: Mapping[str, GroupStatus]) -> bool:
    worker = workers.get(of.group.name)
    return worker is None or port in worker.wires.faults


_Samples = Iterable[tuple[list[str], float]]


def _gauge(name: str, what: str, labels: list[str], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(f"portier_{name}", what, labels=labels)
    return _filled(family, samples)


def _counter(name: str, what: str, labels: list[str], samples: _Samples) -> Metric:
    family = CounterMetricFamily(f"portier_{name}", what, labels=labels)
    return _filled(family, samples)


def _filled(family: Any, samples: _Samples) -> Metric:
    for labels, value in samples:
        family.add_metric(list(map(_label, labels)), float(value))
    filled: Metric = family
    return filled


def _histogram(name: str, what: str, samples: Iterable[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(f"portier_{name}", what, labels=["group"])
    for group, histogram in samples:
        buckets, count = [], 0
        for bound, more in zip((*map(str, histogram.bounds), "+Inf"), list(histogram.counts), strict=True):
            count += more
            buckets.append((bound, count))
        family.add_metric([_label(group)], buckets, histogram.total)
    return family


def _label(value: str) -> str:
    """A label that can be encoded, whatever an interface is called."""
    return value.encode(errors="backslashreplace").decode()
