"""The record survives what can happen to it, and is believed only where it is true."""

from __future__ import annotations

import os
import threading
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from portier.core.model import HostRoute, KernelRoute, PolicyRule, ProxyEntry
from portier.errors import Refused
from portier.system import record as record_module
from portier.system.record import Record
from tests.cables import own_namespace


def route(last: int) -> HostRoute:
    """A host route."""
    return HostRoute(IPv6Address(0x20010DB8 << 96 | last).packed, 7, 254, 4389, 135)


RULE = PolicyRule(1135, "tap-3", "fe80::/10", "", 135)
OTHER_RULE = PolicyRule(1135, "wéird\\t:name", "", "fe80::/10", 135)
TABLE_RULE = PolicyRule(1136, "lo", "", "", 135, 1_350_000_000, 4, 31)
LAST_RULE = PolicyRule(1137, "tap-3", "", "", 135, unreachable=True)
ON_LINK = KernelRoute(IPv6Address("2001:db8:7::").packed, 64, 7, None, 1_350_000_000, 256, 135)
DEFAULT = KernelRoute(bytes(4), 0, 7, b"\xc0\0\2\1", 1_350_000_000, 0, 135)
SYSCTL = "net/ipv6/conf/eth0.7/accept_ra"


def where(directory: Path) -> Path:
    """The file of this network namespace."""
    with Record(directory) as record:
        return record._path


def contents(record: Record) -> tuple[object, ...]:
    """All that is on record."""
    return record.routes(), record.table_routes(), record.rules(), record.sysctls(), record.proxies()


def test_what_is_noted_is_there_after_a_restart(tmp_path: Path) -> None:
    """Routes, rules and sysctls come back, and what was struck off does not; no clean end is needed."""
    record = Record(tmp_path)
    for number in range(3):
        record.note_route(route(number))
    record.forget_route(route(1))
    for rule in (RULE, OTHER_RULE, TABLE_RULE, LAST_RULE):
        record.note_rule(rule)
    record.forget_rule(RULE)
    for table_route in (ON_LINK, DEFAULT, ON_LINK._replace(metric=1)):
        record.note_table_route(table_route)
    record.forget_table_route(ON_LINK._replace(metric=1))
    record.note_sysctl(SYSCTL, "1", "2")
    record.note_sysctl("net/ipv4/ip_local_port_range", "32768\t60999", "1024\t\\n65535")
    entries = [ProxyEntry(bytes([192, 0, 2, 5]), 3, 135), ProxyEntry(bytes(15) + b"\5", 4, 135)]
    for entry in entries:
        record.note_proxy(entry)
    record.forget_proxy(entries[1])
    record.note_sysctl("net/gone", "0", "1")
    record.forget_sysctl("net/gone")
    again = Record(tmp_path)
    assert contents(again) == contents(record)
    assert again.routes() == {route(0), route(2)}
    assert again.rules() == {OTHER_RULE, TABLE_RULE, LAST_RULE}
    assert again.table_routes() == {ON_LINK, DEFAULT}
    assert again.sysctls() == {
        SYSCTL: ("1", "2"),
        "net/ipv4/ip_local_port_range": ("32768\t60999", "1024\t\\n65535"),
    }
    assert again.proxies() == {entries[0]}
    assert again.has_proxy(entries[0])
    assert again.has_route(route(0))
    assert not again.has_route(route(1))
    assert again.has_rule(OTHER_RULE)
    record.close()


def test_a_noted_sysctl_can_be_noted_anew(tmp_path: Path) -> None:
    """The last entry for a path counts."""
    with Record(tmp_path) as record:
        record.note_sysctl(SYSCTL, "1", "2")
        record.note_sysctl(SYSCTL, "0", "2")
        assert Record(tmp_path).sysctls() == {SYSCTL: ("0", "2")}


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    """Wherever a crash cut the file, the whole lines before count, and writing goes on after."""
    with Record(tmp_path) as record:
        record.note_route(route(0))
        record.note_sysctl(SYSCTL, "1", "2")
        text = where(tmp_path).read_bytes()
    whole = text.rindex(b"\n", 0, -1) + 1
    for cut in range(whole, len(text)):
        where(tmp_path).write_bytes(text[:cut])
        with Record(tmp_path) as record:
            assert contents(record) == ({route(0)}, frozenset(), frozenset(), {}, frozenset())
            record.note_route(route(1))
            assert Record(tmp_path).routes() == {route(0), route(1)}


