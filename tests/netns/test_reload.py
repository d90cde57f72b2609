"""The configuration is edited under the running daemon: by saving, by SIGHUP, by `portier reload`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.lab import ROOT, Host, Lab, Portier, holds_for, wait_for
from tests.netns.scenes import NET, config, guest, vps

GENERATOR = ROOT / "tests" / "bench" / "generator.c"


def by_rename(portier: Portier, text: str) -> None:
    """Save as most editors do."""
    portier.write(text)


def in_place(portier: Portier, text: str) -> None:
    """Save by writing into the file."""
    portier.config.write_text(text)


def by_symlink(portier: Portier, text: str) -> None:
    """Swap a symbolic link, as ConfigMaps and some Ansible roles do."""
    version = portier.config.with_name(f"version-{time.monotonic_ns()}")
    version.mkdir()
    (version / "portier.yaml").write_text(text)
    link = portier.config.with_name(".new")
    link.symlink_to(version / "portier.yaml")
    link.rename(portier.config)


def by_signal(portier: Portier, text: str) -> None:
    """Save, and send SIGHUP."""
    in_place(portier, text)
    portier.signal(signal.SIGHUP)


def by_command(portier: Portier, text: str) -> None:
    """Save, and run `portier reload`, which waits for the outcome."""
    in_place(portier, text)
    done = portier.reload()
    assert done.returncode == 0, done.stderr


WAYS = [by_rename, in_place, by_symlink, by_signal, by_command]
UNWATCHED = [by_signal, by_command]
TWO = f'["{NET}/64", "2001:db8:9::/64"]'


def taken(portier: Portier, group: str | None = None) -> bool:
    """Whether the second rule is in force."""
    return bool(portier.group(group)["rules"] == 2)


@pytest.mark.parametrize("way", WAYS)
def test_edit_is_taken(lab: Lab, way: Callable[[Portier, str], None]) -> None:
    """An edit is in force shortly after it is saved, and what was known stays known."""
    scene = vps(lab)
    portier = scene.start(config())
    assert scene.u.ping(guest(1))
    fds = portier.fds()
    for text in (config(TWO), config(), config(TWO)):
        way(portier, text)
        wait_for(lambda text=text: taken(portier) == (TWO in text), 5, "in force")  # type: ignore[misc]
        assert guest(1) in portier.neighbors()
    assert scene.p.host_routes() == {guest(1): "tap1"}
    wait_for(lambda: portier.fds() <= fds + 1, 5, "no descriptor leaked")


@pytest.mark.parametrize("way", UNWATCHED)
def test_edit_without_watching(lab: Lab, way: Callable[[Portier, str], None]) -> None:
    """With `watch: false` an edit waits for the word, and the status says that the file differs."""
    scene = vps(lab)
    portier = scene.start(config(head="watch: false"))
    in_place(portier, config(TWO, head="watch: false"))
    wait_for(lambda: portier.status()["config"]["differs"], 5, "the difference shown")
    assert not taken(portier)
    way(portier, config(TWO, head="watch: false"))
    wait_for(lambda: taken(portier), 5, "in force")
    assert not portier.status()["config"]["differs"]


def test_drop_in_comes_and_goes(lab: Lab) -> None:
    """Files in the drop-in directory join and leave, the directory itself included."""
    scene = vps(lab)
    portier = lab.portier(config(downstream="tap1"), on=scene.p)
    directory = portier.config.with_suffix(".d")
    text = config(name="more", upstream="", downstream="tap2")
    for _ in range(2):
        directory.mkdir()
        (directory / "50-more.yaml").write_text(text)
        wait_for(lambda: len(portier.status()["groups"]) == 2, 5, "the drop-in's group")
        portier.wait_ports("tap2", group="more")
        shutil.rmtree(directory)
        wait_for(lambda: len(portier.status()["groups"]) == 1, 5, "the drop-in's group gone")
    portier.wait_ports("eth0", "tap1")


BROKEN = {
    "syntax": config().replace("groups:", "groups: ["),
    "unknown key": config(extra="answr: always"),
    "type": config(extra="isolate: 7"),
    "prefix": config("[2001:db8:7::/65536]"),
    "empty": "",
    "garbage": "\0\1\2",
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_file_changes_nothing(lab: Lab, what: str) -> None:
    """The last good configuration stays in force; the error is shown with its place, and then forgotten."""
    scene = vps(lab)
    portier = scene.start(config())
    assert scene.u.ping(guest(1))
    generation = portier.generation()
    by_rename(portier, BROKEN[what])
    errors = wait_for(lambda: portier.status()["config"]["error"], 5, "the error shown")
    if what not in ("empty", "garbage"):
        assert all(f"{portier.config.name}:" in error for error in errors), errors
    assert any(error.split(":")[1].isdigit() for error in errors), errors
    assert portier.generation() == generation
    assert scene.p.host_routes() == {guest(1): "tap1"}
    assert scene.u.ping(guest(2))
    done = portier.reload()
    assert done.returncode == 78
    assert "Traceback" not in done.stderr
    assert portier.config.name in done.stderr
    assert not portier.status()["healthy"]
    by_rename(portier, config(TWO))
    wait_for(lambda: taken(portier), 5, "the next good one")
    assert portier.status()["config"]["error"] is None


def test_file_goes_and_returns(lab: Lab) -> None:
    """A file that is deleted is an error like any other."""
    scene = vps(lab)
    portier = scene.start(config())
    portier.config.unlink()
    wait_for(lambda: portier.status()["config"]["error"], 5, "the error shown")
    assert scene.u.ping(guest(1))
    portier.config.write_text(config(TWO))
    wait_for(lambda: taken(portier), 5, "in force")


def test_group_removed_and_added(lab: Lab) -> None:
    """A group that is edited out goes with its routes and policy rules; edited in, it works again."""
    scene = vps(lab)
    portier = scene.start(config())
    assert scene.u.ping(guest(1))
    by_rename(portier, "version: 1\ngroups: {}\n")
    wait_for(lambda: not portier.status()["groups"], 5, "no group")
    wait_for(lambda: not scene.p.host_routes(), 5, "no routes")
    wait_for(lambda: not [rule for rule in scene.p.rules() if rule.get("protocol") == "135"], 5, "no rules")
    by_rename(portier, config())
    portier.wait_ports("eth0", "tap1", "tap2")
    wait_for(lambda: scene.u.ping(guest(1), timeout=1), 5, "works again")


# -- the other groups do not notice --------------------------------------------------------------------


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paced sender, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the paced sender")
    if not GENERATOR.exists():
        pytest.skip("no source of the paced sender")
    program = tmp_path_factory.mktemp("generator") / "generator"
    subprocess.run([compiler, "-O2", "-o", str(program), str(GENERATOR)], check=True, timeout=120)
    return program


def many_rules(count: int, salt: int) -> str:
    """A group of its own with so many rules."""
    rules = ", ".join(f'"2001:db8:{salt:x}:{number:x}::/64"' for number in range(count))
    return config(f"[{rules}]", name="many", upstream="", downstream="tap2").partition("groups:\n")[2]


TARGETS = 10_000
PACED = f"""
limits: {{neighbors: {TARGETS * 2}, per_port: {TARGETS * 2}, per_host: {TARGETS * 2}, pending: {TARGETS},
         resolutions: 1000000, per_source: 1000000, route_changes: 1000000}}
