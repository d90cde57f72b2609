"""What `portier doctor` looks at beside snapshots: against the kernel, and against systemd's own rules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from portier.core.doctor.facts import Barrier, Networkd, Unknown
from portier.system import inspect
from tests.cables import ip, own_namespace

HERE, ELSEWHERE = "net:[1]", "net:[2]"


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace of the test's own."""
    with own_namespace():
        yield


@pytest.mark.usefixtures("namespace")
def test_routes_that_end_in_nothing() -> None:
    """Of both families, all types and tables; others are none of them."""
    ip("link set lo up")
    ip("-6 route add blackhole 2001:db8:7::5")
    ip("-6 route add unreachable 2001:db8:8::/48 table 1000")
    ip("-4 route add prohibit 192.0.2.0/24")
    ip("-4 route add blackhole default")
    ip("-6 route add 2001:db8:9::/48 dev lo")
    found = {barrier for barrier in inspect.barriers() if barrier.network != ip_network("::/0")}
    assert found == {
        Barrier(ip_network("2001:db8:7::5/128"), "blackhole", 254),
        Barrier(ip_network("2001:db8:8::/48"), "unreachable", 1000),
        Barrier(ip_network("192.0.2.0/24"), "prohibit", 254),
        Barrier(ip_network("0.0.0.0/0"), "blackhole", 254),
    }


@pytest.mark.usefixtures("namespace")
def test_sysctls_that_there_are() -> None:
    """Those of interfaces that are gone are left out."""
    paths = ["net/ipv6/conf/lo/disable_ipv6", "net/ipv6/conf/gone/disable_ipv6"]
    assert inspect.sysctls(paths) == {"net/ipv6/conf/lo/disable_ipv6": "0"}


def test_rights_of_a_process() -> None:
    """A process that runs has some; of one that is gone nothing is known."""
    assert isinstance(inspect.lacking(os.getpid()), tuple)
    assert isinstance(inspect.lacking(2**22 + 1), Unknown)


# -- systemd-networkd ----------------------------------------------------------------------------------


def put(root: Path, path: str, text: str = "") -> None:
    """Make a file."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a machine on which networkd runs."""
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/net").symlink_to(HERE)
    put(tmp_path, "proc/1/comm", "systemd\n")
    put(tmp_path, "proc/42/comm", "systemd-network\n")
    (tmp_path / "proc/42/ns").mkdir()
    (tmp_path / "proc/42/ns/net").symlink_to(HERE)
    return tmp_path


def switches(root: Path) -> tuple[bool, bool]:
    """Whether it removes routes and rules of others."""
    found = inspect.networkd([], root)
    assert isinstance(found, Networkd)
    return found.routes, found.rules


def test_networkd_removes_unless_told_otherwise(root: Path) -> None:
    """Both are on by default; a main file that says nothing of them changes nothing."""
    assert switches(root) == (True, True)
    put(root, "etc/systemd/networkd.conf", "[Network]\n#ManageForeignRoutes=no\nSpeedMeter=no\n[DHCPv4]\n")
    assert switches(root) == (True, True)


def test_drop_ins_are_read_as_systemd_reads_them(root: Path) -> None:
    """By name over all directories, the last word counts; one in /etc hides its namesake in /usr."""
    put(root, "etc/systemd/networkd.conf", "[Network]\nManageForeignRoutes=no\n")
    assert switches(root) == (False, True)
    put(root, "usr/lib/systemd/networkd.conf.d/50-a.conf", "[Network]\nManageForeignRoutes=yes\n")
    assert switches(root) == (True, True)
    put(root, "etc/systemd/networkd.conf.d/50-a.conf", "[Network]\nManageForeignRoutingPolicyRules=off\n")
    assert switches(root) == (False, False)
    put(root, "run/systemd/networkd.conf.d/60-b.conf", "[Network]\nManageForeignRoutes=1\n")
    assert switches(root) == (True, False)
    put(root, "run/systemd/networkd.conf.d/70-broken.conf", "ManageForeignRoutes=no\n[")
    assert switches(root) == (True, False)


def test_links_that_networkd_leaves_alone(root: Path) -> None:
    """By its own word; a link that it has no word on is none of its own."""
    put(root, "run/systemd/netif/links/2", "ADMIN_STATE=configured\nOPER_STATE=routable\n")
    put(root, "run/systemd/netif/links/3", "ADMIN_STATE=unmanaged\n")
    found = inspect.networkd([2, 3, 4], root)
    assert isinstance(found, Networkd)
    assert found.unmanaged == {3, 4}


def test_networkd_in_another_namespace(root: Path) -> None:
    """It runs on the machine, and has no say here."""
    (root / "proc/42/ns/net").unlink()
    (root / "proc/42/ns/net").symlink_to(ELSEWHERE)
    assert inspect.networkd([], root) is None


def test_networkd_that_does_not_run(root: Path) -> None:
    """Its files alone do nothing."""
    put(root, "proc/42/comm", "systemd-resolve\n")
    assert inspect.networkd([], root) is None
