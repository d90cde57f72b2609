"""Every way in which a configuration gets replaced wakes; reading it does not."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from portier.system.watch import ConfigWatch

PROMPT = 20.0  # seconds; a wake takes 0.01, and 0.5 where watchdog waits for the other half of a move
QUIET = 0.8


class Wakes:
    """Counts wakes, so that a test can wait for one."""

    def __init__(self) -> None:
        self._queue: queue.Queue[str] = queue.Queue()

    def __call__(self, reason: str) -> None:
        """What the watch calls."""
        self._queue.put(reason)

    def settle(self) -> None:
        """Forget the wakes so far, when they have ended."""
        while self.came(QUIET):
            pass

    def came(self, timeout: float = PROMPT) -> bool:
        """Whether there is a wake within the time."""
        try:
            assert self._queue.get(timeout=timeout) == "file"
        except queue.Empty:
            return False
        return True


@pytest.fixture
def wakes() -> Wakes:
    """Where the wakes go."""
    return Wakes()


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A directory like /etc."""
    path = tmp_path / "etc"
    path.mkdir()
    return path


@pytest.fixture
def threads() -> Iterator[None]:
    """No thread and no descriptor outlives the test."""
    before, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert set(threading.enumerate()) <= before
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


pytestmark = pytest.mark.usefixtures("threads")


def write(path: Path, text: str = "version: 1\n") -> None:
    """Write a file as a shell would."""
    path.write_text(text)


def replace(path: Path, text: str = "version: 1\n") -> None:
    """Write a file as editors and Ansible do: a temporary one, moved to its place."""
    new = path.with_name(f".{path.name}.swp1")
    write(new, text)
    new.replace(path)


def test_writing_in_place(etc: Path, wakes: Wakes) -> None:
    """A file that is written to wakes."""
    config = etc / "portier.yaml"
    write(config)
    with ConfigWatch(config, wakes):
        write(config, "version: 1 # changed\n")
        assert wakes.came()


def test_rename_over(etc: Path, wakes: Wakes) -> None:
    """A file that another is moved over wakes, each time."""
    config = etc / "portier.yaml"
    write(config)
    with ConfigWatch(config, wakes):
        for number in range(3):
            replace(config, f"version: 1 # {number}\n")
            assert wakes.came()
            wakes.settle()


def test_moved_in_from_elsewhere(etc: Path, tmp_path: Path, wakes: Wakes) -> None:
    """A file moved in from a directory that nobody watches wakes."""
    config = etc / "portier.yaml"
    write(config)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "new")
    with ConfigWatch(config, wakes):
        (elsewhere / "new").replace(config)
        assert wakes.came()


def test_delete_and_create(etc: Path, wakes: Wakes) -> None:
    """A file that goes away wakes, and when it is back again."""
    config = etc / "portier.yaml"
    write(config)
    with ConfigWatch(config, wakes):
        config.unlink()
        assert wakes.came()
        wakes.settle()
        write(config)
        assert wakes.came()


def test_mode(etc: Path, wakes: Wakes) -> None:
    """A file that becomes readable wakes, for that may be what was wrong."""
    config = etc / "portier.yaml"
    write(config)
    config.chmod(0)
    with ConfigWatch(config, wakes):
        config.chmod(0o644)
        assert wakes.came()


def test_reading_and_neighbors_do_not_wake(etc: Path, wakes: Wakes) -> None:
    """Neither reading the configuration nor the files next to it wake."""
    config = etc / "portier.yaml"
    write(config)
    drop_ins = etc / "portier.d"
    drop_ins.mkdir()
    write(drop_ins / "10-a.yaml")
    with ConfigWatch(config, wakes):
        wakes.settle()
        for _ in range(3):
            config.read_text()
            (drop_ins / "10-a.yaml").read_text()
            list(drop_ins.iterdir())
        write(etc / "passwd")
        replace(etc / "hosts")
        assert not wakes.came(QUIET)


def test_the_other_format(etc: Path, wakes: Wakes) -> None:
    """The TOML twin wakes, for both at once is an error to report."""
    config = etc / "portier.yaml"
    write(config)
    with ConfigWatch(config, wakes):
        write(etc / "portier.toml")
        assert wakes.came()


