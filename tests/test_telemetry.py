"""Telemetry: one form of log line for everybody, and metrics that nobody outside can make grow."""

import json
import subprocess
import sys

import pytest

from infra.telemetry import Metrics

# In a process of its own: logging is set up once per process, and pytest has set it up here already.
PROGRAM = """
import logging, structlog
from infra.settings import Environment, Settings
from infra.telemetry import configure_logging

configure_logging(Settings(env=Environment("{env}"), demo=False))
with structlog.contextvars.bound_contextvars(request_id="r-1"):
    structlog.get_logger("frontrow").info("booked", seats=2)
    logging.getLogger("uvicorn.error").warning("closing %s", "soon")
    logging.getLogger("httpx").info("one line per request")
    def log_in(password):
        raise ValueError("no such user")
    try:
        log_in("hunter2")
    except ValueError:
        structlog.get_logger("frontrow").exception("log-in failed")
"""


def logged(env: str) -> str:
    """What the program writes to standard error."""
    program = [sys.executable, "-c", PROGRAM.format(env=env)]
    done = subprocess.run(program, check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout == ""
    return done.stderr


def test_production_logs_one_json_object_per_line() -> None:
    """Ours and the libraries' lines alike carry level, time and the request's id."""
    ours, theirs, failure = (json.loads(line) for line in logged("production").splitlines())
    assert {**ours, "timestamp": ""} == {
        "event": "booked",
        "level": "info",
        "logger": "frontrow",
        "request_id": "r-1",
        "seats": 2,
        "timestamp": "",
    }
    assert (theirs["event"], theirs["level"], theirs["request_id"]) == ("closing soon", "warning", "r-1")
    assert failure["exception"].endswith("ValueError: no such user")


@pytest.mark.parametrize("env", ["development", "production"])
def test_a_traceback_shows_no_local_variables(env: str) -> None:
    """Passwords and tokens are local variables somewhere."""
    text = logged(env)
    assert "ValueError: no such user" in text
    assert "hunter2" not in text


def test_metrics_of_two_applications_are_apart() -> None:
    """Each has a registry of its own, so tests and processes don't share counts."""
    one, other = Metrics(), Metrics()
    one.relay_failures.labels(event="SaleClosed").inc()
    one.breaker_state.state("open")
    assert b'frontrow_relay_failures_total{event="SaleClosed"} 1.0' in one.exposition()
    assert b'frontrow_breaker_state{frontrow_breaker_state="open"} 1.0' in one.exposition()
    assert b"SaleClosed" not in other.exposition()


def test_an_invented_http_method_makes_no_new_series() -> None:
    """A client chooses the method; a series per invention would fill the memory."""
    metrics = Metrics()
    metrics.saw_http_request("POST", 200, duration_s=0.003)
    metrics.saw_http_request("BREW", 405, duration_s=0.001)
    count = metrics.registry.get_sample_value
    assert count("frontrow_http_request_seconds_count", {"method": "POST", "status": "200"}) == 1
    assert count("frontrow_http_request_seconds_count", {"method": "OTHER", "status": "405"}) == 1
    assert b"BREW" not in metrics.exposition()
