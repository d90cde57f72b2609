"""Portier as the DaemonSet of `packaging/kubernetes` runs it: what it may, and how its ConfigMap is updated.

No container engine is needed: a mount namespace, capabilities and the volume's layout are what one gives.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.netns.lab import Lab, Portier, wait_for
from tests.netns.scenes import NET, Scene, config, guest, vps

# Everything read-only but the runtime dir, /proc/sys included, as container engines have it; then the two
# capabilities, for root, who without the others is bound by the modes of files.
CONTAINER = """
volume=$1 runtime=$2; shift 2
mount --make-rprivate /
mount --bind "$volume" "$volume" && mount -o remount,bind,ro "$volume"
mount --bind "$runtime" "$runtime"
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
for place in / /tmp /run /var; do
    ! mountpoint -q "$place" || mount -o remount,bind,ro "$place"
done
exec setpriv --no-new-privs --bounding-set -all,+net_admin,+net_raw --inh-caps -all "$@"
"""
TWO = f'["{NET}/64", "2001:db8:9::/64"]'
CHECK = "sysctls: check"
READ_ONLY = ("/etc/written", "/tmp/written", "/proc/sys/net/ipv6/conf/all/forwarding")


def update(volume: Path, files: Mapping[str, str]) -> None:
    """Update a mounted ConfigMap in the steps of the kubelet's AtomicWriter (pkg/volume/util): all files go
    into a fresh directory, a symlink to which replaces ``..data`` by rename; what the user sees are symlinks
    through that."""
    old = (volume / "..data").readlink() if (volume / "..data").is_symlink() else None
    fresh = Path(tempfile.mkdtemp(prefix="..2026_11_21_16_15_00.", dir=volume))
    fresh.chmod(0o755)
    for name, text in files.items():
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / name).write_text(text)
    (volume / "..data_tmp").symlink_to(fresh.name)
    (volume / "..data_tmp").rename(volume / "..data")
    shown = {Path(name).parts[0] for name in files}
    for name in shown:
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    for path in volume.iterdir():
        if not path.name.startswith("..") and path.name not in shown:
            path.unlink()
    if old is not None:
        shutil.rmtree(volume / old)


class Pod(Portier):
    """The daemon in a container: its configuration is a volume, the runtime dir the node's."""

    def __init__(self, lab: Lab, scene: Scene, text: str) -> None:
        super().__init__(lab, scene.p, lab.directory / "pod", "")
        self.config.unlink()
        volume = self.config.parent / "volume"
        volume.mkdir()
        self.runtime.mkdir()
        self.config = volume / "portier.yaml"
        self.within = ("unshare", "--mount", "sh", "-ec", CONTAINER, "sh", str(volume), str(self.runtime))
        update(volume, {"portier.yaml": text})
        lab.portiers.append(self)
        scene.daemon = self

    def update(self, text: str, **drop_ins: str) -> None:
        """Update the ConfigMap: the file, and drop-ins by name."""
        more = {f"portier.d/{name}.yaml": content for name, content in drop_ins.items()}
        update(self.config.parent, {"portier.yaml": text, **more})


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The usual topology, on a node that forwards and keeps its default route, as the manifest asks for."""
    if lab.keeper.unprivileged:
        pytest.skip("in a user namespace the machine's mounts cannot be made read-only")
    scene = vps(lab)
    for path in ("ipv6/conf/all/forwarding", "ipv4/ip_forward"):
        scene.p.sysctl(f"net/{path}", 1)
    scene.p.sysctl("net/ipv6/conf/eth0/accept_ra", 2)
    return scene


def test_a_pod_needs_no_more(lab: Lab, scene: Scene) -> None:
    """With two capabilities, and everything read-only but its runtime dir, it is healthy and traffic flows;
    it leaves the sysctls alone, and names the one that is missing."""
    before = scene.p.sysctls()
    pod = Pod(lab, scene, config(head=CHECK))
    pod.start()
    pod.wait_ports("eth0", "tap1", "tap2")
    assert "CapEff:\t0000000000003000" in Path(f"/proc/{pod.pid}/status").read_text()
    written = subprocess.run(
        ["nsenter", "-t", str(pod.pid), "--mount", "touch", *READ_ONLY],
        check=False,
        capture_output=True,
        text=True,
    )
    assert written.stderr.count("Read-only file system") == len(READ_ONLY), written.stderr

    assert pod.cli("status").returncode == 0
    ping = scene.u.ping(guest(1))
    assert ping, ping.output
    changed = {path for path, value in scene.p.sysctls().items() if before.get(path) != value}
    assert not {path for path in changed if path.endswith(("forwarding", "accept_ra"))}

    scene.p.sysctl("net/ipv6/conf/all/forwarding", 0)
    done = wait_for(
        lambda: (found := pod.cli("status", check=False)).returncode == 3 and found, 10, "degraded"
    )
    assert "net.ipv6.conf.eth0" in done.stdout


def test_updates_of_the_config_map(lab: Lab, scene: Scene) -> None:
    """Each is taken without a word to the daemon, drop-ins that come and go with it; a broken one changes
    nothing but the status, until the next good one."""
    pod = Pod(lab, scene, config(head=CHECK, downstream="tap1"))
    pod.start()
    pod.wait_ports("eth0", "tap1")
    assert scene.u.ping(guest(1))

    def rules() -> int:
        return int(pod.group("lan")["rules"])

    pod.update(config(TWO, head=CHECK, downstream="tap1"))
    wait_for(lambda: rules() == 2, 5, "the update")
    more = config(name="more", upstream="", downstream="tap2")
    pod.update(config(TWO, head=CHECK, downstream="tap1"), more=more)
    wait_for(lambda: pod.ports("more") == {"tap2": "active"}, 5, "the drop-in")

    generation = pod.generation()
    pod.update(config(head=CHECK, downstream="tap1", extra="answr: always"), more=more)
    errors = wait_for(lambda: pod.status()["config"]["error"], 5, "the broken update told of")
    assert "answr" in errors[0]
    assert pod.cli("status", check=False).returncode == 3
    assert (pod.generation(), rules()) == (generation, 2)
    assert guest(1) in pod.neighbors()

    pod.update(config(head=CHECK, downstream="tap1"))
    wait_for(lambda: rules() == 1, 5, "the good one")
    wait_for(lambda: len(pod.status()["groups"]) == 1, 5, "the drop-in gone")
    assert pod.status()["config"]["error"] is None
    assert guest(1) in pod.neighbors()
    assert scene.u.ping(guest(1))


def test_a_pod_that_was_killed_is_followed(lab: Lab, scene: Scene) -> None:
    """The next one has the node's runtime dir: it adopts the host routes, and no traffic is lost."""
    pod = Pod(lab, scene, config(head=CHECK))
    pod.start()
    pod.wait_ports("eth0", "tap1", "tap2")
    assert scene.u.ping(guest(1))
    pinging = scene.u.pinging(guest(1))
    pod.kill9()
    assert scene.p.host_routes() == {guest(1): "tap1"}
    pod.update(config(TWO, head=CHECK))  # while there is none
    pod.start()
    wait_for(lambda: guest(1) in pod.neighbors(), 10, "the host known again")
    replies, gap = pinging.stop()
    assert replies
    assert gap < 0.5, "no traffic lost"
    assert scene.p.host_routes() == {guest(1): "tap1"}
    assert pod.stop() == 0
    assert scene.p.host_routes() == {}
