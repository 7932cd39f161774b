"""A task of a simulated node that talks with other nodes while it works.

The script runs in line, in turns; what it computes between two frames takes virtual time, by the
rows it says it has worked through (`Send.samples`). While it computes, what comes waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aats.errors import AatsError
from aats.learning.stream import Receive, Send, spoken_of
from aats.node.commands import RunTask
from aats.node.events import Event, TaskFailed, TaskFinished, TaskSpoke
from aats.node.tasks import Result, Spending, Told
from aats.payload import Payload
from aats.sim.kernel import Kernel, Timer


@dataclass(frozen=True, slots=True)
class Work:
    """A task's result, and the packet's new payload if it made one."""

    result: Result
    payload: Payload | None = None


class Talk(Protocol):
    """A task's script as a worker plays it; each step returns what it has sent.

    Each step raises `AatsError` if the task cannot be done.
    """

    @property
    def waiting(self) -> Receive | None:
        """What it waits for."""

    @property
    def ended(self) -> bool:
        """Whether it is done."""

    def start(self) -> list[Send]:
        """Run to the first wait."""
        ...

    def take(self, told: Told) -> list[Send]:
        """Hand it what came."""
        ...

    def time_out(self) -> list[Send]:
        """End its wait."""
        ...

    def outcome(self) -> Work:
        """Return its result and the packet's new payload, if it made one."""
        ...

    def close(self) -> None:
        """Stop it, wherever it is."""
        ...


class Conversation:
    """Plays a task's script on the virtual clock.

    Args:
        kernel: The clock.
        command: The task.
        talk: Its script.
        spending: What so many rows of training cost here.
        extra: Rows' worth of work besides what the script says.
        feed: Takes what the task says.
        done: Takes how it ended, and its new payload.
    """

    def __init__(
        self,
        kernel: Kernel,
        command: RunTask,
        talk: Talk,
        spending: Callable[[float], Spending],
        extra: float,
        feed: Callable[[Event], None],
        done: Callable[[Event, Payload | None], None],
    ) -> None:
        self._kernel, self._command, self._talk = kernel, command, talk
        self._spending, self._extra = spending, extra
        self._feed, self._done = feed, done
        self._inbox: deque[Told] = deque()
        self._timers: list[Timer] = []
        self._wait: Timer | None = None
        self._busy = False
        self._began = kernel.now
        self._joules = 0.0

    def start(self) -> None:
        """Begin."""
        command = self._command
        self._later(command.timeout_s, lambda: self._end(TaskFailed(command.task_id, "timeout")))
        self._play(self._talk.start)

    def tell(self, told: Told) -> None:
        """Take in what came; it waits while the script computes."""
        self._inbox.append(told)
        self._listen()

    def stop(self) -> None:
        """Forget everything that is still to happen."""
        for timer in (*self._timers, *([self._wait] if self._wait else ())):
            timer.cancel()
        self._busy = True
        self._talk.close()

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.action is not None]
        self._timers.append(self._kernel.after(delay_s, action))

    def _listen(self) -> None:
        while self._inbox and not self._busy:
            told = self._inbox.popleft()
            self._play(lambda told=told: self._talk.take(told))  # type: ignore[misc]

    def _play(self, step: Callable[[], list[Send]]) -> None:
        """Let the script go on; what it says leaves as its computing is done."""
        number = self._command.task_id
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        try:
            sent = step()
            delay_s = 0.0
            for send in sent:
                cost = self._spending(send.samples)
                delay_s += cost.seconds
                self._joules += cost.joules
                spoke = TaskSpoke(number, spoken_of(send, self._joules))
                self._later(delay_s, lambda spoke=spoke: self._feed(spoke))  # type: ignore[misc]
            if self._talk.ended:
                self._finish(delay_s)
                return
        except AatsError as error:
            failed = TaskFailed(number, str(error))
            self._busy = True
            self._later(0.0, lambda: self._end(failed))
            return
        if delay_s:
            self._busy = True
            self._later(delay_s, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Wait for what the script wants, from now on."""
        self._busy = False
        wanted = self._talk.waiting
        if wanted is not None and self._wait is None:
            self._wait = self._kernel.after(
                wanted.timeout_s, lambda: self._play(self._talk.time_out)
            )
        self._listen()

    def _finish(self, delay_s: float) -> None:
        self._busy = True
        cost = self._spending(self._extra)
        work = self._talk.outcome()
        delay_s += cost.seconds
        spending = Spending(self._kernel.now + delay_s - self._began, self._joules + cost.joules)
        event = TaskFinished(self._command.task_id, work.result, spending)
        self._later(delay_s, lambda: self._end(event, work.payload))

    def _end(self, event: Event, payload: Payload | None = None) -> None:
        self.stop()
        self._done(event, payload)
