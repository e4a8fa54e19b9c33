#!/usr/bin/env python3
"""Submits a task to zkmw, waits for it, shows what it printed, and exits as it exited.

Written by docs/contract.md alone, as a client in any language could be. Needs Python 3.9 and kazoo
(pip install kazoo==2.11.0), and nothing of zkmw. As a library: `Tasks(client).run("echo hi")`.

exit codes: the task's own; 128 + the signal that killed it; 124 when it ran past its timeout; 126 or 127 when it could
not be started; 1 when it was cancelled, expired, given up, or is gone; 65 the task is too large, or its znode can't be
read; 69 the ensemble can't be reached, or there is no kazoo; 73 there is no room; 130 interrupted (the task goes on)
"""

import argparse
import base64
import json
import logging
import sys
import threading
import uuid
from dataclasses import dataclass
from typing import Any, Callable, Optional

try:
    from kazoo.client import KazooClient, KazooState
    from kazoo.exceptions import (
        BadVersionError,
        ConnectionClosedError,
        ConnectionLoss,
        NoAuthError,
        NodeExistsError,
        NoNodeError,
        OperationTimeoutError,
        SessionExpiredError,
    )
    from kazoo.handlers.threading import KazooTimeoutError
except ImportError as missing:
    print(f"submit.py: there is no kazoo ({missing}): pip install kazoo==2.11.0", file=sys.stderr)
    sys.exit(69)

MAX_CHILDREN = 4_000
MAX_TASK_BYTES = 262_144
VERSION = 1
# The reply is lost, and it is not known whether the request was applied.
LOST = (ConnectionLoss, ConnectionClosedError, OperationTimeoutError, SessionExpiredError)


class TooLarge(Exception):
    """No server would be given that much for one task."""


class Full(Exception):
    """A directory has no room for another child, or the service none for another task."""


class Gone(Exception):
    """Somebody else deleted the task."""


class Unreadable(Exception):
    """The data of the task is none that this client understands."""


@dataclass
class Submitted:
    """A task that exists. `doubtful` means that its create may be applied a second time, at any later time."""

    id: str
    doubtful: bool


def shared_job(name: str) -> str:
    """The directory of a task that has no job of its own."""
    fnv = 0x811C9DC5
    for byte in name.encode():
        fnv = ((fnv ^ byte) * 0x01000193) & 0xFFFFFFFF
    return "_%02x" % (fnv & 0xFF)


def new_id(job: Optional[str] = None) -> str:
    """An id that nobody else uses, in this job or in a shared one."""
    name = str(uuid.uuid4())
    return f"{job or shared_job(name)}/{name}"


def to_bytes(value: Any) -> bytes:
    """Bytes as the contract has them: a text, or base64."""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def output(value: Any) -> bytes:
    """The kept part of a stream; where something was left out, a line says how much."""
    if value is None:
        return b""
    if isinstance(value, dict) and "omitted" in value:
        left_out = b"\n[%d bytes left out]\n" % value["omitted"]
        return to_bytes(value["head"]) + left_out + to_bytes(value["tail"])
    return to_bytes(value)


def exit_code(outcome: dict) -> int:
    """0 for a task that is done, and for no other."""
    reason = outcome.get("reason")
    if outcome["state"] == "done":
        return 0
    if reason == "timeout":
        return 124
    if reason == "exit":
        return outcome.get("exit_code") or 1
    if reason == "not-started":
        detail = (outcome.get("detail") or "").lower()
        return 126 if "cannot start" in detail or "permission denied" in detail else 127
    return 128 + outcome["signal"] if reason == "signal" else 1