def test_lines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They knew no tables: a policy rule of theirs is one that ends in nothing."""
    with Record(tmp_path) as record:
        record.note_rule(RULE)
        with where(tmp_path).open("ab") as file:
            file.write(b"+rule\t1135\tone\tfe80::/10\t\t135\n-rule\t1135\ttwo\t\tfe80::/10\t135\n")
        assert Record(tmp_path).rules() == {RULE, PolicyRule(1135, "one", "fe80::/10", "", 135)}


def test_nonsense_is_passed_over(tmp_path: Path) -> None:
    """Lines that are not understood cost nothing else."""
    with Record(tmp_path) as record:
        record.note_route(route(0))
        with where(tmp_path).open("ab") as file:
            file.write(b"\n\xff\xfe\t\n+route\tzz\t1\n+route\t\n+rule\t1\n+sysctl\tx\n-sysctl\n+new\tthing\n")
        record.note_route(route(1))
        assert contents(Record(tmp_path)) == ({route(0), route(1)}, frozenset(), frozenset(), {}, frozenset())


@pytest.mark.parametrize("line", ["portier-record 1 another-boot cookie:1", "garbage", ""])
def test_another_boot_is_not_believed(tmp_path: Path, line: str) -> None:
    """A record of another boot counts as empty; it is touched only when there is something of one's own,
    and goes then, with whatever else that boot left."""
    text = f"{line}\n+route\t{route(0).address.hex()}\t7\t254\t4389\t135\n"
    own = where(tmp_path)
    left = [own, tmp_path / "record.cookie:1"]
    for path in left:
        path.write_text(text)
    with Record(tmp_path) as record:
        assert contents(record) == (frozenset(), frozenset(), frozenset(), {}, frozenset())
        record.forget_route(route(0))
        assert [path.read_text() for path in left] == [text, text]
        record.note_route(route(1))
        assert Record(tmp_path).routes() == {route(1)}
        assert list(tmp_path.iterdir()) == [own]


def test_namespaces_that_share_a_directory(tmp_path: Path) -> None:
    """Each network namespace has its own record: what another one writes, even from its start on, neither
    shows in it nor costs it anything, whether it runs or was killed."""
    killed = Record(tmp_path)
    killed.note_route(route(0))
    with own_namespace():
        other = Record(tmp_path)
        assert other.routes() == frozenset()
        other.note_route(route(1))
    killed.note_route(route(2))
    with Record(tmp_path) as record:
        assert record.routes() == {route(0), route(2)}
        record.note_route(route(3))  # writes its file anew
    with own_namespace():
        assert Record(tmp_path).routes() == frozenset()
    other.note_route(route(4))
    assert len(list(tmp_path.iterdir())) == 2
    assert Record(tmp_path).routes() == {route(0), route(2), route(3)}
    for left in (killed, other):
        left.close()


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """To look at a record, nothing is written, and no directory is needed."""
    with Record(tmp_path / "none") as record:
        assert contents(record) == (frozenset(), frozenset(), frozenset(), {}, frozenset())
    assert list(tmp_path.iterdir()) == []
    with Record(tmp_path) as record:
        record.note_route(route(0))
        before = where(tmp_path).stat()
        with Record(tmp_path) as reader:
            assert reader.routes() == {route(0)}
        after = where(tmp_path).stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_an_empty_record_goes(tmp_path: Path) -> None:
    """After a clean end with nothing left to undo, there is no file."""
    with Record(tmp_path) as record:
        record.note_route(route(0))
        record.forget_route(route(0))
    assert list(tmp_path.iterdir()) == []


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routes that come and go leave a file as large as what is there, within a factor."""
    monkeypatch.setattr(record_module, "_COMPACT_AT", 10_000)
    with Record(tmp_path) as record:
        record.note_rule(RULE)
        record.note_table_route(DEFAULT)
        for number in range(10_000):
            record.note_route(route(number))
            if number >= 10:
                record.forget_route(route(number - 10))
        assert where(tmp_path).stat().st_size < 20_000
        assert contents(Record(tmp_path)) == contents(record)
        assert len(record.routes()) == 10


def test_several_threads(tmp_path: Path) -> None:
    """Workers write at the same time; each finds all of it, and so does a restart."""
    record = Record(tmp_path)

    def work(start: int) -> None:
        for number in range(start, start + 500):
            record.note_route(route(number))
            if number % 2:
                record.forget_route(route(number))

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(record.routes()) == 1000
    assert Record(tmp_path).routes() == record.routes()
    record.close()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is refused and not taken for noted, and does not spoil the next entry; what is
    gone is struck off all the same."""
    with Record(tmp_path) as record:
        record.note_route(route(0))
        record.note_route(route(1))
        write = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
        with pytest.raises(OSError, match="No space"):
            record.note_route(route(2))
        record.forget_route(route(1))
        monkeypatch.undo()
        assert record.routes() == {route(0)}
        record.note_route(route(3))
        assert Record(tmp_path).routes() == {route(0), route(3)}


def test_a_disk_without_any_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is named: a step that fails for want of it has nothing to do with files."""
    with Path("/dev/full").open("wb", buffering=0) as full, Record(tmp_path) as record:
        record.note_route(route(0))
        write = os.write
        monkeypatch.setattr(os, "write", lambda _, data: write(full.fileno(), data))
        with pytest.raises(OSError, match=f"No space left on device: '{where(tmp_path)}'"):
            record.note_route(route(1))
        monkeypatch.undo()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """It is the owner's alone."""
    with Record(tmp_path) as record:
        record.note_route(route(0))
        assert where(tmp_path).stat().st_mode & 0o777 == 0o600


def test_one_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lacks the right is told so in a line."""

    def denied(path: Path, **_: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(record_module, "read_own", denied)  # root may read everything
    with pytest.raises(Refused, match="not permitted") as caught:
        Record(tmp_path)
    assert caught.value.exit_code == 77


@pytest.mark.parametrize("what", ["fifo", "directory", "symlink"])
def test_a_record_that_portier_did_not_write_is_not_believed(tmp_path: Path, what: str) -> None:
    """Whoever may write it could have root undo and restore what he likes."""
    path = where(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("")
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(elsewhere)
    with pytest.raises(Refused, match="what the kernel still has of Portier is unknown"):
        Record(tmp_path)


def test_somebody_elses_record_is_not_believed(tmp_path: Path) -> None:
    """As above; but who only looks may read it, as root does with that of the service's user."""
    with Record(tmp_path) as record:
        record.note_sysctl("net/a", "0", "1")
    try:
        os.chown(where(tmp_path), 12345, -1)
    except OSError:
        pytest.skip("no right to give a file away")
    with pytest.raises(Refused, match="what the kernel still has of Portier is unknown"):
        Record(tmp_path)
    assert Record(tmp_path, looking=True).sysctls() == {"net/a": ("0", "1")}
