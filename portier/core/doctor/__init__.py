"""`portier doctor`: what makes a proxy silently do nothing, as a table of checks.

`facts` is what is judged by, `finding` what is said; the other modules hold the checks, each one small
function of the facts.  Nothing here touches anything.
"""

from __future__ import annotations

from typing import Final

from portier.core.doctor import around, filters, machine, ports, process, told, traffic, ways
from portier.core.doctor.finding import Check

CHECKS: Final[tuple[Check, ...]] = (
    *process.CHECKS,
    *ports.CHECKS,
    *machine.CHECKS,
    *filters.CHECKS,
    *around.CHECKS,
    *ways.CHECKS,
    *traffic.CHECKS,
    *told.CHECKS,
)
