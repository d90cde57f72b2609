"""The metrics page, read back by Prometheus' own parser."""

from __future__ import annotations

import math
from ipaddress import ip_network

from prometheus_client.parser import text_string_to_metric_families

from portier.core.engine import Service, Standing
from portier.core.histogram import FOUND_BOUNDS, SERVED_BOUNDS, Histogram, Tally
from portier.core.mld import Joined
from portier.core.model import Config, Group, Limits, Role, Rule
from portier.core.plan import GroupReport, PortReport
from portier.core.steps import StopWorker
from portier.runtime.metrics import Figures, page
from portier.runtime.reconcile import Round, Settings
from portier.runtime.supervisor import GroupStatus
from portier.runtime.worker import Wires

ODD = 'we"ird\\\udcff'
GROUP = Group(
    name="lan",
    upstream=("eth0", "eth1"),
    downstream=("tap0",),
    rules=(Rule(prefix=ip_network("2001:db8::/64")),),
    limits=Limits(neighbors=100, pending=10),
)


def spread(bounds: tuple[float, ...], *values: float) -> Histogram:
    """A histogram of these values."""
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    return histogram


def figures() -> Figures:
    """A daemon with one group, some of everything."""
    ports = (
        PortReport("eth0", Role.UPSTREAM, "active", "", 2),
        PortReport("tap0", Role.DOWNSTREAM, "active", "", 3),
        PortReport("tap1", Role.DOWNSTREAM, "waiting", "down", 4),
        PortReport(ODD, Role.DOWNSTREAM, "active", "", 5),
    )
    worker = GroupStatus(
        state="running",
        restarts=2,
        error="",
        wires=Wires({"eth0": 7}, 3, {"tap0": "busy"}, Joined(4, 1, "no"), spread(SERVED_BOUNDS, 2e-5)),
        counters={"eth0": {"answered": 5, "defended": 1, "no-rule": 9}, ODD: {"heard": 1}},
        neighbors=6,
        pending=2,
        standings=(Standing(3, Service.HOLD_DOWN, "", None, None, math.inf),),
    )
    tally = Tally(
        {"reachable": 4, "stale": 2}, {"eth0": 10}, spread(FOUND_BOUNDS, 0.002, 0.002, 9.0), 8, 6, 11
    )
    return Figures(
        version="1.2",
        started=1000.0,
        now=50.0,
        problems=2,
        settings=Settings(Config(groups=(GROUP,)), generation=3, loaded_at=20.0, refused=("no",)),
        rounds=12,
        failures=1,
        last=Round(pending=(StopWorker("x"),), errors=("a", "b"), seconds=0.25),
        groups=(GroupReport(GROUP, "eth0", ports, (), False, (), ()),),
        workers={"lan": worker},
        tallies={"lan": tally},
        events={"learned": 6, "loop": 0},
        watchers=1,
    )


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of a page."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_page_says_everything() -> None:
    """Every figure is on the page under its name and labels."""
    found = samples(page(figures()).decode())

    def value(name: str, **labels: str) -> float:
        return found[f"portier_{name}", frozenset(labels.items())]

    assert value("build_info", version="1.2") == 1
    assert value("start_time_seconds") == 1000
    assert (value("healthy"), value("problems")) == (0, 2)
    assert (value("config_generation"), value("config_age_seconds")) == (3, 30)
    assert (value("config_refused"), value("config_differs")) == (1, 0)
    assert (value("reconcile_rounds_total"), value("reconcile_failed_rounds_total")) == (12, 1)
    assert (value("reconcile_errors"), value("reconcile_pending_steps")) == (2, 1)
    assert value("reconcile_last_round_seconds") == 0.25
    assert value("events_total", kind="learned") == 6
    assert value("events_total", kind="loop") == 0, "what has not happened yet can be watched for"
    assert value("upstream_active", group="lan", upstream="eth0") == 1
    assert value("upstream_active", group="lan", upstream="eth1") == 0
    assert value("neighbors", group="lan", state="stale") == 2
    assert (value("neighbors_limit", group="lan"), value("pending_limit", group="lan")) == (100, 10)
    assert value("pending", group="lan") == 2
    assert (value("worker_up", group="lan"), value("worker_restarts_total", group="lan")) == (1, 2)
    assert value("unsent_frames_total", group="lan") == 3
    assert (value("multicast_groups", group="lan"), value("multicast_groups_refused", group="lan")) == (4, 1)
    assert (value("host_routes", group="lan"), value("announcements_total", group="lan")) == (6, 11)
    assert value("unfound_total", group="lan") == 8
    assert value("found_seconds_count", group="lan") == 3
    assert value("found_seconds_sum", group="lan") == 9.004
    assert value("found_seconds_bucket", group="lan", le="0.001") == 0
    assert value("found_seconds_bucket", group="lan", le="0.0025") == 2
    assert value("found_seconds_bucket", group="lan", le="5.0") == 2
    assert value("found_seconds_bucket", group="lan", le="+Inf") == 3
    assert value("frame_seconds_count", group="lan") == 1
    assert value("port_up", group="lan", port="eth0", role="upstream") == 1
    assert value("port_up", group="lan", port="tap0", role="downstream") == 0, "its socket has failed"
    assert value("port_up", group="lan", port="tap1", role="downstream") == 0
    assert value("frames_total", group="lan", port="eth0", verdict="no-rule") == 9
    assert value("answers_total", group="lan", port="eth0") == 16, "answered, defended, and found first"
    assert value("socket_drops_total", group="lan", port="eth0") == 7
    assert value("hold_down", group="lan", port="tap0") == 1
    assert value("watchers") == 1
    assert found["process_cpu_seconds_total", frozenset()] > 0


def test_odd_names_are_labels() -> None:
    """An interface may be called anything that is no text, and the page is one all the same."""
    found = samples(page(figures()).decode())
    odd = 'we"ird\\\\udcff'
    labels = frozenset({("group", "lan"), ("port", odd), ("verdict", "heard")})
    assert found["portier_frames_total", labels] == 1


def test_what_does_not_run_is_left_out() -> None:
    """A worker that waits for its restart has no figures but that; before the first round there is a page."""
    waiting = figures()._replace(
        workers={"lan": GroupStatus(state="restarting", restarts=1, error="a bug")}, tallies={}
    )
    found = samples(page(waiting).decode())
    assert found["portier_worker_up", frozenset({("group", "lan")})] == 0
    assert not any(name == "portier_frames_total" for name, _ in found)
    empty = figures()._replace(groups=(), workers={}, tallies={}, settings=Settings(Config()), last=Round())
    assert samples(page(empty).decode())["portier_reconcile_errors", frozenset()] == 0
