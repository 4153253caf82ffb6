"""Every setting of Frontrow, read from the environment once, at start.

`load_settings` reports all that is wrong at once; `Settings` is what the rest of the house is given.
"""

from infra.settings.loading import BadSettings, Command, Refusal, load_settings
from infra.settings.model import Environment, LogLevel, Settings, WorkerPlace
from infra.settings.table import settings_table

__all__ = [
    "BadSettings",
    "Command",
    "Environment",
    "LogLevel",
    "Refusal",
    "Settings",
    "WorkerPlace",
    "load_settings",
    "settings_table",
]
