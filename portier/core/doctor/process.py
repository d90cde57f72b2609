"""Checks of the daemon itself and of its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from portier.core.doctor.facts import Daemon, Facts, known, running
from portier.core.doctor.finding import Check, Finding, problem, warning


def _runs(facts: Facts) -> Iterator[Finding]:
    if facts.mute:
        yield problem(
            "portier",
            "a daemon runs in this network namespace, but does not say how it fares",
            facts.mute,
            "portier --runtime-dir DIR doctor, with the directory of that daemon; if that is the right one, "
            "systemctl restart portier",
        )
    elif known(facts.daemon) is None:
        yield problem(
            "portier",
            "no daemon runs, so nobody answers",
            "nobody listens on the control socket",
            "systemctl start portier",
        )


def _config(facts: Facts) -> Iterator[Finding]:
    daemon = facts.daemon if isinstance(facts.daemon, Daemon) else None
    unreadable = facts.unreadable if daemon is None or daemon.refused else ()  # else it is not the service
    if unreadable:
        yield problem(
            facts.config_file,
            "the service runs as user portier, who cannot read the configuration",
            f"not readable: {', '.join(unreadable)}",
            "; ".join(f"chgrp portier {file} && chmod g+rX {file}" for file in unreadable),
        )
    if problems := facts.problems or (daemon.refused if daemon and not unreadable else ()):
        goes_on = ", and the daemon goes on with the last good one" if daemon else ""
        yield problem(
            facts.config_file,
            f"the configuration is refused{goes_on}",
            "; ".join(problems),
            f"portier check -c {facts.config_file}",
        )


def _applied(facts: Facts) -> Iterator[Finding]:
    daemon = running(facts)
    if daemon.differs and not daemon.refused:
        yield warning(
            daemon.file,
            "the file was changed since the daemon read it",
            "`watch: false` leaves it to you to apply it",
            "portier reload",
        )


def _capabilities(facts: Facts) -> Iterator[Finding]:
    daemon, lacking = running(facts), known(facts.lacking)
    if lacking:
        yield problem(
            "portier",
            f"the daemon lacks {' and '.join(lacking)}, so it cannot open ports or change routes",
            f"CapEff in /proc/{daemon.pid}/status",
            "systemctl revert portier && systemctl restart portier",
        )


def _worker(facts: Facts) -> Iterator[Finding]:
    for group, work in running(facts).work.items():
        if work.error:
            yield problem(
                f"group {group}",
                "its worker crashed, and while it is away nobody is answered",
                f"{work.error}; begun anew {work.restarts} times",
                "journalctl -u portier, and please report it",
            )


CHECKS: Final = (
    Check("daemon", "a daemon runs", _runs),
    Check("config", "the configuration is good", _config),
    Check("config-applied", "the daemon goes by the configuration on disk", _applied),
    Check("capabilities", "the daemon may do what it has to", _capabilities),
    Check("worker", "no worker crashes", _worker),
)
