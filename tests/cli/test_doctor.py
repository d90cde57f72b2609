"""What `portier doctor` shows, and that it works with nothing to work on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from portier.cli import doctor, probe
from portier.core.doctor.finding import Diagnosis, Finding, Severity, Unmade
from portier.core.probe import Hop, State
from tests.cli.conftest import Portier

BAD = Finding(
    "forwarding", Severity.PROBLEM, "tap1", "does not forward", "x = 0", "sysctl -w net.ipv6.conf.tap1.x=1"
)
MILD = Finding("nobody-asks", Severity.WARNING, "eth0", "nobody has asked", "", "wait")


def test_findings_then_what_was_not_checked_then_how_much_is_in_order() -> None:
    """A command stays whole on one line, however narrow the terminal; reasons are said once."""
    diagnosis = Diagnosis(
        (BAD, MILD), ("a", "b"), (Unmade("c", "no daemon runs"), Unmade("d", "no daemon runs"))
    )
    assert list(doctor.render(diagnosis, 40)) == [
        "! tap1: does not forward [forwarding]",
        "    seen: x = 0",
        "    do:   sysctl -w net.ipv6.conf.tap1.x=1",
        "",
        "? eth0: nobody has asked [nobody-asks]",
        "    do:   wait",
        "",
        "not checked, because no daemon runs: c,",
        "  d",
        "2 checks passed",
    ]


def test_nothing_reaches_the_terminal_but_text() -> None:
    """Comments of packet filters and names of interfaces may hold anything."""
    hostile = Finding("firewall-nd", Severity.PROBLEM, "tap\x1b[31m", "dropped", "drop \x07", "nft \x1b[0m")
    said = "\n".join(doctor.render(Diagnosis((hostile,), (), (Unmade("c", "\x1b[31m"),)), 80))
    hop = Hop("firewall", State.FAILED, "dropped by \x1b[31m", "nft \x07")
    said += "\n".join(probe.render({"mode": "route", "address": "2001:db8::1"}, [hop], 80))
    assert said.replace("\n", "").isprintable()
    assert "dropped by \\x1b[31m" in said


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_without_a_file_and_a_daemon(portier: Portier, tmp_path: Path, options: list[str]) -> None:
    """Both are findings, and the exit code says that there are some."""
    missing = tmp_path / "portier.yaml"
    done = portier("doctor", "-c", str(missing), "--runtime-dir", str(tmp_path), *options)
    assert done.returncode == 3
    assert done.stderr == ""
    if options:
        found = json.loads(done.stdout)["findings"]
        assert [finding["check"] for finding in found][:2] == ["daemon", "config"]
    else:
        said = " ".join(done.stdout.split())
        assert "! portier: no daemon runs, so nobody answers [daemon]" in said
        assert f"! {missing}: the configuration is refused [config]" in said
        assert "no such file" in said
