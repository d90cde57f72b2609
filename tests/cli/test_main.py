"""Arguments, exit codes and messages of the command line as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import portier.cli
from portier import __version__
from portier.cli import COMMANDS, exits
from portier.errors import ConfigError, KernelError, Problem, Refused
from tests.cli.conftest import ROOT, Portier


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["stauts"],
        ["status", "--nonsense"],
        ["explain"],
        ["explain", "not-an-address"],
        ["explain", "fe80::1%eth0%"],
        ["check", "--replace", "no-equals-sign"],
        ["check", "--replace", "=x"],
        ["--config"],
    ],
)
def test_wrong_usage_is_64(portier: Portier, arguments: list[str]) -> None:
    """Wrong usage ends with 64 and one line on stderr; nothing on stdout."""
    done = portier(*arguments)
    assert done.returncode == 64
    assert done.stdout == ""
    assert done.stderr.startswith("portier")


def test_help_names_every_command(portier: Portier) -> None:
    """--help lists all commands, each with its meaning."""
    done = portier("--help")
    assert done.returncode == 0
    for name, meaning in COMMANDS.items():
        assert f"    {name} " in done.stdout
        assert meaning.split()[0] in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(portier: Portier, name: str) -> None:
    """Each command explains itself, the global options included, and is there."""
    done = portier(name, "--help")
    assert done.returncode == 0
    assert "--config" in done.stdout
    assert "--runtime-dir" in done.stdout
    assert (ROOT / "portier" / "cli" / f"{name}.py").exists()


def test_version(portier: Portier) -> None:
    """--version prints the package's version."""
    assert portier("--version").stdout == f"portier {__version__}\n"


@pytest.mark.parametrize("name", ["status", "neighbors", "reload"])
def test_no_daemon_is_4(portier: Portier, name: str) -> None:
    """Where a daemon is needed and none runs, the exit code is 4 and the line says how to start one."""
    done = portier(name)
    assert done.returncode == 4
    assert "systemctl start portier" in done.stderr
    assert "portier run" in done.stderr


def test_explain_without_daemon_is_4(portier: Portier) -> None:
    """To explain needs the daemon too."""
    assert portier("explain", "2001:db8::5", "--on", "eth0").returncode == 4


def test_global_options_before_and_after_the_command(portier: Portier, tmp_path: Path) -> None:
    """--runtime-dir counts wherever it stands; after the command it beats what stands before."""
    elsewhere = tmp_path / "elsewhere"
    assert str(elsewhere) in portier("status", "--runtime-dir", str(elsewhere)).stderr
    assert str(elsewhere) in portier("--runtime-dir", str(elsewhere), "status").stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take rights away from itself")
def test_not_permitted_is_77(tmp_path: Path) -> None:
    """A user who may not use the socket is told, with 77, and what would help."""
    directory = tmp_path / "run"
    directory.mkdir()
    code = (
        "import os, sys, portier.cli.status\n"  # while the interpreter's files may still be read
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"sys.exit(portier.cli.main(['status', '--runtime-dir', {str(directory)!r}]))"
    )
    directory.chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 77, done.stderr
    assert "Traceback" not in done.stderr


class Boom:
    """A command's module that fails as it is told."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def run(self, _options: object) -> int:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Refused("not now", 4), 4, "portier status: not now\n"),
        (KernelError("add route", "Permission denied", 13), 1, "add route: Permission denied"),
        (PermissionError(13, "Permission denied", "/x"), 77, "status: /x: Permission denied: run as root\n"),
        (OSError(28, "No space left on device"), 71, "portier status: No space left on device\n"),
        (ConfigError([Problem("a.yaml", 1, 2, "groups", "no")]), 78, "a.yaml:1:2: groups: no\n"),
        (KeyError("x"), 70, "please report it"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_failure_is_a_line_and_a_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever a command raises ends as an exit code and at most one line; bugs say what to report."""
    monkeypatch.setattr("portier.cli.importlib.import_module", lambda _name: Boom(error))
    monkeypatch.delenv("PORTIER_DEBUG", raising=False)
    assert portier.cli.main(["status"]) == code
    stderr = capsys.readouterr().err
    assert said in stderr
    assert len(stderr.splitlines()) == bool(said)
    assert "Traceback" not in stderr


def test_a_bug_shows_its_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PORTIER_DEBUG=1 gives what a report needs."""
    monkeypatch.setattr("portier.cli.importlib.import_module", lambda _name: Boom(KeyError("x")))
    monkeypatch.setenv("PORTIER_DEBUG", "1")
    assert portier.cli.main(["status"]) == exits.BUG
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet() -> None:
    """`portier schema | head -1` says nothing on stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "portier", "schema"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in {0, exits.PIPE}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(closed: str) -> None:
    """Started without a standard stream or two, as some service managers do, a command does its work."""
    for command, code in (("schema", 0), ("check -c examples/guests.toml", 0), ("import ndppd -", 78)):
        shell = f"{sys.executable} -m portier {command} {closed}"
        done = subprocess.run(
            ["bash", "-c", shell],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (command, done.stderr)


def test_a_full_disk_is_told() -> None:
    """Output that cannot be written is an error in words."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "portier", "schema"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == exits.SYSTEM
    assert "No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1
