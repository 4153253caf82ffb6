"""My page and the live counts, kept ready to read: in Redis for any number of processes, in memory for one.

A projection of the write side that can be thrown away at any moment. Values are set, never added to, and
guarded by version; a rebuild fills a new generation beside the one being read and switches in one step.
"""

from infra.read_model.generation import (
    BuyerDigest,
    BuyerSnapshot,
    Generation,
    GenerationLost,
    RebuildableReadModel,
    Source,
)
from infra.read_model.memory import MemoryReadModel
from infra.read_model.rebuild import Progress, differences, rebuild
from infra.read_model.redis_store import RedisReadModel, redis_read_model

__all__ = [
    "BuyerDigest",
    "BuyerSnapshot",
    "Generation",
    "GenerationLost",
    "MemoryReadModel",
    "Progress",
    "RebuildableReadModel",
    "RedisReadModel",
    "Source",
    "differences",
    "rebuild",
    "redis_read_model",
]
