"""`python -m tests.faults.shifted_clock SECONDS serve --port 0`: the command in a process whose clock is so far ahead.

Whatever tells Python the time is shifted before the application is imported. Timers are not: a clock that is wrong
runs no slower.
"""

import datetime
import sys
import time
from typing import Any

_true_s, _true_ns = time.time, time.time_ns
_Moment = datetime.datetime


def shift(by_s: float) -> None:
    """From here on it is so many seconds later."""
    time.time = lambda: _true_s() + by_s
    time.time_ns = lambda: _true_ns() + round(by_s * 1e9)
    datetime.datetime = _Shifted  # type: ignore[misc]


class _AnyMoment(type):
    """Every moment is an instance, also those that libraries make in C."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Moment)


class _Shifted(_Moment, metaclass=_AnyMoment):
    """`datetime` by the shifted clock. What it makes are plain moments, as libraries written in C want them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> datetime.datetime:  # type: ignore[misc]
        return _Moment(*args, **kwargs)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        """As `datetime.now`."""
        return _Moment.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> datetime.datetime:  # type: ignore[override]
        """As `datetime.utcnow`."""
        return _Moment.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


if __name__ == "__main__":
    shift(float(sys.argv.pop(1)))
    from infra.cli import main

    main()