def test_nothing_is_there_at_the_start(tmp_path: Path, wakes: Wakes) -> None:
    """A file and its directories may all come later."""
    config = tmp_path / "some" / "where" / "portier.yaml"
    with ConfigWatch(config, wakes):
        config.parent.mkdir(parents=True)
        assert wakes.came()
        wakes.settle()
        write(config)
        assert wakes.came()


def test_drop_ins_come_and_go(etc: Path, wakes: Wakes) -> None:
    """Drop-in files wake, and so does their directory, made after the start, removed and made again."""
    config = etc / "portier.yaml"
    write(config)
    drop_ins = etc / "portier.d"
    with ConfigWatch(config, wakes):
        for _ in range(2):
            drop_ins.mkdir()
            assert wakes.came()
            wakes.settle()
            write(drop_ins / "10-a.yaml")
            assert wakes.came()
            wakes.settle()
            (drop_ins / "10-a.yaml").unlink()
            assert wakes.came()
            wakes.settle()
            drop_ins.rmdir()
            assert wakes.came()
            wakes.settle()


def test_directory_replaced(etc: Path, wakes: Wakes) -> None:
    """A drop-in directory that another is moved to the place of wakes, and the new one is watched."""
    config = etc / "portier.yaml"
    write(config)
    drop_ins = etc / "portier.d"
    drop_ins.mkdir()
    new = etc / "new"
    new.mkdir()
    with ConfigWatch(config, wakes):
        drop_ins.rename(etc / "old")
        new.rename(drop_ins)
        assert wakes.came()
        wakes.settle()
        write(drop_ins / "10-a.yaml")
        assert wakes.came()
        wakes.settle()
        write(etc / "old" / "10-a.yaml")
        assert not wakes.came(QUIET)


def test_symlink_swap(etc: Path, tmp_path: Path, wakes: Wakes) -> None:
    """A symlink that is replaced by another wakes, and what it leads to now is watched."""
    config = etc / "portier.yaml"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "real.yaml", f"version: 1 # {name}\n")
    config.symlink_to(tmp_path / "one" / "real.yaml")
    with ConfigWatch(config, wakes):
        replace(tmp_path / "one" / "real.yaml")
        assert wakes.came()
        wakes.settle()
        (etc / ".new").symlink_to("../two/real.yaml")
        (etc / ".new").replace(config)
        assert wakes.came()
        wakes.settle()
        replace(tmp_path / "two" / "real.yaml")
        assert wakes.came()


def config_map(volume: Path, stamp: str, text: str) -> None:
    """Update a directory as Kubernetes does with a ConfigMap: ``portier.yaml`` leads to ``..data/``, and
    ``..data`` to a directory with the time in its name."""
    fresh = volume / f"..{stamp}"
    fresh.mkdir()
    write(fresh / "portier.yaml", text)
    (fresh / "portier.d").mkdir()
    write(fresh / "portier.d" / "10-a.yaml", text)
    old = (volume / "..data").readlink() if (volume / "..data").is_symlink() else None
    (volume / "..data_tmp").symlink_to(fresh.name)
    (volume / "..data_tmp").replace(volume / "..data")
    for name in ("portier.yaml", "portier.d"):
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    if old is not None:
        for path in sorted((volume / old).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (volume / old).rmdir()


def test_config_map(etc: Path, wakes: Wakes) -> None:
    """Each update of a mounted ConfigMap wakes."""
    config_map(etc, "2024_01", "version: 1\n")
    with ConfigWatch(etc / "portier.yaml", wakes):
        for number in range(3):
            config_map(etc, f"2024_02_{number}", f"version: 1 # {number}\n")
            assert wakes.came()
            wakes.settle()


def test_drop_in_is_a_symlink(etc: Path, tmp_path: Path, wakes: Wakes) -> None:
    """What a drop-in that is a symlink leads to is watched."""
    config = etc / "portier.yaml"
    (etc / "portier.d").mkdir()
    real = tmp_path / "real.yaml"
    write(real)
    (etc / "portier.d" / "10-a.yaml").symlink_to(real)
    with ConfigWatch(config, wakes):
        replace(real)
        assert wakes.came()


def test_symlinks_in_a_circle(etc: Path, wakes: Wakes) -> None:
    """Symlinks that lead nowhere are a missing file, until one of them changes."""
    config = etc / "portier.yaml"
    config.symlink_to("other.yaml")
    (etc / "other.yaml").symlink_to("portier.yaml")
    with ConfigWatch(config, wakes):
        (etc / "other.yaml").unlink()
        assert wakes.came()
