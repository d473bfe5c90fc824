"""All routes put together into one ASGI application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import Mount

from .commits import CommitRoutes
from .content import ContentRoutes
from .discussions import DiscussionRoutes
from .errors import HubError, RepositoryMoved, answer_error, answer_moved
from .lfs import LfsRoutes
from .management import ManagementRoutes
from .reads import ReadRoutes
from .site import Site
from .traffic import Traffic


def build_application(site: Site) -> Traffic:
    """The Hub as an ASGI application, inside the middleware that watches its traffic."""
    rooms = (ManagementRoutes, DiscussionRoutes, CommitRoutes, LfsRoutes, ReadRoutes, ContentRoutes)
    routes = [route for room in rooms for route in room(site).routes()]
    store_of_contents = Mount("/_cas", routes=site.contents.routes())
    return Traffic(
        Starlette(
            routes=[store_of_contents, *routes],
            exception_handlers={HubError: answer_error, RepositoryMoved: answer_moved},
        )
    )
