"""`portier plan`: the steps that would be done now.

The running daemon is asked, because it knows the hosts it has learned; where none runs, the steps are
worked out here, and that they are is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from portier.cli import complain, exits, named_file, text
from portier.errors import Refused
from portier.system.control import ControlClient

_TIMEOUT = 60.0  # seconds; the daemon loads the configuration in a process of its own first


def run(options: argparse.Namespace) -> int:
    """Print the steps, and to stderr what is wrong about the groups; 0 no steps, 2 some."""
    try:
        client = ControlClient(options.runtime_dir, _TIMEOUT)
        plan: dict[str, Any] = client.post("/v1/plan", **named_file(options))
        plan["daemon"] = True
    except Refused as refused:
        if refused.exit_code != exits.NO_DAEMON:
            raise
        plan = _alone(options)
        plan["daemon"] = False
    if options.json:
        json.dump(plan, sys.stdout, indent=2)
        print()
    else:
        for step in text.clean(plan["steps"]):
            print(step)
        for warning in plan["warnings"]:
            complain("plan", f"warning: {warning}")
        if not plan["daemon"]:
            complain("plan", "no daemon runs: this is planned without the hosts it would have learned")
        if not plan["steps"]:
            print("nothing to do", file=sys.stderr)
    return exits.STEPS if plan["steps"] else exits.OK


def _alone(options: argparse.Namespace) -> dict[str, Any]:
    from portier.daemon import plan_answer, plan_once  # noqa: PLC0415  (netlink and all: not needed where the daemon answers)

    return plan_answer(plan_once(options.config, options.runtime_dir))
