"""The commands that ask a daemon, against the real one in a namespace: what they say and how they end."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys

import pytest

from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import NET, Scene, config, guest, vps

BROKEN = "version: 1\ngroups:\n  lan:\n    upstraem: eth0\n    answer: perhaps\n"


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """One upstream host, the proxy with its daemon, two hosts behind it, one of them known."""
    made = vps(lab)
    made.start(config(f"[{NET}/64, {{deny: '{NET}dead/128'}}]"))
    assert wait_for(lambda: made.u.ping(guest(1), timeout=1), 5, "the first host answers")
    return made


def test_status_for_people_and_programs(scene: Scene) -> None:
    """A healthy daemon: exit 0, the verdict on the first line; --json is what the socket says."""
    done = scene.portier.cli("status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "portier is healthy"
    assert "tap2" in done.stdout
    told = json.loads(scene.portier.cli("status", "--json").stdout)
    assert told["version"] == 1
    assert told["groups"][0]["upstream"]["active"] == "eth0"


def test_watch_doubts_a_name_that_is_not_there(scene: Scene) -> None:
    """A group or port that there is not may come, or be misspelt: that is said at once, with those there are;
    the others are watched."""
    where = ["--runtime-dir", str(scene.portier.runtime)]
    watching = scene.p.popen(
        [sys.executable, "-m", "portier", "watch", *where, "--group", "lna", "--port", "eth0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stderr is not None
    assert select.select([watching.stderr], [], [], 30)[0]
    said = watching.stderr.readline()
    assert said == "portier watch: no group is called lna now (there is lan); waiting for it\n"
    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=30) == ("", "")


def test_status_of_a_degraded_daemon(scene: Scene) -> None:
    """Without a usable upstream: exit 3, and that is the first thing said."""
    scene.p.ip("link set eth0 down")

    def first_lines() -> list[str]:
        done = scene.portier.cli("status")
        lines = done.stdout.splitlines()[:2]
        return lines if done.returncode == 3 and "upstream" in lines[1] else []

    first, second = wait_for(first_lines, 10, "degraded for want of an upstream")
    assert first == "portier is degraded: 1 problem"
    assert second.startswith("! ")


def test_strict_counts_waiting_ports(scene: Scene) -> None:
    """A named port that is not there is healthy, and degraded with --strict, which names it."""
    scene.portier.write(config(downstream="[tap1, tap2, later0]"))
    wait_for(lambda: "later0" in scene.portier.ports(), 10, "the new port is known")
    assert scene.portier.cli("status").returncode == 0
    strict = scene.portier.cli("status", "--strict")
    assert strict.returncode == 3
    assert "! group lan: later0 is waiting" in strict.stdout


def test_neighbors(scene: Scene) -> None:
    """The known host stands in the table with its port and its route; --json has the same."""
    done = scene.portier.cli("neighbors")
    assert done.returncode == 0, done.stderr
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{guest(1)} ")]
    assert row[1:4] == ["lan", "tap1", scene.guests[1].mac("eth0")]
    assert row[-1] == "yes"
    told = json.loads(scene.portier.cli("neighbors", "--json").stdout)
    hosts = {host["address"]: host for host in told["neighbors"]}
    assert hosts[guest(1)]["port"] == "tap1"


def test_explain(scene: Scene) -> None:
    """Answered is 0, not answered is 1, and each step is a numbered line; --json has verdict and steps."""
    known = scene.portier.explain(guest(1))
    assert known.returncode == 0, known.stdout + known.stderr
    assert known.stdout.splitlines()[0].startswith("1. ")
    denied = scene.portier.explain(f"{NET}dead")
    assert denied.returncode == 1
    assert "den" in denied.stdout
    told = json.loads(scene.portier.cli("explain", f"{NET}dead", "--json").stdout)
    assert told["answered"] is False
    assert told["verdict"] == "denied"
    assert scene.portier.explain(guest(1), on="nonsense0").returncode == 1
    assert "no rule allows it" in scene.portier.explain("192.0.2.1").stdout
    assert scene.portier.explain("192.0.2").returncode == 64
    assert scene.portier.explain("hello").returncode == 64


def test_reload_tells_the_outcome(scene: Scene) -> None:
    """A good file: 0, with the steps. A broken one: 78, every error with its place, and the daemon goes
    on with the last good one and says that the file is refused."""
    portier = scene.portier
    portier.write(config("[2001:db8:77::/64]", head="watch: false"))
    done = portier.reload()
    assert done.returncode == 0, done.stderr
    assert portier.reload().stdout == "nothing to change\n"
    portier.write(BROKEN)
    refused = portier.reload()
    assert refused.returncode == 78
    lines = refused.stderr.splitlines()
    assert [line.rpartition(".yaml")[2].split(":")[1] for line in lines] == ["4", "5"]
    status = portier.cli("status")
    assert status.returncode == 3
    assert "refused" in status.stdout
    assert "2 problems" in status.stdout


def test_plan(scene: Scene) -> None:
    """Nothing to do is 0; with another file on disk that nobody has applied it is 2 and the steps; with a
    broken one 78 and the errors."""
    portier = scene.portier
    portier.write(config(head="watch: false"))
    assert portier.reload().returncode == 0
    done = portier.cli("plan")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing to do\n")
    portier.write(config(head="watch: false", downstream="tap1"))
    done = portier.cli("plan")
    assert done.returncode == 2
    assert done.stdout.startswith("~ worker lan: -tap2")
    assert "without" not in done.stderr
    told = json.loads(portier.cli("plan", "--json").stdout)
    assert told["steps"] == done.stdout.splitlines()
    assert told["daemon"] is True
    portier.write(BROKEN)
    done = portier.cli("plan")
    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 2


def test_one_daemon_a_namespace(scene: Scene) -> None:
    """A second daemon, and cleanup, are refused while one runs, whatever their runtime dir."""
    for command in (["run"], ["cleanup"], ["cleanup", "--runtime-dir", "/tmp/elsewhere"]):
        done = scene.portier.cli(*command)
        assert done.returncode == 1, done.stderr
        assert str(scene.portier.pid) in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert scene.portier.cli("status").returncode == 0


def test_after_a_kill(scene: Scene) -> None:
    """After kill -9 status says that none runs (4), plan does without it and says so, and cleanup prints
    what it undoes; twice is once."""
    portier = scene.portier
    portier.kill9()
    status = portier.cli("status")
    assert status.returncode == 4
    assert "portier run" in status.stderr
    plan = portier.cli("plan")
    assert "no daemon runs" in plan.stderr
    done = portier.cli("cleanup")
    assert done.returncode == 0, done.stderr
    assert f"- route {guest(1)}/128 dev tap1" in done.stdout.splitlines()
    assert portier.cli("cleanup").stdout == "nothing to clean up\n"


def test_check_knows_the_machine(scene: Scene) -> None:
    """An `always` rule that overlaps what is on-link upstream, here, is a warning of check; on a machine
    without that upstream it is none."""
    scene.portier.write(config(f"[{{allow: '{NET}/80', answer: always}}]"))
    here = scene.portier.cli("check")
    assert here.returncode == 0, here.stderr
    assert "group lan: `always` for 2001:db8:7::/80 overlaps 2001:db8:7::/64" in " ".join(here.stdout.split())
    elsewhere = scene.u.run(
        [sys.executable, "-m", "portier", "check", "-c", str(scene.portier.config)], timeout=60
    )
    assert "overlaps" in elsewhere.stdout  # it has an eth0 in that prefix as well
    scene.u.ip("link set eth0 name wan0")
    elsewhere = scene.u.run(
        [sys.executable, "-m", "portier", "check", "-c", str(scene.portier.config)], timeout=60
    )
    assert elsewhere.returncode == 0
    assert "overlaps" not in elsewhere.stdout


def test_broken_config_at_start(lab: Lab) -> None:
    """The first load decides: 78, every error on stderr, nothing touched."""
    host = lab.host("p")
    portier = lab.portier(BROKEN, on=host, wait=False)
    assert wait_for(lambda: not portier.running, 20, "it ends")
    lines = portier.log.read_text().splitlines()
    assert [line.rpartition(".yaml")[2].split(":")[1] for line in lines] == ["4", "5"]
    assert portier.cli("run").returncode == 78
    portier.kill9()  # its end with 78 was meant


def test_sighup_and_sigusr1(scene: Scene) -> None:
    """SIGHUP reloads, SIGUSR1 writes the status to the log; neither ends it."""
    portier = scene.portier
    portier.write(config("[2001:db8:77::/64]", head="watch: false"))
    assert portier.reload().returncode == 0
    before = portier.generation()
    portier.write(config("[2001:db8:78::/64]", head="watch: false"))
    portier.signal(signal.SIGHUP)
    wait_for(lambda: portier.generation() == before + 1, 10, "the new file is in force")
    portier.signal(signal.SIGUSR1)
    wait_for(lambda: "group lan: upstream eth0" in portier.log.read_text(), 10, "the status is in the log")
