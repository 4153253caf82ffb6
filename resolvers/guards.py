"""Who may ask. Guards run before anything else, so that a stranger's input is not even looked at."""

from domain.base import UserId
from domain.user import Forbidden, Unauthenticated, Viewer
from resolvers.context import Info


def signed_in(info: Info) -> Viewer:
    """The viewer. Raises: Unauthenticated where nobody is signed in."""
    viewer = info.context.viewer
    if viewer is None:
        raise Unauthenticated
    return viewer


def admin(info: Info) -> Viewer:
    """The viewer, who is an admin. Raises: Unauthenticated, Forbidden."""
    viewer = signed_in(info)
    if not viewer.is_admin:
        raise Forbidden
    return viewer


def owns(viewer: Viewer | None, user_id: UserId) -> bool:
    """Whether the viewer may see what belongs to this person: it is theirs, or they are an admin."""
    return viewer is not None and (viewer.is_admin or viewer.user.id == user_id)
