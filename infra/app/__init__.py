"""One process of Frontrow: `composition` builds its parts and connects them, `http` is its ASGI application."""

from infra.app.composition import Frontrow, composed
from infra.app.http import build_app, drain

__all__ = ["Frontrow", "build_app", "composed", "drain"]
