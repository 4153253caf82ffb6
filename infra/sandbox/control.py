"""The misbehaviour that `POST /_control` asks for."""

import json
import secrets
from dataclasses import dataclass, field, replace
from enum import Enum
from urllib.parse import urlsplit

from infra.sandbox.wire import Json, invalid

MAX_LATENCY_MS = 60_000


class Mode(Enum):
    """How the processor behaves towards API requests; paths below `/_` always answer."""

    OK = "ok"
    DOWN = "down"  # connections are closed without an answer
    HANG = "hang"  # every POST hangs, nothing is charged
    CHARGE_THEN_HANG = "charge_then_hang"  # confirm charges and never answers


@dataclass(frozen=True, slots=True)
class Control:
    """How to behave now. `fail_rate` is the share of API POSTs that answer 500 with nothing charged.

    Events are sent `webhook_delay_ms` after what they tell of.
    """

    mode: Mode = Mode.OK
    latency_ms: tuple[int, int] = (0, 0)
    fail_rate: float = 0.0
    webhook_url: str | None = None
    webhook_secret: str = field(default_factory=lambda: f"whsec_{secrets.token_hex(16)}")
    webhook_delay_ms: int = 0

    def changed(self, body: bytes) -> "Control":
        """This control with what the JSON object `body` names.

        Raises: Refused for any bad value; nothing is changed then.
        """
        try:
            wishes = json.loads(body)
        except ValueError as error:
            raise invalid("The body must be a JSON object.") from error
        if not isinstance(wishes, dict):
            raise invalid("The body must be a JSON object.")
        control = self
        for name, value in wishes.items():
            control = _with(control, name, value)
        return control

    def json(self) -> Json:
        """All of it."""
        return {
            "mode": self.mode.value,
            "latency_ms": list(self.latency_ms),
            "fail_rate": self.fail_rate,
            "webhook_url": self.webhook_url,
            "webhook_secret": self.webhook_secret,
            "webhook_delay_ms": self.webhook_delay_ms,
        }


def _with(control: Control, name: str, value: object) -> Control:
    match name:
        case "mode":
            return replace(control, mode=_mode(value))
        case "latency_ms":
            return replace(control, latency_ms=_latency_ms(value))
        case "fail_rate":
            return replace(control, fail_rate=_fail_rate(value))
        case "webhook_url":
            return replace(control, webhook_url=_webhook_url(value))
        case "webhook_secret":
            if not isinstance(value, str) or not value.strip():
                raise invalid("webhook_secret must be a text that is not empty.", param=name)
            return replace(control, webhook_secret=value)
        case "webhook_delay_ms":
            return replace(control, webhook_delay_ms=_webhook_delay_ms(value))
        case _:
            known = "mode, latency_ms, fail_rate, webhook_url, webhook_secret, webhook_delay_ms"
            raise invalid(f"There is no control {name!r}; there are {known}.", param=name)


def _mode(value: object) -> Mode:
    try:
        return Mode(value)
    except ValueError as error:
        names = ", ".join(mode.value for mode in Mode)
        raise invalid(f"mode must be one of {names}.", param="mode") from error


def _latency_ms(value: object) -> tuple[int, int]:
    bounds = value if isinstance(value, list) else []
    whole = [bound for bound in bounds if isinstance(bound, int) and not isinstance(bound, bool)]
    if len(bounds) != 2 or len(whole) != 2 or not 0 <= whole[0] <= whole[1] <= MAX_LATENCY_MS:
        message = (
            f"latency_ms must be [min, max], whole milliseconds with 0 <= min <= max <= {MAX_LATENCY_MS}."
        )
        raise invalid(message, param="latency_ms")
    return whole[0], whole[1]


def _webhook_delay_ms(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_LATENCY_MS:
        message = f"webhook_delay_ms must be whole milliseconds from 0 to {MAX_LATENCY_MS}."
        raise invalid(message, param="webhook_delay_ms")
    return value


def _fail_rate(value: object) -> float:
    # The comparison refuses NaN too, which JSON in Python may carry.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise invalid("fail_rate must be a number from 0 to 1.", param="fail_rate")
    return float(value)


def _webhook_url(value: object) -> str | None:
    if value is None or value == "":
        return None
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        is_good = (
            parts is not None
            and parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:
        is_good = False
    if not is_good or not isinstance(value, str):
        raise invalid("webhook_url must be an http or https URL, or null for none.", param="webhook_url")
    return value
