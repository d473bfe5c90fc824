"""The error answers of the Hub, spelt the way the client tells them apart.

The client picks its exception class by the header `X-Error-Code`, not by the status; its fallback
for a bare 401 works on https only, so on loopback the header has to be there.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class HubError(Exception):
    """An answer of 4xx, raised anywhere below a route."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


class RepositoryMoved(Exception):
    """The repository was renamed: answer 307 with the same path under the new name."""

    def __init__(self, old_id: str, new_id: str) -> None:
        super().__init__(f"{old_id} is now {new_id}")
        self.old_id = old_id
        self.new_id = new_id


def repository_not_found(anonymous: bool) -> HubError:
    """A missing repository and a private one look the same: 401 without a token, else 404."""
    if anonymous:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


def gated(repository_id: str, anonymous: bool) -> HubError:
    """The repository is visible, its content is not."""
    status = 401 if anonymous else 403
    return HubError(status, f"Access to model {repository_id} is restricted.", "GatedRepo")


def revision_not_found(revision: str) -> HubError:
    """No branch, tag, pull request or commit has this name."""
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(path: str, commit: str) -> HubError:
    """No such file; `X-Repo-Commit` lets the client cache that fact."""
    return HubError(404, f"Entry {path} not found", "EntryNotFound", {"X-Repo-Commit": commit})


def forbidden(reason: str) -> HubError:
    """A known user without the right to do this."""
    return HubError(403, f"Forbidden: {reason}")


def answer_error(request: Request, error: Exception) -> Response:
    """Turn a `HubError` into JSON plus the two headers the client reads."""
    if not isinstance(error, HubError):
        raise error
    headers = {**error.headers, "X-Error-Message": error.message}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, error.status, headers)


def answer_moved(request: Request, moved: Exception) -> Response:
    """Redirect to the new name; the location is relative, so the client keeps its token."""
    if not isinstance(moved, RepositoryMoved):
        raise moved
    path: str = request.scope["path"]
    location = path.replace(f"/{moved.old_id}", f"/{moved.new_id}", 1)
    if request.url.query:
        location += f"?{request.url.query}"
    return Response(status_code=307, headers={"Location": location})
