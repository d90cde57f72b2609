"""The Debian package, from a clean root to its purge."""

from __future__ import annotations

import itertools
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.booted.machine import Machine, Root, execute
from tests.netns.lab import Lab, wait_for
from tests.netns.scenes import Scene, config, guest, vps

CONFIG = "/etc/portier.yaml"
INSTALL = ["apt-get", "-qq", "-y", "--no-install-recommends", "install"]
# What changes on any running machine, and what dpkg and apt remember of a package that is gone.
CHANGING = (
    "/dev",
    "/proc",
    "/sys",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/log",
    "/run/systemd",
    "/run/log",
)


def test_lintian_finds_nothing(package: Path) -> None:
    """Neither errors nor warnings but those that the package overrides, with its reasons."""
    if shutil.which("lintian") is None:
        pytest.skip("no lintian here: Debian has it in lintian")
    done = execute(
        ["lintian", "--allow-root", "--fail-on", "error,warning", str(package)], check=True, timeout=120
    )
    assert done.stdout == ""


@pytest.mark.parametrize("clean_root", ["bookworm", "trixie"], indirect=True)
def test_clean_debian_takes_the_package(clean_root: Root, package: Path) -> None:
    """With Debian's own libraries alone; every example is valid; manual pages and completions are there."""
    clean_root.install(package)
    assert clean_root.run(["dpkg", "--verify", "portier"]).stdout == ""
    files = clean_root.run(["dpkg", "-L", "portier"]).stdout.split()
    assert all(file == "/." or file.startswith("/usr") for file in files), "Debian 13 allows no others"
    assert (
        "/site-packages/"
        not in clean_root.run(["python3", "-c", "import portier.daemon, sys; print(sys.path)"]).stdout
    )
    checks = (
        'cd /usr/share/doc/portier/examples; for file in *.yaml *.toml; do echo "$file"; cp "$file" /tmp; '
    )
    checks += 'portier check -c "/tmp/$file"; rm "/tmp/$file"; done'
    said = clean_root.run(["sh", "-ec", checks]).stdout
    assert said.count(": valid, ") == len(list(Path("examples").iterdir())), said
    assert '"title"' in clean_root.run(["portier", "schema", "status"]).stdout
    for file in (
        "man/man8/portier.8.gz",
        "man/man5/portier.yaml.5.gz",
        "man/man7/portier-situations.7.gz",
        "bash-completion/completions/portier",
        "zsh/vendor-completions/_portier",
        "fish/vendor_completions.d/portier.fish",
    ):
        assert clean_root.run(["dpkg", "-S", f"/usr/share/{file}"], check=False).returncode == 0, file


def snapshot(machine: Machine) -> dict[str, str]:
    """Every file of a machine with its kind, mode and owner; users and groups; what the kernel has."""
    prune = " -o ".join(f"-path {path}" for path in CHANGING)
    listing = machine.run(["sh", "-c", rf"find / \( {prune} \) -prune -o -printf '%p\t%y %m %u %g\n'"]).stdout
    files = dict(line.split("\t") for line in listing.splitlines())
    # Their backups, made by whoever changed them last.
    for name in ("passwd", "group", "shadow", "gshadow"):
        files.pop(f"/etc/{name}-", None)
        for line in machine.read(f"/etc/{name}").splitlines():
            files[f"/etc/{name}: {line.partition(':')[0]}"] = "entry"
    for command in (
        "ip -6 route",
        "ip -6 rule",
        "ip -4 route",
        "ip -4 rule",
        "sysctl -a -r ^net.*(forwarding|accept_ra)",
    ):
        for line in machine.run(command.split()).stdout.splitlines():
            files[f"{command}: {re.sub(' expires [0-9]+sec', '', line)}"] = "there"
    return files


def later(package: Path, directory: Path) -> Path:
    """The same package in a higher version."""
    tree = directory / "tree"
    execute(["dpkg-deb", "-R", str(package), str(tree)], check=True, timeout=60)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*$", "Version: 99-1", control.read_text()))
    module = tree / "usr/lib/python3/dist-packages/portier/__init__.py"
    module.write_text(re.sub('__version__ = ".*"', '__version__ = "99"', module.read_text()))
    made = directory / "portier_99-1_all.deb"
    execute(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(made)], check=True, timeout=60)
    return made


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """An upstream host, the machine's network, and two hosts behind it."""
    return vps(lab)


def serving(machine: Machine, scene: Scene) -> None:
    """Write a configuration and start, as the package tells to; the first host behind is known then."""
    machine.write(CONFIG, config())
    machine.run(["portier", "check"])
    machine.run(["systemctl", "start", "portier"])
    ping = ["ping", "-n", "-c", "1", "-W", "1", guest(1)]
    wait_for(lambda: scene.u.run(ping, check=False).returncode == 0, 20, "the host behind answers")


