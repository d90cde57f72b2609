"""`portier import`: the output is a configuration, the remarks are on stderr, and errors say where."""

from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Portier

GOLDEN = ROOT / "tests" / "golden" / "import"


def test_output_is_a_configuration_that_check_accepts(portier: Portier, tmp_path: Path) -> None:
    """What is printed can be saved and checked; remarks are lines on stderr with file and line."""
    case = GOLDEN / "ndppd" / "typo.conf"
    done = portier("import", "ndppd", str(case), lines=30)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) > 10
    assert all(line.startswith(f"{case}:") for line in done.stderr.splitlines())
    file = tmp_path / "portier.yaml"
    file.write_text(done.stdout, encoding="utf-8")
    assert portier("check", "-c", str(file)).returncode == 0


@pytest.mark.parametrize("peer", ["ndppd", "npd6", "pndpd"])
def test_what_cannot_be_read_is_78(portier: Portier, tmp_path: Path, peer: str) -> None:
    """A missing file, a directory and an empty file are errors in words, exit 78, and print nothing."""
    empty = tmp_path / "empty.conf"
    empty.write_bytes(b"")
    for file in (tmp_path / "none.conf", tmp_path, empty):
        done = portier("import", peer, str(file))
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr.startswith(f"{file}: ")


@pytest.mark.parametrize("peer", ["ndppd", "npd6", "pndpd"])
def test_what_is_no_configuration_is_told_in_a_line(portier: Portier, tmp_path: Path, peer: str) -> None:
    """A program, UTF-16, a device that never ends, and far too much text: one line each, exit 78."""
    utf16, huge = tmp_path / "utf16.conf", tmp_path / "huge.conf"
    utf16.write_bytes("proxy eth0 { }".encode("utf-16"))
    huge.write_text("rule\n" * 1_000_000, encoding="ascii")
    for file in (Path("/bin/ls"), utf16, Path("/dev/zero"), huge):
        done = portier("import", peer, str(file))
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr.startswith(f"{file}: ")
        assert len(done.stderr.splitlines()) == 1


def test_an_error_has_its_line(portier: Portier) -> None:
    """An expression that is no mask is refused with its line."""
    case = GOLDEN / "npd6" / "refused-expression.conf"
    done = portier("import", "npd6", str(case))
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"{case}:4:1: ")


def test_an_unknown_peer_is_wrong_usage(portier: Portier) -> None:
    """There are three peers."""
    assert portier("import", "odhcpd", "-").returncode == 64


def test_standard_input(portier: Portier) -> None:
    """`-` is standard input; where there is nothing in it, that is said of <stdin>."""
    done = portier("import", "ndppd", "-")
    assert done.returncode == 78
    assert done.stderr.startswith("<stdin>: ")
