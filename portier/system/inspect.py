"""Facts for `portier doctor` that no snapshot of the kernel shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from portier.errors import KernelError
from portier.system import sysctl


def sysctls(paths: Iterable[str]) -> Mapping[str, str]:
    """The values of those sysctls that there are."""
    found = {}
    for path in paths:
        try:
            value = sysctl.read(path)
        except KernelError:
            continue
        if value is not None:
            found[path] = value
    return found