def test_install_upgrade_purge(root: Root, package: Path, scene: Scene, tmp_path: Path) -> None:
    """The life of the package on a machine that runs."""
    machine = root.boot(scene.p)
    newer = later(package, tmp_path)
    for file in (package, newer):
        root.copy(file, f"/root/{file.name}")
    before = snapshot(machine)

    # Installed, the service is enabled, and neither runs nor has failed: there is no configuration.
    said = machine.run([*INSTALL, f"/root/{package.name}"]).stdout
    assert "systemctl start portier" in said, said
    state = machine.show("portier", "UnitFileState", "ActiveState", "ConditionResult")
    assert state == {"UnitFileState": "enabled", "ActiveState": "inactive", "ConditionResult": "no"}
    assert not (machine.path / CONFIG.lstrip("/")).exists()

    serving(machine, scene)
    first = machine.show("portier", "MainPID", "ActiveState")
    assert first["ActiveState"] == "active"

    # Upgraded, it is the new one that runs, with the same configuration, and a known host has hardly noticed.
    ping = scene.u.popen(
        ["ping", "-n", "-D", "-O", "-i", "0.1", "-w", "120", guest(1)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = machine.run([*INSTALL, f"/root/{newer.name}"], timeout=120).stdout
    assert "systemctl start portier" not in said, "there is a configuration"
    assert machine.run(["portier", "--version"]).stdout == "portier 99\n"
    second = machine.show(
        "portier", "MainPID", "ActiveState", "ActiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"
    )
    assert second["ActiveState"] == "active"
    assert second["MainPID"] != first["MainPID"]
    assert machine.read(CONFIG) == config()
    time.sleep(1.5)
    ping.send_signal(signal.SIGINT)
    output = ping.communicate(timeout=10)[0]
    times = [float(found) for found in re.findall(r"^\[([\d.]+)\] \d+ bytes from", output, re.MULTILINE)]
    assert len(times) > 10, output
    outage = max(after - before for before, after in itertools.pairwise(times))
    left, entered = (float(second[f"Active{what}TimestampMonotonic"]) / 1e6 for what in ("Exit", "Enter"))
    print(f"the upgrade cost a known host {outage:.2f} s, the restart took {entered - left:.2f} s")
    # A second, but on a machine so busy that the process itself takes that long.
    assert outage < max(1.0, entered - left + 0.3), machine.journal("portier")

    # Removed, the kernel is as before and the configuration is kept; purged, nothing is left.
    machine.run(["apt-get", "-qq", "-y", "remove", "portier"])
    assert machine.read(CONFIG) == config()
    machine.run(["apt-get", "-qq", "-y", "purge", "portier"])
    after = snapshot(machine)
    assert {
        (name, after.get(name)) for name in before | after if before.get(name) != after.get(name)
    } == set()


def test_upgrade_leaves_a_daemon_alone_that_would_not_start_again(
    root: Root, package: Path, scene: Scene, tmp_path: Path
) -> None:
    """With a broken edit on disk the hosts behind keep the daemon that they have, and the user is told."""
    machine = root.boot(scene.p)
    newer = later(package, tmp_path)
    for file in (package, newer):
        root.copy(file, f"/root/{file.name}")
    machine.run([*INSTALL, f"/root/{package.name}"])
    serving(machine, scene)
    before = machine.show("portier", "MainPID", "ActiveState")
    (machine.path / CONFIG.lstrip("/")).chmod(0o600)  # right, but root's alone
    said = machine.run([*INSTALL, f"/root/{newer.name}"]).stdout
    assert f"{CONFIG}: cannot be read by user portier" in said, said
    machine.write(CONFIG, "version: 1\ngroups: {lan: {upstrem: eth0}}\n")
    said = machine.run(["dpkg-reconfigure", "portier"]).stdout
    assert f"{CONFIG}:2:16: groups.lan.upstrem: unknown key" in said, said
    assert "portier check && systemctl restart portier" in said, said
    assert machine.show("portier", "MainPID", "ActiveState") == before
    assert scene.u.run(["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", guest(1)])
    machine.write(CONFIG, config())
    machine.run(["sh", "-ec", "portier check && systemctl restart portier"])
    after = machine.show("portier", "MainPID", "ActiveState")
    assert (after["ActiveState"], after["MainPID"] != before["MainPID"]) == ("active", True)


def test_purge_after_a_kill_leaves_nothing(root: Root, package: Path, scene: Scene) -> None:
    """What a daemon that was killed has left in the kernel goes with the package."""
    machine = root.boot(scene.p)
    root.copy(package, f"/root/{package.name}")
    before = snapshot(machine)
    machine.run([*INSTALL, f"/root/{package.name}"])
    serving(machine, scene)
    drop_in = "/run/systemd/system/portier.service.d"
    machine.run(["sh", "-ec", f"mkdir -p {drop_in}; printf '[Service]\\nRestart=no\\n' >{drop_in}/once.conf"])
    machine.run(["sh", "-ec", "systemctl daemon-reload; systemctl kill --signal KILL portier"])
    wait_for(lambda: machine.show("portier", "ActiveState")["ActiveState"] == "failed", 20, "it is dead")
    assert guest(1) in machine.run(["ip", "-6", "route"]).stdout
    machine.run(["apt-get", "-qq", "-y", "purge", "portier"])
    after = snapshot(machine)
    assert {
        (name, after.get(name)) for name in before | after if before.get(name) != after.get(name)
    } == set()