class Tasks:
    """The tasks below a root, over a kazoo client that was started."""

    def __init__(self, client: KazooClient, root: str = "/zkmw") -> None:
        self.client = client
        self.status = f"{root.rstrip('/')}/status"
        self.directory = f"{root.rstrip('/')}/tasks"
        self.changed = threading.Event()
        client.add_listener(self._on_state)

    def run(self, command: str, job: Optional[str] = None, **options: Any) -> dict:
        """Submits, waits, gives the outcome, and deletes a task that succeeded: any other stays for a while."""
        submitted = self.submit(command, job, **options)
        outcome, version = self.wait(submitted.id)
        if outcome["state"] == "done":
            self.clean_up(submitted, version)
        return outcome

    def submit(self, command: str, job: Optional[str] = None, **options: Any) -> Submitted:
        """Creates a task. When this returns it is durable."""
        return self.create(new_id(job), {"v": VERSION, "command": command, **options})

    def create(self, task: str, data: dict) -> Submitted:
        """Creates a task under an id that nobody else uses."""
        submitted = Submitted(task, False)
        encoded = json.dumps(data).encode()
        if len(encoded) > MAX_TASK_BYTES:
            raise TooLarge(f"the task has {len(encoded)} bytes, more than {MAX_TASK_BYTES}")
        directory = f"{self.directory}/{task.split('/')[0]}"
        self._again(lambda: self._check_room(directory))
        self._again(lambda: self._check_admission(len(encoded)))
        while True:
            try:
                self.client.create(f"{self.directory}/{task}", encoded)
                return submitted
            except NoNodeError:
                self._again(lambda: self._make_directories(directory))
            except NodeExistsError:
                # Nobody else uses the name, so the request whose reply was lost has made it.
                if not submitted.doubtful:
                    raise
                return submitted
            except LOST:
                submitted.doubtful = True
                self._wait_for_connection()

    def wait(self, task: str) -> "tuple[dict, int]":
        """Waits until the task has ended; gives its outcome, and the version that it was read at."""
        while True:
            # Before the read, so that no change after it is missed.
            self.changed.clear()
            try:
                data, stat = self.client.get(f"{self.directory}/{task}", watch=self._on_event)
            except NoNodeError:
                raise Gone(task) from None
            except LOST:
                self._wait_for_connection()
                continue
            outcome = decode(data).get("outcome")
            if outcome is not None:
                return outcome, stat.version
            self.changed.wait()

    def clean_up(self, submitted: Submitted, version: int) -> bool:
        """Deletes a task whose outcome was made use of; what may not be deleted is left to the leader."""
        while not submitted.doubtful:
            try:
                self.client.delete(f"{self.directory}/{submitted.id}", version=version)
                return True
            except NoNodeError:
                return True
            except BadVersionError:
                return False
            except LOST:
                self._wait_for_connection()
        return False

    def _again(self, calls: Callable[[], None]) -> None:
        """Makes calls that may be made twice, until there is an answer."""
        while True:
            try:
                return calls()
            except LOST:
                self._wait_for_connection()

    def _check_room(self, directory: str) -> None:
        stat = self.client.exists(directory)
        full = directory
        if stat is None:
            full = self.directory
            stat = self.client.exists(full)
        if stat is not None and stat.numChildren >= MAX_CHILDREN:
            raise Full(f"{full} is full: it has {stat.numChildren} children")

    def _check_admission(self, size: int) -> None:
        """By the leader's figures; where there are none, nothing is limited."""
        try:
            status = json.loads(self.client.get(self.status)[0])
            tasks = status["tasks"]
            pending = tasks["pending"] + tasks["assigned"] + tasks.get("running", 0)
            stored, limits = status["admission"]["bytes"], status["admission"]
            full = pending + 1 > limits["max_pending"] or stored + size > limits["max_pending_bytes"]
        except (NoNodeError, NoAuthError, ValueError, KeyError, TypeError):
            return
        if full:
            raise Full(
                f"the service is full: {pending} tasks of {limits['max_pending']} are pending, and all tasks take"
                f" {stored} bytes of {limits['max_pending_bytes']}; try again later"
            )

    def _make_directories(self, directory: str) -> None:
        """Makes what is missing, from the top down. Somebody else may be at the same."""
        at = ""
        for component in directory.strip("/").split("/"):
            at += f"/{component}"
            try:
                self.client.create(at, b"")
            except NodeExistsError:
                pass

    def _wait_for_connection(self) -> None:
        while not self.client.connected:
            self.changed.wait(1)
            self.changed.clear()

    def _on_event(self, _event: Any) -> None:
        self.changed.set()

    def _on_state(self, state: str) -> None:
        # A session that is lost takes its watches along, and a new connection may have missed a change.
        if state in (KazooState.CONNECTED, KazooState.LOST):
            self.changed.set()


