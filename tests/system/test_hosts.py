"""The file of known hosts: what is saved comes back, and nothing that is found there breaks a start."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portier.core.engine import KnownHost
from portier.system import hosts as module
from portier.system.hosts import HostFile
from tests.cables import own_namespace

MAC, PORT_MAC = b"\2\0\0\0\0\5", b"\2\0\0\0\xff\1"


def host(address: str, port: str = "tap-3") -> KnownHost:
    return KnownHost(ip_address(address).packed, MAC, 7, PORT_MAC, port, "guests")


HOSTS = [host("2001:db8:7::5"), host("192.0.2.5"), host("2001:db8:7::6", "wéird:\udcff")]


@pytest.fixture
def file(tmp_path: Path) -> HostFile:
    return HostFile(tmp_path)


def test_what_is_saved_comes_back(tmp_path: Path, file: HostFile) -> None:
    """Both families and any name, in the order given; the last time counts, and nobody else may read it."""
    file.save([host("2001:db8:7::99")])
    file.save(HOSTS)
    assert file.load() == HOSTS
    assert HostFile(tmp_path).load() == HOSTS
    assert file._path.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 1


def test_no_hosts_no_file(tmp_path: Path, file: HostFile) -> None:
    """Where nobody is known nothing is left."""
    file.save([])
    file.save(HOSTS)
    file.save([])
    assert not list(tmp_path.iterdir())
    assert file.load() == []


def test_it_is_bounded(file: HostFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are kept when there are too many, and a file that is too large is not read."""
    monkeypatch.setattr(module, "_MOST", 2)
    file.save(HOSTS)
    assert file.load() == HOSTS[:2]
    monkeypatch.setattr(module, "_MOST_OCTETS", 10)
    assert file.load() == []


def test_another_namespace_has_a_file_of_its_own(tmp_path: Path, file: HostFile) -> None:
    """Indexes mean nothing elsewhere."""
    file.save(HOSTS)
    with own_namespace():
        other = HostFile(tmp_path)
        assert other.load() == []
        other.save(HOSTS[:1])
    assert file.load() == HOSTS


def test_another_boot_is_not_believed(file: HostFile) -> None:
    """Nor do they after a boot."""
    file.save(HOSTS)
    text = file._path.read_text(errors="surrogateescape")
    first, _, rest = text.partition("\n")
    version, number, _, namespace = first.split(" ")
    file._path.write_text(f"{version} {number} another-boot {namespace}\n{rest}", errors="surrogateescape")
    assert file.load() == []


@pytest.mark.parametrize("what", ["directory", "fifo", "link", "dangling link"])
def test_what_is_no_file_is_passed_over(tmp_path: Path, file: HostFile, what: str) -> None:
    """Nothing is waited for or followed; saving puts a file there, or says that it cannot."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    match what:
        case "directory":
            file._path.mkdir()
        case "fifo":
            os.mkfifo(file._path)
        case "link":
            file._path.symlink_to(elsewhere)
        case "dangling link":
            file._path.symlink_to(tmp_path / "nowhere")
    assert file.load() == []
    if what == "directory":
        with pytest.raises(OSError, match="directory"):
            file.save(HOSTS)
        return
    file.save(HOSTS)
    assert file.load() == HOSTS
    assert elsewhere.read_text() == "untouched"


def test_lines_that_are_torn_or_foreign_are_passed_over(file: HostFile) -> None:
    """The rest is used."""
    file.save(HOSTS)
    whole = file._path.read_bytes()
    file._path.write_bytes(whole + b"20010db8\tjunk\nnot a line\n\t\t\t\t\t\n" + whole.split(b"\n")[1][:40])
    assert file.load() == HOSTS


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_garbage_is_nobody(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    """Whatever follows the first line, or stands in its place, is hosts or nothing."""
    file = HostFile(tmp_path_factory.getbasetemp())
    file._path.write_bytes(garbage)
    assert file.load() == []
    file._path.write_bytes(file._place.encode() + b"\n" + garbage)
    assert all(len(found.address) in {4, 16} for found in file.load())