timers: {{reachable: 1h}}
"""


def generate(host: Host, generator: Path, *args: str) -> subprocess.Popen[str]:
    """Start the generator on a host, about the many targets behind ``tap1``."""
    command = [str(generator), *args, "--first", f"{NET}1000", "--targets", str(TARGETS)]
    return host.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def outcome(process: subprocess.Popen[str]) -> dict[str, int]:
    """What the generator counted."""
    output, _ = process.communicate(timeout=60)
    result: dict[str, int] = json.loads(output.splitlines()[-1])
    return result


@pytest.mark.alone
def test_untouched_group_loses_nothing(lab: Lab, generator: Path) -> None:
    """While 10,000 rules of another group are reloaded, a group that was not touched answers every
    one of 10,000 solicitations a second, and keeps its neighbors."""
    scene = vps(lab)
    mine = config(downstream="tap1", extra=PACED)
    scene.daemon = portier = lab.portier(mine + many_rules(10_000, 1), on=scene.p)
    portier.wait_ports("eth0", "tap1", group="lan")
    source = scene.u.link_local("eth0")
    responder = generate(scene.guests[1], generator, "--respond", "eth0", "--seconds", "60")
    asking = ("--ask", "eth0", "--source", source)
    warmed = outcome(generate(scene.u, generator, *asking, "--once", "--window", "64", "--seconds", "40"))
    responder.kill()
    assert warmed["lost"] == 0, warmed
    known = len(portier.neighbors())
    assert known >= TARGETS

    sender = generate(scene.u, generator, *asking, "--rate", "10000", "--seconds", "10")
    time.sleep(1)
    generation, begin = portier.generation(), time.monotonic()
    portier.write(mine + many_rules(10_000, 2))
    wait_for(lambda: portier.generation() > generation, 30, "taken", interval=0.2)
    took = time.monotonic() - begin
    result = outcome(sender)

    assert took < 9, f"the reload must lie within the flood, and took {took} s"
    assert result["sent"] >= 90_000, result
    drops = sum(port["drops"] for port in portier.group("lan")["ports"])
    assert result["answered"] == result["sent"], f"{result}, socket drops {drops}, the reload took {took} s"
    assert len(portier.neighbors()) == known


def test_changed_group_keeps_its_neighbors(lab: Lab) -> None:
    """A group whose rules change keeps the hosts that are still allowed, and lets the others go."""
    scene = vps(lab)
    portier = scene.start(config())
    assert scene.u.ping(guest(1))
    assert scene.u.ping(guest(2))
    by_rename(portier, config(f'["{NET}/64", {{deny: "{guest(2)}/128"}}]'))
    wait_for(lambda: guest(2) not in scene.p.host_routes(), 5, "denied")
    holds_for(lambda: scene.p.host_routes() == {guest(1): "tap1"}, 1, "the other stays")
    assert guest(2) not in portier.neighbors()