def decode(data: bytes) -> dict:
    """The data of a task, if it is of the version that is known here."""
    try:
        task = json.loads(data)
    except ValueError as error:
        raise Unreadable(f"it is no JSON: {error}") from None
    if not isinstance(task, dict) or task.get("v", VERSION) != VERSION:
        raise Unreadable("it is no task of version 1")
    return task


def show(task: str, outcome: dict) -> int:
    """Prints what the task printed, and the reason if that says more than an exit code does."""
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        stream.buffer.write(output(outcome.get(name)))
        stream.flush()
    if outcome["state"] != "done" and outcome.get("reason") not in ("exit", "signal"):
        words = [outcome["state"], outcome.get("reason"), outcome.get("detail")]
        print(f"submit.py: {task}: " + ", ".join(word for word in words if word), file=sys.stderr)
    return exit_code(outcome)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Submits a shell task to zkmw and waits for it.")
    parser.add_argument("--connect", default="127.0.0.1:2181", help="HOST:PORT,…[/CHROOT] (%(default)s)")
    parser.add_argument("--root", default="/zkmw", help="zkmw's root (%(default)s)")
    parser.add_argument("--job", help="the job that the task belongs to; without it a shared one")
    parser.add_argument("--session-timeout", type=float, default=10, metavar="SECONDS")
    parser.add_argument("--wait", metavar="JOB/TASK", help="wait for a task that was submitted; it is not deleted")
    parser.add_argument("command", nargs="?", help="a line for /bin/sh -c")
    given = parser.parse_args()
    if (given.command is None) == (given.wait is None):
        parser.error("either COMMAND or --wait")
    return given


def work(given: argparse.Namespace, tasks: Tasks) -> int:
    submitted = None
    task = given.wait or new_id(given.job)
    try:
        if given.wait is None:
            submitted = tasks.create(task, {"v": VERSION, "command": given.command})
        outcome, version = tasks.wait(task)
        code = show(task, outcome)
        # After the outcome was shown: it is the only copy.
        if submitted is not None and outcome["state"] == "done":
            tasks.clean_up(submitted, version)
        return code
    except KeyboardInterrupt:
        again = f"submit.py --connect {given.connect} --root {given.root} --wait {task}"
        doubt = "" if submitted or given.wait else " (if it was submitted at all)"
        print(f"submit.py: interrupted; the task goes on{doubt}. To wait for it: {again}", file=sys.stderr)
        return 130
    except Gone:
        print(f"submit.py: {task} is gone: somebody deleted it", file=sys.stderr)
        return 1
    except Unreadable as why:
        print(f"submit.py: {task}: {why}", file=sys.stderr)
        return 65
    except TooLarge as why:
        print(f"submit.py: {why}", file=sys.stderr)
        return 65
    except Full as why:
        print(f"submit.py: {why}", file=sys.stderr)
        return 73


def main() -> int:
    given = arguments()
    # The user of a command need not see kazoo's log of connections that come and go.
    logging.getLogger("kazoo").addHandler(logging.NullHandler())
    client = KazooClient(hosts=given.connect, timeout=given.session_timeout)
    try:
        client.start(timeout=30)
    except KazooTimeoutError:
        print(f"submit.py: {given.connect} can't be reached", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        return 130
    try:
        return work(given, Tasks(client, given.root))
    finally:
        client.stop()
        client.close()


if __name__ == "__main__":
    sys.exit(main())
