"""One scheduler, one virtual clock, and processes that crash and pause.

Whatever happens is an event: a time, the process it belongs to, and a call. Events of a dead process are dropped, those of a paused
one wait. Threads of the product become greenlets, which run until they wait for something; its event loops become a `Loop`, which
is nothing but a way to make events. Nothing ever runs at the same time as anything else, and nothing but `rng` decides.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from heapq import heappop, heappush
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

START = 1_700_000_000.0
"""Seconds since 1970 at which every run begins."""


class Event:
    """Something that will happen."""

    __slots__ = ("args", "call", "cancelled_", "process", "when_")

    def __init__(self, when: float, process: Process | None, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.when_, self.process, self.call, self.args = when, process, call, args
        self.cancelled_ = False

    # What asyncio asks of a TimerHandle

    def cancel(self) -> None:
        """It will not happen."""
        self.cancelled_ = True

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.cancelled_

    def when(self) -> float:
        """Its time, as the loop counts."""
        return self.when_


class Scheduler:
    """What happens next, and when."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.current: Process | None = None
        self.hub = getcurrent()
        self.steps = 0
        self.faults: list[BaseException] = []
        """What the product's tasks ended with, unasked."""
        self.trace: Callable[[str], None] | None = None
        self._queue: list[tuple[float, int, Event]] = []
        self._count = 0

    def after(self, delay: float, call: Callable[..., Any], *args: Any, process: Process | None = None) -> Event:
        """Let something happen after some seconds."""
        event = Event(self.now + delay, process, call, args)
        self.put(event.when_, event)
        return event

    def put(self, when: float, event: Event) -> None:
        """Let an event happen at a time, after those that were put there before."""
        self._count += 1
        heappush(self._queue, (when, self._count, event))

    def tell(self, text: str, *values: Any) -> None:
        """Write a line of the trace, if anybody reads it."""
        if self.trace is not None:
            name = self.current.name if self.current else "-"
            self.trace(f"{self.now:9.4f} {name:<11} {text % values if values else text}")

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let things happen until a time, or until it is done."""
        queue = self._queue
        while queue and not done():
            when, _, event = queue[0]
            if when > until:
                self.now = until
                return
            heappop(queue)
            process = event.process
            if event.cancelled_ or (process is not None and not process.alive):
                continue
            self.now = max(self.now, when)
            if process is not None and process.paused:
                process.deferred.append(event)
                continue
            self.steps += 1
            if process is not self.current:
                self.enter(process)
            # A process may die in what it is doing
            with suppress(GreenletExit):
                event.call(*event.args)

    def enter(self, process: Process | None) -> None:
        """What runs from here on is the process's."""
        self.current = process
        events._set_running_loop(process.loop if process is not None else None)


class Process:
    """A process: its threads (greenlets), its event loop, and whether it lives."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.scheduler, self.name = scheduler, name
        self.alive, self.paused = True, False
        self.deferred: list[Event] = []
        self.loop = Loop(self)  # type: ignore[abstract]  # it has what tasks, futures and timers ask for
        self.fuse: int | None = None
        """Steps until `fault` is called."""
        self.fault: Callable[[], None] = self.kill
        self.on_death: list[Callable[[], object]] = []
        self._threads: set[greenlet] = set()

    def spawn(self, call: Callable[..., Any], *args: Any) -> greenlet:
        """Start a thread."""
        thread = greenlet(call, parent=self.scheduler.hub)
        self._threads.add(thread)
        self.scheduler.after(0, self._resume, thread, args, process=self)
        return thread

    def _resume(self, thread: greenlet, args: tuple[Any, ...]) -> None:
        if not thread.dead:
            thread.switch(*args)
            if thread.dead:
                self._threads.discard(thread)

    def step(self) -> None:
        """A place where the process may die; everything that leaves it passes here."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                self.fault()
                if self.paused and getcurrent() is not self.scheduler.hub:
                    # It goes on here, when it goes on
                    self.scheduler.after(0, self._resume, getcurrent(), (), process=self)
                    self.scheduler.hub.switch()
        if not self.alive:
            raise GreenletExit

    def sleep(self, seconds: float) -> None:
        """Let others run for a while; for threads."""
        self.step()
        scheduler = self.scheduler
        thread = getcurrent()
        scheduler.after(seconds, self._resume, thread, (), process=self)
        scheduler.hub.switch()
        self.step()

    def wait(self, waiters: list[Callable[[], None]], timeout: float | None) -> bool:
        """Wait until whoever holds `waiters` calls what was put there; for threads. Tells whether that was in time."""
        self.step()
        scheduler, thread = self.scheduler, getcurrent()
        woken = False
        timer: Event | None = None

        def wake() -> None:
            nonlocal woken
            if not woken:
                woken = True
                if timer is not None:
                    timer.cancel()
                scheduler.after(0, self._resume, thread, (), process=self)

        waiters.append(wake)
        if timeout is not None:
            timer = scheduler.after(max(0.0, timeout), self._resume, thread, (), process=self)
        scheduler.hub.switch()
        if not woken and wake in waiters:
            waiters.remove(wake)
        self.step()
        return woken

    def kill(self) -> None:
        """SIGKILL. Threads end where they are; whatever they still try raises."""
        if self.alive:
            self.scheduler.tell("%s dies", self.name)
            self.alive = False
            # From the hub: a thread that ends another would not be returned to
            self.scheduler.after(0, self._bury)

    def _bury(self) -> None:
        self.end()
        for call in self.on_death:
            call()

    def end(self) -> None:
        """End its threads, without a word to anybody."""
        self.alive = False
        for thread in self._threads:
            if not thread.dead:
                thread.throw()
        self._threads.clear()
        self.deferred.clear()

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """SIGCONT: what should have happened meanwhile happens now."""
        if self.alive and self.paused:
            self.paused = False
            waiting, self.deferred = self.deferred, []
            for event in waiting:
                self.scheduler.put(self.scheduler.now, event)


class Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as tasks, futures and timers need.

    Handles are events of the scheduler, which are cancelled like handles.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def time(self) -> float:
        """See AbstractEventLoop."""
        return self._process.scheduler.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]  # see Loop
        """See AbstractEventLoop."""
        return self._process.scheduler.after(0, callback, *args, process=self._process)

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]  # see Loop
        """See AbstractEventLoop."""
        return self.call_soon(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]  # see Loop
        """See AbstractEventLoop."""
        return self._process.scheduler.after(max(0.0, delay), callback, *args, process=self._process)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # type: ignore[override]  # see Loop
        """See AbstractEventLoop."""
        return self.call_later(when - self.time(), callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        """See AbstractEventLoop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:  # type: ignore[override]  # see Loop
        """See AbstractEventLoop."""
        return asyncio.Task(coro, loop=self)

    def get_debug(self) -> bool:
        """See AbstractEventLoop."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task of a living process that ends with an exception nobody takes is a fault of the product."""
        if self._process.alive and "exception" in context:
            self._process.scheduler.faults.append(context["exception"])


class Condition:
    """threading.Condition. Nothing runs in between, so its lock is none."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        """See threading.Condition."""
        process = self._scheduler.current
        assert process is not None
        return process.wait(self._waiters, timeout)

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """See threading.Condition."""
        end = None if timeout is None else self._scheduler.now + timeout
        while not predicate():
            if not self.wait(None if end is None else end - self._scheduler.now):
                return predicate()
        return True

    def notify(self) -> None:
        """See threading.Condition."""
        if self._waiters:
            self._waiters.pop(0)()

    def notify_all(self) -> None:
        """See threading.Condition."""
        while self._waiters:
            self._waiters.pop(0)()


class Thread:
    """threading.Thread of the process that makes it."""

    def __init__(self, scheduler: Scheduler, target: Callable[..., Any], args: tuple[Any, ...] = (), **_: Any) -> None:
        process = scheduler.current
        assert process is not None
        self._process, self._target, self._args = process, target, args

    def start(self) -> None:
        """See threading.Thread."""
        self._process.spawn(self._target, *self._args)


class SimpleQueue:
    """queue.SimpleQueue."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._items: deque[Any] = deque()
        self._condition = Condition(scheduler)

    def put(self, item: Any) -> None:
        """See queue.SimpleQueue."""
        self._items.append(item)
        self._condition.notify()

    def get(self) -> Any:
        """See queue.SimpleQueue."""
        while not self._items:
            self._condition.wait()
        return self._items.popleft()

    def empty(self) -> bool:
        """See queue.SimpleQueue."""
        return not self._items


class Threading:
    """The module threading, as far as the product uses it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def Thread(self, target: Callable[..., Any], args: tuple[Any, ...] = (), **options: Any) -> Thread:
        """See threading."""
        return Thread(self._scheduler, target, args, **options)

    def Condition(self) -> Condition:
        """See threading."""
        return Condition(self._scheduler)


class Queue:
    """The module queue, as far as the product uses it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def SimpleQueue(self) -> SimpleQueue:
        """See queue."""
        return SimpleQueue(self._scheduler)


class Time:
    """The module time, as far as the product uses it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        """See time."""
        return self._scheduler.now

    def time(self) -> float:
        """See time."""
        return START + self._scheduler.now

    def time_ns(self) -> int:
        """See time."""
        return int((START + self._scheduler.now) * 1e6) * 1000

    def sleep(self, seconds: float) -> None:
        """See time."""
        process = self._scheduler.current
        assert process is not None
        process.sleep(seconds)
