"""Debian as users have it: installed roots, and machines with a booted systemd.

`Releases` installs a Debian release once with debootstrap, `Root` is a throw-away copy of one (an overlay
whose changes live in memory), and `Machine` is a root that systemd-nspawn boots.  A machine's network is
the namespace of a host of the lab (tests/netns/lab.py), never that of the computer the tests run on.

Nothing outlives the test: overlay and memory are mounted in a mount namespace of their own, which a
sleeping process holds, and machines end with their first process.  Both end with pytest at the latest.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.netns.lab import Host, UnavailableError, wait_for

MIRROR = "http://deb.debian.org/debian"
#: What a small server has.  Anything more is for packages to bring.
SERVER = ("systemd-sysv", "dbus", "iproute2", "iputils-ping", "procps")
#: What Portier runs on, and what Ansible wants of a machine.
NEEDED = (
    "python3-pyroute2",
    "python3-watchdog",
    "python3-jsonschema",
    "python3-yaml",
    "python3-prometheus-client",
    "python3-apt",
)
TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "setpriv", "unshare")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}
#: What the names of control groups begin with: then come the process and the thread that have made them.
GROUPS = "portier-test-"
#: Directories that together are a root, the uppermost first.
Layers = tuple[Path, ...]
_INSTALL = 600.0  # seconds; half a minute where nothing else runs
_BOOT = 120.0  # the same: less than a second
_INSTALLS = ("apt-get", "-qq", "-y", "--no-install-recommends", "install")
# What ends with us, and never later.
_DOOMED = ("setpriv", "--pdeathsig", "KILL", "--")


def require() -> None:
    """`UnavailableError` where no machine can be booted."""
    if os.geteuid() != 0:
        raise UnavailableError("only root boots machines")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise UnavailableError(f"not installed: {', '.join(missing)}")


def execute(
    command: Sequence[str], *, check: bool, timeout: float, stdin: str | None = None, where: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return it with its output; with ``check`` a failure fails."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=timeout, input=stdin, env=ENVIRONMENT
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{where}{' '.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done


class Releases:
    """Debian releases, each installed when it is first asked for.

    ``directory`` may be kept: what is in it is used again, and shared by those who run tests at the same
    time.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def clean(self, release: str) -> Layers:
        """A fresh ``bookworm`` or ``trixie``, for `Root`: without Python, but with the package files of all
        that Portier depends on, so that apt-get installs them without a network."""
        return (self._made(f"{release}-clean", self._debootstrap, release),)

    def furnished(self, release: str) -> Layers:
        """The same with what Portier depends on installed."""
        clean = self.clean(release)
        return (self._made(f"{release}-furnished", self._furnish, *clean), *clean)

    def _made(self, name: str, make: Any, *arguments: Any) -> Path:
        """The directory of that name and of this list of packages, made now unless it is there."""
        digest = hashlib.sha256(repr((SERVER, NEEDED)).encode()).hexdigest()[:12]
        place = self.directory / f"{name}-{digest}"
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.exists():
                unfinished = place.with_suffix(".unfinished")
                if unfinished.exists():
                    shutil.rmtree(unfinished)
                make(unfinished, *arguments)
                unfinished.rename(place)
        return place

    def _debootstrap(self, place: Path, release: str) -> None:
        settings = place / "etc/dpkg/dpkg.cfg.d/unsafe-io"
        settings.parent.mkdir(parents=True)
        settings.write_text("force-unsafe-io\n")  # nothing of it has to survive a power failure
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(SERVER)}", release]
        execute([*command, str(place), MIRROR], check=True, timeout=_INSTALL)
        with Root((), upper=place) as root:
            root.run(["apt-get", "-qq", "update"], timeout=_INSTALL, network=True)
            root.run([*_INSTALLS, "--download-only", *NEEDED], timeout=_INSTALL, network=True)

    def _furnish(self, place: Path, *below: Path) -> None:
        place.mkdir()
        with Root(below, upper=place) as root:
            root.run(
                ["apt-get", "-qq", "-y", "--no-install-recommends", "install", *NEEDED], timeout=_INSTALL
            )


