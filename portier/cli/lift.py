"""`portier lift PORT`: ends the hold-down of a port (mode relay)."""

from __future__ import annotations

import argparse
from typing import Any

from portier.cli import exits
from portier.system.control import ControlClient


def run(options: argparse.Namespace) -> int:
    """Lift; 0 done, 1 where there is no such port or it is not held down."""
    answer: dict[str, Any] = ControlClient(options.runtime_dir).post("/v1/lift", port=options.port)
    where, why = f"{answer['port']} of group {answer['group']}", answer["was"]["reason"]
    print(f"{where} is not in hold-down any more ({why}); `portier status` shows when it forwards again")
    return exits.OK
