"""Metrics of a real daemon: what the dashboard and the alerts ask for is there, on the socket and by TCP."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.netns.lab import Host, Portier, UnixConnection, wait_for
from tests.netns.scenes import NET, Scene, config, guest, vps

PACKAGING = Path(__file__).parent.parent.parent / "packaging"
PATIENCE = 10.0
HERE = "metrics: {listen: 127.0.0.1:9846}"
_STRING = re.compile(r'"[^"]*"')
_METRIC = re.compile(r"\b(?:portier|process)_\w+")

FETCH = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=5) as answer:
    print(answer.status, answer.headers["Content-Type"])
    print(answer.read().decode())
"""


@pytest.fixture
def scene(lab: Any) -> Scene:
    """The usual scene, without a daemon yet."""
    made = vps(lab, guests=1)
    made.p.ip("link set lo up")
    return made


def page(portier: Portier) -> str:
    """The page on the control socket."""
    connection = UnixConnection(portier.runtime / "control.sock", 20.0)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("Content-Type", "").startswith("text/plain; version=")
        return response.read().decode()
    finally:
        connection.close()


def values(text: str) -> dict[tuple[str, str], float]:
    """The samples of a page, summed up by name and whatever else tells them apart but the group."""
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            told = " ".join(value for name, value in sample.labels.items() if name not in {"group", "le"})
            key = sample.name, told
            found[key] = found.get(key, 0) + sample.value
    return found


def by_tcp(host: Host, where: str) -> str | None:
    """The page as anybody on the host gets it, None where nobody listens."""
    done = host.run(["python3", "-c", FETCH, f"http://{where}/metrics"], check=False)
    return str(done.stdout) if done.returncode == 0 else None


def asked(expressions: list[str]) -> set[str]:
    """The metrics that expressions name."""
    return {name for text in expressions for name in _METRIC.findall(_STRING.sub("", text))}


def test_metrics_tell_what_happened(scene: Scene) -> None:
    """After a cold ping: an answer, a host found and how long that took, a route, an event."""
    portier = scene.start(config())
    before = values(page(portier))
    assert before["portier_healthy", ""] == 1
    assert before["portier_config_generation", ""] == 1
    assert before["portier_worker_up", ""] == 1
    assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the host answers")
    after = values(page(portier))
    assert after["portier_answers_total", "eth0"] > before["portier_answers_total", "eth0"]
    assert after["portier_found_seconds_count", ""] >= 1
    assert 0 < after["portier_found_seconds_sum", ""] < PATIENCE
    assert after["portier_neighbors", "reachable"] >= 1
    assert after["portier_host_routes", ""] >= 1
    assert after["portier_events_total", "learned"] >= 1
    assert after["portier_frames_total", "eth0 resolving"] >= 1
    for number in range(70):  # one batch in 64 is measured
        scene.u.ping(f"{NET}dead:{number:x}", timeout=0.01)
    wait_for(lambda: values(page(portier))["portier_frame_seconds_count", ""], PATIENCE, "a measured batch")
    portier.write(config(extra="anser: always"))
    wait_for(lambda: values(page(portier))["portier_config_refused", ""], PATIENCE, "the refusal on the page")
    assert values(page(portier))["portier_healthy", ""] == 0


def test_queries_find_their_metrics(scene: Scene) -> None:
    """Every metric that the dashboard or an alert names is on the page of a running daemon; those of mode
    relay on that of one in mode relay."""
    dashboard = json.loads((PACKAGING / "grafana" / "portier.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries += [
        variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable
    ]
    rules = yaml.safe_load((PACKAGING / "prometheus" / "portier.rules.yml").read_text(encoding="utf-8"))
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    portier = scene.start(config())
    assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the host answers")
    there = {name for name, _ in values(page(portier))}
    relay = "portier_hold_down"
    assert asked(queries) - there == {relay}
    assert relay in page(portier)
    exported = {name for name in there if name.startswith("portier_")}
    unused = exported - asked(queries)
    assert not {name for name in unused if not name.endswith(("_created", "_count", "_sum"))}, "no query asks"
    portier.write("version: 1\ngroups: {lan: {upstream: eth0, downstream: [tap1], mode: relay}}\n")
    wait_for(lambda: (relay, "eth0") in values(page(portier)), PATIENCE, "the part that ports take")


def test_metrics_by_tcp(scene: Scene) -> None:
    """Where the configuration says, and nothing but the metrics; a reload moves the listener, or ends it."""
    portier = scene.start(config(head=HERE))
    told = wait_for(lambda: by_tcp(scene.p, "127.0.0.1:9846"), PATIENCE, "metrics by TCP")
    assert told.startswith("200 text/plain; version=")
    assert values(told.partition("\n")[2])["portier_healthy", ""] == 1
    for path in ("v1/status", "v1/reload", ""):
        done = scene.p.run(["python3", "-c", FETCH, f"http://127.0.0.1:9846/{path}"], check=False)
        assert "404" in done.stderr
    portier.write(config(head='metrics: {listen: "[::1]:9847"}'))
    wait_for(lambda: by_tcp(scene.p, "[::1]:9847"), PATIENCE, "the listener has moved")
    assert by_tcp(scene.p, "127.0.0.1:9846") is None
    portier.write(config())
    wait_for(lambda: by_tcp(scene.p, "[::1]:9847") is None, PATIENCE, "the listener has gone")
    assert portier.status()["healthy"]


def test_port_in_use_degrades(scene: Scene) -> None:
    """Somebody has the port: the daemon starts, answers, is degraded and says why; when the port is free it
    listens there."""
    take = "import socket, time; s = socket.create_server(('127.0.0.1', 9846)); time.sleep(99)"
    thief = scene.p.popen(["python3", "-c", take])
    try:
        wait_for(lambda: "9846" in scene.p.run(["ss", "-ltn"]).stdout, PATIENCE, "the port is taken")
        portier = scene.start(config(head=HERE))
        assert wait_for(lambda: scene.u.ping(guest(1), timeout=1), PATIENCE, "the host answers")
        problems = wait_for(lambda: portier.status()["problems"], PATIENCE, "degraded")
        assert problems == ["metrics are not served on 127.0.0.1:9846: Address already in use"]
        assert values(page(portier))["portier_problems", ""] == 1
    finally:
        thief.kill()
        thief.wait(PATIENCE)
    wait_for(lambda: by_tcp(scene.p, "127.0.0.1:9846"), 30.0, "the port is taken back")
    assert portier.status()["healthy"]