class Root:
    """A root directory with ``layers`` below it, which stay as they are.

    Changes go to memory, and are gone at the end; or to the directory ``upper``, to make a layer.  ``path``
    is where to read and write its files; absolute symbolic links in it lead astray.
    """

    def __init__(self, layers: Layers, *, upper: Path | None = None) -> None:
        self._layers = layers
        self._upper = upper
        self._machines: list[Machine] = []
        self._roots = 0

    def __enter__(self) -> Self:
        # /tmp is there, and nobody else sees what is mounted on it.  /run is hidden too: what systemd-nspawn
        # keeps there is ours alone, and no service manager of this computer hears of the machine.
        script = [
            "mount -t tmpfs -o mode=755 tmpfs /mnt",
            "mkdir /mnt/upper /mnt/work /mnt/root",
            "mount -t tmpfs -o mode=755 tmpfs /run",
        ]
        if self._layers:
            below = ":".join(str(layer) for layer in self._layers)
            upper = self._upper or "/mnt/upper"
            work = f"{self._upper}.work" if self._upper else "/mnt/work"
            script += [f"mkdir -p {work}"] if self._upper else []
            options = f"lowerdir={below},upperdir={upper},workdir={work}"
            script.append(f"mount -t overlay -o {options} overlay /mnt/root")
        else:
            script.append(f"mount --bind {self._upper} /mnt/root")
        script.append("echo made; exec sleep infinity")
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--",
        ]
        self._holder = subprocess.Popen(
            [*command, "sh", "-ec", "\n".join(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "made\n":
            self.__exit__()
            raise AssertionError("no overlay can be mounted here")
        self.path = Path(f"/proc/{self._holder.pid}/root/mnt/root")
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self._machines:
            machine.kill()
        self._holder.kill()
        self._holder.communicate(timeout=20)
        if self._upper and self._layers:
            shutil.rmtree(f"{self._upper}.work", ignore_errors=True)

    def _nspawn(self, *options: str) -> list[str]:
        """The command line of systemd-nspawn on this root, in the mount namespace of the holder."""
        return [
            *_DOOMED,
            "nsenter",
            f"--mount=/proc/{self._holder.pid}/ns/mnt",
            "--",
            "systemd-nspawn",
            "--quiet",
            "--directory=/mnt/root",
            "--machine=debian",
            "--register=no",
            "--keep-unit",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            *options,
        ]

    def run(
        self,
        args: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 120.0,
        stdin: str | None = None,
        network: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the root without booting it; without a network but for ``network``, which is that
        of the computer."""
        options = [
            "--pipe",
            "--as-pid2",
            *(f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()),
        ]
        options += [] if network else ["--private-network"]
        with cgroup() as joined:
            command = [*joined, *self._nspawn(*options, "--"), *args]
            return execute(command, check=check, timeout=timeout, stdin=stdin)

    def copy(self, source: Path, inside: str, *, mode: int | None = None) -> None:
        """Copy a file or directory to the place ``inside`` this root."""
        target = self.path / inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
        if mode is not None:
            target.chmod(mode)

    def install(self, package: Path) -> None:
        """Install a package file as its users do; what it depends on has to be in the root already."""
        self.copy(package, f"/root/{package.name}")
        self.run([*_INSTALLS, f"/root/{package.name}"])

    def boot(self, host: Host) -> Machine:
        """Boot it with the network of that host of a lab; returns when everything has started."""
        machine = Machine(self, host)
        self._machines.append(machine)
        machine.start()
        return machine


class Machine:
    """A booted root.  It may be powered off and started again."""

    def __init__(self, root: Root, host: Host) -> None:
        self.root = root
        self.host = host
        self._exit = contextlib.ExitStack()
        self._leader: int | None = None

    @property
    def leader(self) -> int:
        """The process id, seen from outside, of the machine's first process."""
        assert self._leader is not None, "the machine is not running"
        return self._leader

    @property
    def path(self) -> Path:
        """Where to read and write the files of the running machine, `/run` included."""
        return Path(f"/proc/{self.leader}/root")

    def start(self) -> None:
        """Boot, and wait until everything has started."""
        with contextlib.ExitStack() as stack:
            # An abstract address: its /run is not ours, and a path in a temporary directory may be too long.
            notices = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            notices.bind("")
            notices.settimeout(0.2)
            joined = stack.enter_context(cgroup())
            console = stack.enter_context((self.host.lab.directory / f"console.{id(self)}").open("a+"))
            command = self.root._nspawn(
                "--boot",
                "--console=pipe",
                "--notify-ready=yes",
                f"--network-namespace-path=/proc/{self.host.pid}/ns/net",
                "--capability=CAP_NET_ADMIN",  # as --private-network gives it
            )
            environment = ENVIRONMENT | {
                "NOTIFY_SOCKET": "@" + notices.getsockname()[1:].decode(),
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",  # what systemd 256 and newer insist on
            }
            self._process = subprocess.Popen(
                [*joined, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
            stack.callback(self._end)
            told: set[str] = set()

            def booted() -> bool:
                with contextlib.suppress(TimeoutError):
                    told.update(notices.recv(4096).decode().splitlines())
                for line in told:
                    if self._leader is None and line.startswith("X_NSPAWN_LEADER_PID="):
                        self._leader = int(line.partition("=")[2])
                        stack.enter_context(_dies_with_us(self._leader))
                assert self._process.poll() is None, f"no machine: {self._output(console)}"
                return "READY=1" in told

            wait_for(booted, _BOOT, "the machine is up", interval=0)
            # Its service manager tells of every job that takes long, and would wait for us to read it.
            notices.close()
            self._exit = stack.pop_all()

    @staticmethod
    def _output(console: Any) -> str:
        console.seek(0)
        return str(console.read()[-4000:])

    def command(self, args: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs ``args`` in the machine, from outside of it, as root."""
        enter = ["nsenter", "-t", str(self.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        variables = [f"{name}={value}" for name, value in (ENVIRONMENT | dict(environment or {})).items()]
        return [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            *enter,
            "--root",
            "--wd",
            "env",
            "-i",
            *variables,
            *args,
        ]

    def run(
        self,
        args: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 60.0,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the machine to its end, and return it with its output; a failure fails."""
        return execute(self.command(args, environment), check=check, timeout=timeout, stdin=stdin)

    def write(self, inside: str, text: str) -> None:
        """Write a file as editors do: a temporary one, renamed over the old one."""
        target = self.path / inside.lstrip("/")
        temporary = target.with_name(f".{target.name}.swp")
        temporary.write_text(text)
        temporary.rename(target)

    def read(self, inside: str) -> str:
        """Read a file."""
        return (self.path / inside.lstrip("/")).read_text()

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """What `systemctl show` tells of a unit."""
        shown = self.run(["systemctl", "show", f"--property={','.join(properties)}", unit]).stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    def journal(self, unit: str, *options: str) -> str:
        """What the journal has of a unit."""
        return self.run(["journalctl", "--no-pager", "--unit", unit, *options]).stdout

    def poweroff(self) -> None:
        """Shut down in good order."""
        os.kill(self.leader, signal.SIGRTMIN + 4)  # systemd(1): poweroff.target
        self._process.wait(_BOOT)
        self._exit.close()

    def kill(self) -> None:
        """End at once, if it runs."""
        self._exit.close()

    def _end(self) -> None:
        if self._process.poll() is None:
            # The kernel ends the others when it ends the first; systemd-nspawn follows.
            os.kill(self._leader or self._process.pid, signal.SIGKILL)
            self._process.wait(_BOOT)
        self._leader = None


@contextlib.contextmanager
def _dies_with_us(pid: int) -> Iterator[None]:
    """See to it that a process, which systemd-nspawn's death would not end, ends when we are killed."""
    command = ["sh", "-c", 'cat; kill -9 "$0"', str(pid)]  # our end of the pipe closes with us
    guard = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        guard.kill()
        guard.communicate()


@contextlib.contextmanager
def cgroup() -> Iterator[list[str]]:
    """A control group for one machine, in each hierarchy of systemd's; gives the command prefix that runs a
    program in it.  Those of test runs that were killed, which nothing else outlives, are removed first."""
    paths = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
    )  # by controllers
    # The same name in each: systemd-nspawn looks for the one in the others.
    name = f"{GROUPS}{os.getpid()}-{threading.get_native_id()}-{time.monotonic_ns()}"
    made = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        key = "" if kind == "cgroup2" else "name=systemd"
        if kind == "cgroup2" or (kind == "cgroup" and key in options.split(",")):
            above = Path(before.split()[4]) / paths[key].lstrip("/")
            _sweep(above)
            made.append(above / name)
    try:
        for place in made:
            place.mkdir()
        joins = "; ".join(f"echo $$ > {place}/cgroup.procs" for place in made)
        yield ["sh", "-ec", f'{joins}; exec "$@"', "sh"]
    finally:
        for place in made:
            wait_for(functools.partial(_removed, place), 20, f"{place} is empty")


def _sweep(above: Path) -> None:
    """Remove what test runs that are no more have left among the control groups in one."""
    for place in above.glob(f"{GROUPS}*"):
        process = place.name.removeprefix(GROUPS).partition("-")[0]
        if not Path("/proc", process).exists():
            _removed(place)


def _removed(place: Path) -> bool:
    """Remove a control group and those below it, if they are empty."""
    with contextlib.suppress(OSError):
        for directory, _, _ in os.walk(place, topdown=False):
            Path(directory).rmdir()
    return not place.exists()
