"""A worker process, seen from its parent: started, asked, and ended when it does not answer."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_CPU, prlimit
from typing import Any, Literal

from kdaudit.sandbox.talk import receive, send

START_S = 60
"""Seconds for a worker to import its libraries: a cold disk on a busy machine."""

How = Literal["died", "blocked", "confused"]

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kdaudit.worker import main; main(sys.argv[2])"


class WorkerLost(Exception):
    """A worker gave no sensible answer, and is gone.

    Attributes:
        how: "died" (it ended by itself or by a limit), "blocked" (no answer in time), "confused" (nonsense).
        detail: a few words.
    """

    def __init__(self, how: How, detail: str) -> None:
        super().__init__(detail)
        self.how = how
        self.detail = detail


class Worker:
    """A confined process and the channels to it.

    Attributes:
        level: the confinement reached.
        control: the channel for everything but runs.
        lanes: further channels; each may be used by one thread at a time.
    """

    def __init__(self, role: str, setup: dict[str, Any], lanes: int = 0) -> None:
        """Start a worker and wait until it is confined.

        Args:
            role: what it is to import.
            setup: limits, in the words of `kdaudit.worker`.
            lanes: how many further channels.

        Raises:
            WorkerLost: it did not come up.
        """
        ours, theirs = zip(*(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(1 + lanes)),
                           strict=True)  # fmt: skip
        self.control, *self.lanes = ours
        self._ending = threading.Lock()
        try:
            # In a session of its own: Ctrl-C on the terminal is for the parent, which then ends the worker.
            self._process = subprocess.Popen(  # noqa: S603  our own interpreter, our own code
                [sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), str(theirs[0].fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs[0].fileno()],
                start_new_session=True,
                env={"OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "HOME": "/", "PATH": "/nowhere"},
            )
            send(self.control, {"role": role, **setup}, [channel.fileno() for channel in theirs[1:]])
        except OSError as error:
            raise WorkerLost("died", f"cannot be started: {error.strerror}") from error
        finally:
            for channel in theirs:
                channel.close()
        ready = self.ask(self.control, None, START_S)
        self.level = str(ready.get("level", ""))[:80]

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(
        self,
        channel: socket.socket,
        message: dict[str, Any] | None,
        seconds: float,
        descriptors: Sequence[int] = (),
        on_question: Callable[[dict[str, Any]], Sequence[int]] | None = None,
    ) -> dict[str, Any]:
        """Send a message and wait for the answer.

        Args:
            channel: `control` or a lane.
            message: what to send; None: nothing, only wait.
            seconds: how long the answer may take.
            descriptors: to send along.
            on_question: answers the worker's own questions, with descriptors.

        Raises:
            WorkerLost: it died, blocked or answered nonsense; it is ended then.
        """
        channel.settimeout(seconds)
        try:
            if message is not None:
                send(channel, message, descriptors)
            while True:
                answer = receive(channel)
                if answer is None:
                    raise WorkerLost("died", self.end())
                if "ask" not in answer or on_question is None:
                    return answer
                descriptors = on_question(answer)
                send(channel, {}, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
        except TimeoutError:
            self.end()
            raise WorkerLost("blocked", f"no answer within {seconds:.0f} s") from None
        except (ValueError, RecursionError):
            self.end()
            raise WorkerLost("confused", "its answer is not of the agreed form") from None
        except OSError:
            raise WorkerLost("died", self.end()) from None

    def lift_cpu_limit(self) -> None:
        """What is loaded may compute as long as it answers in time."""
        try:
            prlimit(self.pid, RLIMIT_CPU, (RLIM_INFINITY, RLIM_INFINITY))
        except (OSError, ValueError):
            return  # a lower hard limit of the machine's own stays

    def allow_memory(self, more: int) -> None:
        """Raise the cap on the address space by some bytes; the worker cannot do that itself."""
        with contextlib.suppress(OSError, ValueError):
            soft, hard = prlimit(self.pid, RLIMIT_AS)
            if soft != RLIM_INFINITY:
                prlimit(self.pid, RLIMIT_AS, (soft + more, hard))

    def end(self) -> str:
        """End the worker and say how it ended."""
        with self._ending:
            before = self._process.poll()
            if before is None:
                try:
                    # An end of file comes a moment before the exit status.
                    before = self._process.wait(0.2)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._process.wait()
            for channel in (self.control, *self.lanes):
                with contextlib.suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)
        return _told(before)

    def close(self) -> None:
        """End the worker and give its channels back; no thread may be waiting on one of them."""
        if hasattr(self, "_process"):
            self.end()
        for channel in (self.control, *self.lanes):
            channel.close()

    def __del__(self) -> None:
        # A lost worker's channels are closed only here: a number that is free may be another file's at once, and a
        # thread could still be waiting on it.
        self.close()


def _told(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it was ended"
    if code == -signal.SIGXCPU:
        return "it used up its time"
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    return f"it ended with code {code}"
