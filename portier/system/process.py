"""What the process itself needs before it is a daemon: rights, descriptors, its place in the network
namespace, and a runtime dir of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import resource
import socket
import stat
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from portier.errors import Refused

EXIT_NOT_PERMITTED: Final = 77
_DESCRIPTORS: Final = 65536  # a group takes about six
_PLACE: Final = b"\0portier"  # abstract sockets are per network namespace, as a daemon is
_CAPABILITIES: Final = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}
_USER: Final = "portier"  # that the service runs as
_UNREADABLE: Final = r"""
for path; do
    if [ -d "$path" ]; then [ -x "$path" ]; fi && [ -r "$path" ] || printf '%s\0' "$path"
done"""
_CAPABILITY_VERSION: Final = 0x20080522  # of capset(2)
_PR_SET_KEEPCAPS: Final = 8

_libc = ctypes.CDLL(None, use_errno=True)


def become_owner(path: Path) -> None:
    """As root, become the service's user where the runtime dir is that user's, and keep but the rights that
    a daemon needs: so what the service left there is acted on with no more rights than it had itself."""
    if os.geteuid() != 0:
        return
    try:
        user = pwd.getpwnam(_USER)
        if path.stat().st_uid != user.pw_uid:
            return
    except (KeyError, FileNotFoundError):
        return
    _must(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.initgroups(_USER, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    kept = sum(1 << bit for bit in _CAPABILITIES)
    header = struct.pack("@Ii", _CAPABILITY_VERSION, 0)
    sets = struct.pack("@6I", kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; the upper halves
    _must(_libc.capset(header, sets))


def unreadable(paths: Iterable[Path], user: str = _USER) -> tuple[Path, ...]:
    """Of files and directories those that the service, which has a user of its own, cannot read.  Only root
    can tell; where there is no such user, none."""
    if os.geteuid() != 0:
        return ()
    try:
        who = pwd.getpwnam(user)
        asked = subprocess.run(
            ["/bin/sh", "-c", _UNREADABLE, "sh", *paths],
            check=False,
            stdout=subprocess.PIPE,
            cwd="/",
            user=who.pw_uid,
            group=who.pw_gid,
            extra_groups=os.getgrouplist(user, who.pw_gid),
        )
    except (KeyError, OSError):  # no such user, or not in this user namespace
        return ()
    return tuple(Path(os.fsdecode(path)) for path in asked.stdout.split(b"\0")[:-1])


def _must(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def make_runtime_dir(path: Path) -> None:
    """Make sure that there is a runtime dir that we can write to and nobody else: what it holds is believed
    by root."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    except OSError as error:
        denied = error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}
        raise Refused(
            f"cannot use the runtime dir {path}: {error.strerror}; name another with --runtime-dir",
            EXIT_NOT_PERMITTED if denied else 1,
        ) from error
    require_own(path)


def require_own(path: Path) -> None:
    """Refuse a directory in which others may put what they like."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        why = f"belongs to another user ({status.st_uid})"
    elif status.st_mode & stat.S_IWOTH:
        why = "can be written to by everybody"
    else:
        return
    raise Refused(
        f"the runtime dir {path} {why}: make it this user's own (chown, chmod 755), or name another "
        "with --runtime-dir",
        EXIT_NOT_PERMITTED,
    )


@contextlib.contextmanager
def hold_place() -> Iterator[None]:
    """Be the one daemon of this network namespace."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as place:
        try:
            place.bind(_PLACE)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Refused(
                f"a daemon runs in this network namespace already{place_holder()}: stop it first"
            ) from error
        place.listen()
        yield


def place_holder() -> str:
    """Who is the one daemon of this network namespace, in words to append, as far as the kernel tells."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(_PLACE)
            data = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return ""
    pid = struct.unpack("=iII", data)[0]
    return f" (process {pid})" if pid else ""


def missing_rights(process: int | str = "self") -> tuple[str, ...]:
    """The capabilities that everything needs and a process does not have."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    held = next((int(line[7:], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return tuple(name for bit, name in _CAPABILITIES.items() if not held >> bit & 1)


def require_rights() -> None:
    """Refuse to start without the capabilities that everything needs."""
    if missing := missing_rights():
        raise Refused(f"{' and '.join(missing)} missing: run as root", EXIT_NOT_PERMITTED)


def raise_descriptors() -> None:
    """Allow as many descriptors as a thousand groups need, or as many as may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (max(hard, _DESCRIPTORS), hard):
        if soft >= most:
            return
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return
