"""What each command's ``--help``, and portier(8), say beyond its one line: the only place for either."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """``text`` is a paragraph, ``exits`` the exit codes that are the command's own, with their meaning."""

    text: str
    exits: dict[int, str]


MANUAL = {
    "run": Entry(
        "It runs in the foreground and logs to standard error; a service manager that started it is told "
        "when it is ready, reloads or stops, and that it lives. A saved edit of the configuration is "
        "applied at once, and one with an error changes nothing. Interfaces that do not exist yet are "
        "waited for. At a clean stop the kernel is as it was before.",
        {0: "stopped by a signal", 78: "the configuration is wrong at the start"},
    ),
    "check": Entry(
        "It prints every error at once, each with file, line and column, or what the configuration "
        "means, group by group, and warnings about it. No daemon is needed, and nothing is changed.",
        {0: "valid", 78: "not valid"},
    ),
    "plan": Entry(
        "It prints one line for each step: + adds, - removes, ~ changes. A running daemon is asked, "
        "because it knows the hosts that it has learned; where none runs, it is planned without them, "
        "and said so.",
        {0: "nothing to do", 2: "something to do"},
    ),
    "status": Entry(
        "It says what is wrong first: no usable upstream, a step that fails, a worker that restarts, a "
        "hold-down, a table that is full, a configuration on disk that was refused.",
        {0: "healthy", 3: "degraded"},
    ),
    "top": Entry(
        "It is the page of `portier status`, refreshed, with what happens a second. It takes a terminal: q "
        "quits, the space bar looks at once, + and - change the interval. While no daemon runs it waits "
        "for one.",
        {0: "quit", 64: "there is no terminal"},
    ),
    "neighbors": Entry(
        "For each host it shows address, group, port, link-layer address, state, how long ago it was "
        "heard, and whether the kernel has its host route: yes, no, foreign (somebody else's stands in "
        "its place), or - where none is wanted.",
        {0: "done"},
    ),
    "watch": Entry(
        "It prints one line for each event until it is interrupted. A filter that is given several times "
        "lets any of its values pass, and all filters must. A reader that is too slow never holds the "
        "daemon up: what it missed is said, as a number.",
        {0: "interrupted", 4: "the daemon has ended"},
    ),
    "explain": Entry(
        "It says step by step what becomes of a solicitation (or, for IPv4, an ARP request) for the "
        "address: the group, the rule, what is known of the host, and the verdict. The running daemon is "
        "asked, and a host that it does not know yet is looked for as it would be for a real question.",
        {0: "answered", 1: "not answered"},
    ),
    "doctor": Entry(
        "Each finding says what is wrong, what was seen, and what to type. It works without a daemon too. "
        "With --probe it asks the daemon for one address as the router would, follows the question, the "
        "answer and then a packet through the proxy, and names the hop that fails.",
        {0: "nothing found but notes, or the address is reached", 3: "something found, or a hop fails"},
    ),
    "reload": Entry(
        "It does what SIGHUP does, and prints the steps that were done, or every error. Groups that did "
        "not change keep their hosts and lose no packet.",
        {0: "done", 78: "refused: the old configuration stays in force"},
    ),
    "lift": Entry(
        "A port is held down for an hour when a Router Advertisement arrives on it that should not be "
        "there, for instance from a second proxy (RFC 4389 section 4.1.3.3): take away the cause first.",
        {0: "lifted", 1: "no such port, or it is not held down"},
    ),
    "cleanup": Entry(
        "It removes routes, policy rules and proxy entries, and restores sysctls, by the record in the "
        "runtime directory. A clean stop does this by itself, and so does the next start after a crash: "
        "it is for a daemon that was killed and shall not start again. It refuses while a daemon runs.",
        {0: "nothing is left", 1: "something could not be removed"},
    ),
    "schema": Entry(
        "Editors and templating tools understand it (JSON Schema, draft 2020-12). What a command prints with "
        "--json has a version, 1; within that, keys and values of enumerations may be added, and none is "
        "removed, renamed or changed in its type or meaning.",
        {0: "done"},
    ),
    "import": Entry(
        "What has no equivalent, and what the old daemon silently ignored or misread, stands in the "
        "output as a comment beside the line it is about, and on standard error with the line of the old "
        "file.",
        {0: "done", 78: "the old file is wrong, and nothing was printed"},
    ),
    "demo": Entry(
        "The real daemon serves a router, a virtual machine and a container, all of them network "
        "namespaces of this process, for some twenty seconds. It needs no root where user namespaces are "
        "allowed.",
        {0: "everything worked, and nothing is left", 1: "something did not"},
    ),
}
