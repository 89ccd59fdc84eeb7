# SPDX-License-Identifier: GPL-2.0-or-later
"""One thing at a time: who may run, who waits, and which helper rests meanwhile.

Runs in the session.  `Worker` is called on the main loop only, and never waits there: operations
and assessments run in threads, which it starts in one place, and their results come back to the
main loop.  It knows nothing of D-Bus.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gi.repository import GLib

from kjump.errors import Busy, Internal, Interrupted, KjumpError, TooLittleMemory
from kjump.session.checks import readiness
from kjump.session.cycle.actions import Actions, read_machine
from kjump.session.cycle.history import CycleReport
from kjump.session.cycle.kinds import Cycle, DryRun, WarmUp
from kjump.session.cycle.operation import Operation, Step
from kjump.session.log import bound, logger
from kjump.session.service.assessment import Assessment, LogindActions, is_possible
from kjump.session.service.warm_helper import WARM_DELAY, RestingHelper, WarmKeeper
from kjump.settings import Settings

LOOK_AGAIN = 60
"""Seconds between looks at a machine where nothing can hibernate, or that could not be read: logind
offers nothing there, so that nobody asks, and not every change sends an event."""

T = TypeVar("T")
Ended = Callable[[Operation, CycleReport], None]

log = logger()


class Listener(Protocol):
    """Who follows the worker, on the main loop."""

    def began(self, operation: Operation) -> None: ...
    def stepped(self, step: Step) -> None: ...
    def ended(self, operation: Operation, report: CycleReport) -> None: ...
    def assessed(self, assessment: Assessment) -> None: ...


@dataclass(frozen=True)
class _Request:
    """An operation that waits until a warm-up has ended."""

    kind: type[Operation]
    options: dict[str, Any]
    ended: Ended
    refused: Callable[[KjumpError], None]


class Worker:
    """Runs operations and assessments, one at a time, and keeps the helper that rests."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        *,
        actions: Actions | None = None,
        logind: LogindActions | None = None,
        warm_delay: float = WARM_DELAY,
        look_again: int = LOOK_AGAIN,
    ) -> None:
        """``warm_delay`` and ``look_again`` in seconds."""
        self._settings = settings
        self._listener = listener
        self._actions = actions or Actions()
        self._logind = logind or LogindActions()
        self._look_again = look_again
        self._look_timer = 0
        self._keeper = WarmKeeper(
            is_missing=self._helper_is_missing, start=self._start_ahead, delay=warm_delay
        )
        self._closing = False
        self._operation: Operation | None = None
        self._request: _Request | None = None
        self._machine = threading.Lock()
        """Held while facts are read or an operation runs: the probe for kexec jump must not meet a
        staged image of ours."""
        self._resting = RestingHelper(self._actions)
        self._assessing = False
        self._again = False
        self._answering: list[Callable[[Assessment], None]] = []
        """Who gets the assessment that is being made."""
        self._asking: list[Callable[[Assessment], None]] = []
        """Who gets the one after it."""

    # -- what goes on

    @property
    def settings(self) -> Settings:
        """Those that the next operation gets."""
        return self._settings

    @property
    def operation(self) -> Operation | None:
        """The one that runs."""
        return self._operation

    @property
    def has_warm_helper(self) -> bool:
        """Whether a helper rests."""
        return self._resting.helper is not None

    def refuse_if_busy(self, *, may_wait: bool = False) -> None:
        """Raise `Busy` if nothing can begin now, `Interrupted` if nothing can any more.
        ``may_wait``: the end of a warm-up can be waited for, by one request."""
        if self._closing:
            raise Interrupted("kjumpd is stopping.")
        if isinstance(self._operation, Cycle):
            raise Busy("A cycle is running.")
        if isinstance(self._operation, DryRun):
            raise Busy("A dry run is under way.")
        if self._request is not None or (self._operation is not None and not may_wait):
            raise Busy("A warm-up is under way.")

    # -- threads

    def in_background(self, name: str, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Call ``work`` in a thread, which must not raise, and then ``done`` on the main loop.

        Raises `TooLittleMemory` if no thread can be started, `Interrupted` when closing: ``work``
        is not called then.
        """
        if self._closing:
            raise Interrupted("kjumpd is stopping.")
        self._start_thread(name, lambda: later(done, work()), daemon=True)

    @staticmethod
    def _start_thread(name: str, work: Callable[[], None], *, daemon: bool) -> None:
        """The only place where threads are started.  State changes only after it has returned."""
        try:
            threading.Thread(target=work, name=name, daemon=daemon).start()
        except (RuntimeError, MemoryError) as error:
            log.error(f"no thread could be started: {error}")
            raise TooLittleMemory(
                f"No thread can be started: {error}.", advice="Close programs, then try again."
            ) from error

    # -- operations

    def begin(self, kind: type[Operation], ended: Ended, **options: Any) -> None:
        """Run an operation; ``ended`` is called with its report.  ``options`` are the operation's.

        Raises `Busy`, `Interrupted`, `TooLittleMemory`: nothing has begun then.
        """
        self.refuse_if_busy()
        operation = kind(
            self._settings,
            actions=self._actions,
            notify=lambda step: later(self._listener.stepped, step),
            **options,
        )

        def work() -> None:
            with self._machine:
                operation.warm = self._resting.helper
                report = _run(operation)
                self._resting.helper = operation.warm
            later(self._ended, operation, report, ended)

        # Not a daemon thread: the process does not end while something is staged.
        self._start_thread(kind.kind, work, daemon=False)
        self._operation = operation
        log.info(f"{operation.title} begins", KJUMP_CYCLE=str(operation.id))
        _call(self._listener.began, operation)

    def request(
        self,
        kind: type[Operation],
        ended: Ended,
        refused: Callable[[KjumpError], None],
        **options: Any,
    ) -> None:
        """Run an operation at once, or after the warm-up that is under way.

        ``refused`` is called if it waited in vain.  Raises what `begin` raises.
        """
        self.refuse_if_busy(may_wait=True)
        if self._operation is None:
            self.begin(kind, ended, **options)
        else:
            # A warm-up ends soon, or has not jumped yet and need not do so now.
            self._operation.interrupt()
            self._request = _Request(kind, options, ended, refused)

    def _ended(self, operation: Operation, report: CycleReport, ended: Ended) -> None:
        self._operation = None
        if isinstance(operation, WarmUp) and operation.error is not None:
            self._keeper.pause()
        elif isinstance(operation, WarmUp | Cycle):
            self._keeper.go_on()
        seconds = sum(report["phases"].get(name, 0.0) for name in report["wall"])
        log.info(
            f"{operation.title} ends: {report['result']} after {seconds:.1f} s",
            KJUMP_CYCLE=str(operation.id),
            KJUMP_RESULT=report["result"],
        )
        _call(self._listener.ended, operation, report)
        _call(ended, operation, report)
        request, self._request = self._request, None
        if request is not None:
            try:
                self.begin(request.kind, request.ended, **request.options)
            except KjumpError as error:
                _call(request.refused, error)
            else:
                return
        self.assess()

    # -- the helper that rests

    def unstage(self, done: Callable[[], None]) -> None:
        """Unload the helper that rests, and start none until something changes.

        Raises `Busy`, `Interrupted`, `TooLittleMemory`.
        """
        self.refuse_if_busy()

        def work() -> None:
            with self._machine:
                self._resting.unload()

        def unloaded(_: None) -> None:
            _call(done)
            self.assess()

        self.in_background("unstage", work, unloaded)
        self._keeper.pause()

    def _helper_is_missing(self) -> bool:
        free = self._operation is None and not self._closing
        return self._settings.helper.warm and free and not self.has_warm_helper

    def _start_ahead(self) -> None:
        try:
            self.begin(WarmUp, lambda operation, report: None)
        except KjumpError as error:
            log.warning(f"no helper is started ahead: {error.what}", KJUMP_ERROR=error.name)

    # -- assessments

    def assess(self, done: Callable[[Assessment], None] | None = None) -> None:
        """Read the machine in a thread, and pass the assessment to the listener, then to ``done``,
        which is always called.

        Calls that come while it reads share the next reading, so a flood of them costs little.
        """
        if done is not None:
            self._asking.append(done)
        if self._closing:
            self._answer_as_stopping()
            return
        if self._assessing:
            self._again = True
            return
        self._assessing, self._again = True, False
        self._answering, self._asking = self._asking, []
        settings = self._settings
        try:
            self.in_background("assessment", lambda: self._assess(settings), self._assessed)
        except KjumpError as error:
            later(self._assessed, Assessment(None, [error]))

    def _assess(self, settings: Settings) -> Assessment:
        """In a thread.  Never raises."""
        facts, looked_back, unloaded = None, False, False
        reasons: Sequence[KjumpError]
        with self._machine:
            try:
                helper = self._resting.helper
                facts, looked_back = read_machine(self._actions, settings, helper)
                reasons = readiness.reasons(facts)
                unloaded = self._resting.unload_misfit(settings, facts)
            except Exception as error:
                log.exception("the machine could not be read")
                facts, reasons = None, [Internal(f"{type(error).__name__}: {error}")]
            else:
                _call(self._logind.set_resume_device, facts)
        offered = True
        try:
            offered = self._logind.offer(is_possible(reasons), settings)
        except Exception:
            log.exception("what logind offers could not be set")
        return Assessment(facts, reasons, offered, looked_back, unloaded)

    def _assessed(self, assessment: Assessment) -> None:
        self._assessing = False
        answering, self._answering = self._answering, []
        # One failing callback must not keep the others from being answered.
        for answer in (self._listener.assessed, *answering):
            _call(answer, assessment)
        if assessment.unloaded:
            self._keeper.go_on()
        if not assessment.reasons:
            self._keeper.look()
        if self._again:
            self.assess()
        elif assessment.facts is None or not assessment.offered:
            self._look_again_later()

    def _look_again_later(self) -> None:
        def due() -> bool:
            self._look_timer = 0
            if self._operation is None:
                self.assess()
            return False

        if not self._look_timer:
            self._look_timer = GLib.timeout_add_seconds(self._look_again, due)

    # -- settings, and the end

    def use(self, settings: Settings) -> None:
        """From the next operation on, and assess the machine by them."""
        self._settings = settings
        self._keeper.go_on()
        self.assess()

    def stop(self) -> None:
        """Start nothing any more, and end what has not jumped yet.  Who waits is answered."""
        self._closing = True
        if self._operation is not None:
            self._operation.interrupt()
        request, self._request = self._request, None
        if request is not None:
            _call(request.refused, Interrupted("kjumpd is stopping."))
        self._answer_as_stopping()

    def _answer_as_stopping(self) -> None:
        answering = [*self._answering, *self._asking]
        self._answering, self._asking = [], []
        stopping = Busy("kjumpd is stopping.", advice="Ask again in a moment.")
        for answer in answering:
            _call(answer, Assessment(None, [stopping]))

    def close(self) -> None:
        """Unload the helper that rests.  Waits for what runs; the last thing that is called."""
        self._closing = True
        with self._machine:
            self._resting.unload()


def _run(operation: Operation) -> CycleReport:
    """The operation's report, whatever happens to it: else everybody would be refused for ever."""
    try:
        return operation.run()
    except Exception as error:
        with bound(KJUMP_CYCLE=str(operation.id)):
            log.exception(f"{operation.title} broke")
        operation.error = Internal(f"{type(error).__name__}: {error}")
        report: CycleReport = {"cycle": str(operation.id), "result": "failed", "where": "session"}
        return report | {"phases": {}, "wall": {}} | operation.error.report()


def _call(function: Callable[..., object], *arguments: Any) -> None:
    """A callback; what it raises is logged, as nobody else would hear of it."""
    try:
        function(*arguments)
    except Exception:
        log.exception("a callback failed")


def later(function: Callable[..., object], *arguments: Any) -> None:
    """Call once on the main loop, from any thread, and before bus calls that come later."""

    def once() -> bool:
        _call(function, *arguments)
        return False

    # An idle source's own priority would let a flood of calls put it off for ever.
    GLib.idle_add(once, priority=GLib.PRIORITY_DEFAULT)
