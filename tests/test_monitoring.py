"""The alert rules fire, and none is without a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path(__file__).parent.parent / "packaging" / "prometheus"
RULES = PROMETHEUS / "portier.rules.yml"
TESTS = PROMETHEUS / "portier.rules.test.yml"


def alerts() -> list[dict[str, Any]]:
    """The alert rules."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*args: str) -> str:
    """Run promtool; what it prints."""
    if shutil.which("promtool") is None:
        if os.environ.get("PORTIER_REQUIRE"):
            pytest.fail("promtool is missing: Debian has it in prometheus")
        pytest.skip("no promtool here: Debian has it in prometheus")
    done = subprocess.run(
        ["promtool", *args], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_valid() -> None:
    """Prometheus takes the file as it is."""
    assert f"{len(alerts())} rules found" in promtool("check", "rules", RULES.name)


def test_every_alert_fires() -> None:
    """Every alert is seen to fire in `promtool test rules`, and to be silent for a healthy daemon."""
    assert "SUCCESS" in promtool("test", "rules", TESTS.name)
    names = {rule["alert"] for rule in alerts()}
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    healthy = yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"][0]
    assert {case["alertname"] for case in healthy["alert_rule_test"]} == names
    assert not any(case.get("exp_alerts") for case in healthy["alert_rule_test"])


def test_alerts_say_what_to_do() -> None:
    """Each has a severity, a summary and a description, and names commands that are there."""
    from portier.cli import COMMANDS  # noqa: PLC0415

    for rule in alerts():
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert rule["annotations"]["summary"]
        for command in re.findall(r"`portier (\w+)", rule["annotations"]["description"]):
            assert command in COMMANDS
