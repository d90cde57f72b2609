"""The checks of `portier doctor`, by facts made by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from portier.core.doctor import CHECKS
from portier.core.doctor.facts import Daemon, Facts, Unknown, known
from portier.core.doctor.finding import Check, Finding, Severity, examine, problem, warning

DAEMON = Daemon(pid=7, uptime=600.0, file="/etc/portier.yaml", refused=(), differs=False)


def found(facts: Facts, check: str) -> list[Finding]:
    """What one check finds."""
    (only,) = [each for each in CHECKS if each.name == check]
    return list(examine(facts, [only]).findings)


def test_names_are_distinct() -> None:
    """A name means one check."""
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))


def test_problems_come_before_warnings() -> None:
    """What keeps hosts from being reached is said first."""
    checks = (
        Check("mild", "", lambda _: [warning("a", "x")]),
        Check("bad", "", lambda _: [problem("b", "y")]),
        Check("good", "", lambda _: []),
    )
    diagnosis = examine(Facts(), checks)
    assert [(each.check, each.severity) for each in diagnosis.findings] == [
        ("bad", Severity.PROBLEM),
        ("mild", Severity.WARNING),
    ]
    assert diagnosis.passed == ("good",)


def test_a_check_without_its_facts_says_why() -> None:
    """What could not be looked at is neither found nor passed; what was found before that stays."""

    def find(facts: Facts) -> Iterator[Finding]:
        yield warning("a", "x")
        known(facts.config)

    diagnosis = examine(Facts(config=Unknown("not root")), [Check("half", "", find)])
    assert [each.subject for each in diagnosis.findings] == ["a"]
    assert diagnosis.passed == ()
    assert diagnosis.unmade == (("half", "not root"),)


@pytest.mark.parametrize(
    ("facts", "check", "words"),
    [
        (Facts(daemon=None), "daemon", "no daemon runs"),
        (Facts(problems=("x:1:2: groups: wrong",)), "config", "is refused"),
        (Facts(daemon=DAEMON._replace(differs=True)), "config-applied", "was changed"),
    ],
)
def test_found(facts: Facts, check: str, words: str) -> None:
    """Each check finds what it is for, and has a remedy."""
    (finding,) = found(facts, check)
    assert words in finding.finding
    assert finding.remedy
