"""Reading and writing sysctls, and what is said when that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from portier.errors import KernelError
from portier.system import sysctl
from tests.cables import ip, own_namespace

DEFAULT = "net/ipv6/conf/default/accept_ra"


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Everything happens in a namespace of its own."""
    with own_namespace(ipv6=True):
        yield


def test_write_and_read() -> None:
    """A value reads as it was written, without a newline."""
    sysctl.write(DEFAULT, "2")
    assert sysctl.read(DEFAULT) == "2"


def test_a_dot_belongs_to_the_name() -> None:
    """A VLAN's name has a dot, which is no separator."""
    ip("link add name eth0.7 type veth peer name peer")
    sysctl.write("net/ipv6/conf/eth0.7/accept_ra", "2")
    assert sysctl.read("net/ipv6/conf/eth0.7/accept_ra") == "2"
    assert sysctl.read(DEFAULT) == "1"


def test_what_is_not_there() -> None:
    """It reads as None, and writing says that there is none."""
    for path in ("net/ipv6/conf/nowhere/forwarding", f"{DEFAULT}/more", "net/ipv6/nothing"):
        assert sysctl.read(path) is None
        with pytest.raises(KernelError, match=f"set sysctl {path} to 1: no such sysctl"):
            sysctl.write(path, "1")


def test_what_the_kernel_does_not_take() -> None:
    """A wrong value is told from a missing sysctl."""
    with pytest.raises(KernelError, match="does not take this value"):
        sysctl.write(DEFAULT, "many")


def test_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container /proc/sys is read-only: the message says so."""

    def read_only(path: Path, flags: int) -> int:
        raise OSError(errno.EROFS, f"Read-only file system, {flags}", str(path))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(KernelError, match="read-only here"):
        sysctl.write(DEFAULT, "1")


@pytest.mark.parametrize("path", ["", "/etc/passwd", "net//x", "../../etc/passwd", "net/./x"])
def test_only_below_proc_sys(path: str) -> None:
    """No path leads elsewhere."""
    for use in (sysctl.read, lambda path: sysctl.write(path, "1")):
        with pytest.raises(KernelError, match="not a path below /proc/sys"):
            use(path)
