"""Reads and writes below /proc/sys, by path.

A path is like ``net/ipv6/conf/eth0.7/accept_ra``: with slashes, because a dot may belong to the name of
an interface.  What is below ``net`` is that of the calling thread's network namespace.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from portier.core.model import Notice
from portier.errors import KernelError

_ROOT: Final = Path("/proc/sys")


def read(path: str) -> str | None:
    """The value without its newline, or None where there is no such sysctl.  Other failures are
    `KernelError`."""
    try:
        return _place(path).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _failure(f"read sysctl {path}", error) from error


def write(path: str, value: str) -> None:
    """Set a sysctl.  `KernelError` says that there is none, that it is read-only, or what else it was."""
    try:
        # Not through Path: that would create a file if ever /proc/sys were one's own directory.
        descriptor = os.open(_place(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failure(f"set sysctl {path} to {value}", error) from error


def too_few_neighbors(wanted: int, versions: Iterable[int]) -> Iterator[Notice]:
    """In words, of which versions of IP the kernel keeps fewer neighbors than are `wanted`.  In most network
    namespaces it does not tell."""
    for version in sorted(versions, reverse=True):
        limit = f"net/ipv{version}/neigh/default/gc_thresh3"
        try:
            most = int(read(limit) or wanted)
        except (KernelError, ValueError):
            continue
        if wanted > most:
            yield Notice(
                "kernel-neighbors",
                f"limits.neighbors is {wanted}, but this kernel keeps at most {most} IPv{version} neighbors, "
                "for all namespaces together",
                f"sysctl -w {limit.replace('/', '.')}={2 * wanted}",
            )


def _place(path: str) -> Path:
    parts = path.split("/")
    if not path or not all(part and part not in (".", "..") for part in parts):
        raise KernelError(f"sysctl {path!r}", "not a path below /proc/sys", errno.EINVAL)
    return _ROOT.joinpath(*parts)


def _failure(operation: str, error: OSError) -> KernelError:
    code = error.errno or 0
    reason = {
        errno.ENOENT: "no such sysctl, or its interface is gone",
        errno.ENOTDIR: "no such sysctl",
        errno.EROFS: "/proc/sys is read-only here (in a container: mount it read-write)",
        errno.EACCES: "not permitted",
        errno.EPERM: "not permitted",
        errno.EINVAL: "the kernel does not take this value",
    }.get(code, os.strerror(code))
    return KernelError(operation, reason, code)
