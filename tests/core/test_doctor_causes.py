"""The table of causes in tests/README.md and the checks of `portier doctor` are about the same."""

from __future__ import annotations

import re
from pathlib import Path

from portier.core.doctor import CHECKS

TITLE = "## What makes a proxy silent, and the check that finds it"


def rows() -> list[tuple[str, list[str], str]]:
    """The table: cause, names of checks, and why there is none."""
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8").partition(TITLE)[2]
    lines = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(cause, re.findall(r"`([^`]+)`", checks), why) for cause, checks, why in cells]


def test_every_cause_has_a_check_or_a_reason() -> None:
    """One of the two, and the checks that it names exist."""
    names = {check.name for check in CHECKS}
    assert len(rows()) > 50
    for cause, checks, why in rows():
        assert bool(checks) != bool(why), cause
        assert names.issuperset(checks), cause


def test_every_check_is_for_a_cause() -> None:
    """A check that no row names is missing from the table in tests/README.md."""
    named = {name for _, checks, _ in rows() for name in checks}
    assert {check.name for check in CHECKS} - named == set()
