"""Wakes the reconciler when a configuration file may have changed.

Watched are directories, never files, for editors, Ansible and Kubernetes replace a file (or a directory, or a
symlink on the way to it) rather than write to it.  Which directories, follows from resolving the paths by
hand: each symlink on the way, the last two components, and the nearest directory that exists of a
path that does not.  After every relevant event they are resolved anew.

An event only wakes; whether anything changed is for the reader to find out.  Opening and reading a file
is none, or loading the configuration would be a reason to load it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from watchdog import events
from watchdog.observers.inotify import InotifyObserver

# What an event may be: neither opening, closing without having written, nor the change of a directory that
# goes with each change of a name in it.  Some classes are as young as watchdog 7; before, a change of mode
# was a FileModifiedEvent.
_RELEVANT: Final[tuple[Any, ...]] = tuple(
    getattr(events, name)
    for name in (
        "FileCreatedEvent",
        "FileModifiedEvent",
        "FileAttribEvent",
        "FileClosedEvent",
        "FileMovedEvent",
        "FileDeletedEvent",
        "DirCreatedEvent",
        "DirAttribEvent",
        "DirMovedEvent",
        "DirDeletedEvent",
    )
    if hasattr(events, name)
)
_LINKS: Final = 40  # symlinks on the way to one file, as in the kernel
_ENTRIES: Final = 1000  # drop-ins whose symlinks are followed
_ROUNDS: Final = 5  # of resolving, while what was resolved changes underneath

log = logging.getLogger(__name__)

# Directory -> the names in it that matter, None for all of them.
_Places = dict[Path, set[str] | None]


class ConfigWatch:
    """Watches a configuration file, in either of its formats, and the drop-ins that belong to it.

    ``wake`` is called with ``"file"`` in a thread of this object's, once or oftener for one edit: the
    receiver waits until it is quiet.  Nothing needs to exist yet.
    """

    def __init__(self, config: Path, wake: Callable[[str], None]) -> None:
        config = Path(os.path.abspath(config))  # noqa: PTH100  (resolve() would follow symlinks)
        self._paths = (config, *(config.with_suffix(suffix) for suffix in (".yaml", ".toml", ".d")))
        self._wake = wake
        self._observer = InotifyObserver()
        self._watched: dict[Path, tuple[tuple[int, int], _Handler, Any]] = {}
        self._stirred = threading.Event()
        self._stopping = False
        self._refused: set[Path] = set()
        self._thread = threading.Thread(target=self._run, name="portier-watch", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start watching; every change after this returns is noticed."""
        self._observer.start()
        self._refresh()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching and wait for the threads."""
        self._stopping = True
        self._stirred.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._observer.ident is not None:
            self._observer.stop()
            self._observer.join()

    def _run(self) -> None:
        while True:
            self._stirred.wait()
            self._stirred.clear()
            if self._stopping:
                return
            self._refresh()
            self._wake("file")

    def _refresh(self) -> None:
        """Watch what matters now.  Repeated until it stays the same, because what changed between
        resolving and watching gave no event."""
        for _ in range(_ROUNDS):
            places = _places(self._paths)
            changed = False
            for directory in list(self._watched):
                if directory not in places or _identity(directory) != self._watched[directory][0]:
                    _, _, watch = self._watched.pop(directory)
                    with contextlib.suppress(KeyError, OSError):  # gone with its directory
                        self._observer.unschedule(watch)
                    changed = True
            for directory, names in places.items():
                if directory in self._watched:
                    self._watched[directory][1].names = names
                elif self._schedule(directory, names):
                    changed = True
            if not changed:
                return

    def _schedule(self, directory: Path, names: set[str] | None) -> bool:
        identity = _identity(directory)
        if identity is None:
            return False
        handler = _Handler(directory, names, self._stirred.set)
        try:
            try:
                watch = self._observer.schedule(
                    handler, str(directory), recursive=False, event_filter=list(_RELEVANT)
                )
            except TypeError:  # watchdog before 4, which reports no opening and reading either
                watch = self._observer.schedule(handler, str(directory), recursive=False)
        except OSError as error:
            if directory not in self._refused:
                self._refused.add(directory)
                log.warning("cannot watch %s: %s; changes there need a reload", directory, error)
            return False
        self._watched[directory] = (identity, handler, watch)
        self._refused.discard(directory)
        return True


class _Handler:
    """Looks at the events of one directory: the part of watchdog's handlers that observers call."""

    def __init__(self, directory: Path, names: set[str] | None, stir: Callable[[], None]) -> None:
        self._directory = str(directory)
        self.names = names
        self._stir = stir

    def dispatch(self, event: Any) -> None:
        """Stir when the event is about one of the names, or about the directory itself."""
        if not isinstance(event, _RELEVANT):
            return
        for path in (event.src_path, getattr(event, "dest_path", "")):
            text = os.fsdecode(path or "")
            head, tail = os.path.split(text)
            names = self.names
            if text == self._directory or (head == self._directory and (names is None or tail in names)):
                self._stir()
                return


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _places(paths: tuple[Path, ...]) -> _Places:
    """The directories to watch for changes of what these paths lead to."""
    places: _Places = {}

    def add(directory: Path, name: str) -> None:
        names = places.setdefault(directory, set())
        if names is not None:
            names.add(name)

    for path in paths:
        end = _follow(path, add)
        if end is None or not end.is_dir():
            continue
        places[end] = None
        for entry in _symlinks(end):
            _follow(entry, add)
    return places


def _symlinks(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry, _ in zip(entries, range(_ENTRIES), strict=False):
            if entry.is_symlink():
                yield Path(entry.path)


def _follow(path: Path, add: Callable[[Path, str], None]) -> Path | None:
    """Resolve a path, telling each (directory, name) on the way whose change would change where it leads.
    Returns where that is, None when it does not exist."""
    current = Path(path.anchor)
    parts = deque(path.parts[1:])
    links = 0
    while parts:
        name = parts.popleft()
        if name == "..":
            current = current.parent
            continue
        following = current / name
        try:
            target = following.readlink()
        except FileNotFoundError:
            add(current, name)
            return None
        except OSError:  # not a symlink
            if len(parts) < 2:
                add(current, name)
            current = following
            continue
        add(current, name)
        links += 1
        if links > _LINKS:
            return None
        if target.is_absolute():
            current = Path(target.anchor)
        parts.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    return current
