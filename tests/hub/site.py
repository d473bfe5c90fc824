"""What every route needs: the stores, the options a test may turn, and who may do what."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

from .accounts import Account, identify
from .cas import ContentStore
from .errors import HubError, forbidden, gated, repository_not_found
from .objects import ObjectStore
from .repositories import Repository, RepositoryType
from .store import Store


@dataclass
class Options:
    """What a test may change while the Hub runs.

    Attributes:
        redirect_to_cdn: Serve LFS files, and take LFS uploads, at a second origin, by redirect.
        multipart_chunk: Offer LFS uploads in parts of this many bytes.
        ignore_ranges: Answer a request for a range with the whole file (200), as plain servers do.
        stale_parent_status: The answer to a commit whose parent is not the newest (412 or 409).
    """

    redirect_to_cdn: bool = False
    multipart_chunk: int | None = None
    ignore_ranges: bool = False
    stale_parent_status: int = 412


@dataclass
class Site:
    """The state behind the routes."""

    endpoint: str
    cdn: str
    objects: ObjectStore
    store: Store
    contents: ContentStore
    options: Options

    @property
    def storage(self) -> str:
        """The origin that LFS objects are fetched from and sent to."""
        return self.cdn if self.options.redirect_to_cdn else self.endpoint

    def visit(self, request: Request) -> Repository:
        """The repository of the path, if the user may know about it.

        Raises:
            HubError: `RepoNotFound`.
            RepositoryMoved: To be answered by a redirect.
        """
        account = identify(request)
        kind: RepositoryType = request.path_params.get("type", "model")
        repository_id = f"{parameter(request, 'namespace')}/{parameter(request, 'name')}"
        repository = self.store.get(kind, repository_id)
        if repository is None or not may_see(account, repository):
            raise repository_not_found(anonymous=account is None)
        return repository

    def visit_content(self, request: Request) -> Repository:
        """The repository of the path, if the user may read its files.

        Raises:
            HubError: `RepoNotFound` or `GatedRepo`.
        """
        repository = self.visit(request)
        account = identify(request)
        if not may_read(account, repository):
            raise gated(repository.id, anonymous=account is None)
        return repository

    def visit_to_contribute(self, request: Request) -> tuple[Repository, Account]:
        """The repository of the path and a user who may open a pull request or a discussion.

        Raises:
            HubError: Without a token, or with one that only reads.
        """
        repository = self.visit_content(request)
        return repository, require_writer(request, code="RepoNotFound")

    def visit_to_write(
        self, request: Request, revision: str | None = None
    ) -> tuple[Repository, Account]:
        """The repository of the path and a user who may push to it.

        The author of a pull request may push to its reference without owning the repository.

        Raises:
            HubError: As `visit_to_contribute`, and 403 when it is somebody else's.
        """
        repository, account = self.visit_to_contribute(request)
        pull_request = repository.pull_request_of(revision) if revision else None
        is_own_pull_request = pull_request is not None and pull_request.author == account.user
        if not is_own_pull_request and not account.owns(repository.namespace):
            raise forbidden(
                "you don't have write access. Pass `create_pr=1` as a query parameter to create a"
                " Pull Request"
            )
        return repository, account


def may_see(account: Account | None, repository: Repository) -> bool:
    """A private repository exists for its owners only."""
    return not repository.private or (account is not None and account.owns(repository.namespace))


def may_read(account: Account | None, repository: Repository) -> bool:
    """The files of a gated repository are for its owners and for who was granted access."""
    if not repository.gated:
        return True
    return account is not None and (
        account.owns(repository.namespace) or account.user in repository.granted
    )


def require_writer(request: Request, code: str | None = None) -> Account:
    """The user behind a request that changes something.

    On the routes of a repository the client takes a 401 for a missing repository, hence `code`.

    Raises:
        HubError: 401 without a token, 403 when the token only reads.
    """
    account = identify(request)
    if account is None:
        raise HubError(401, "Invalid username or password.", code)
    if account.role != "write":
        raise forbidden("this token is read-only, use one with the role 'write'")
    return account


def parameter(request: Request, name: str, default: str = "") -> str:
    """A part of the path, decoded; routes match on the raw path, where a revision is one part."""
    return unquote(request.path_params.get(name, default))


def revision_of(request: Request) -> str:
    return parameter(request, "revision", "main")


class _RepositoryTypeConvertor(Convertor[str]):
    """`{type:plural}` in a path: `models`, `datasets` or `spaces`, and nothing else.

    (The client asks for `/api/agent-harnesses` when it is imported; a list there breaks it.)
    """

    regex = "models|datasets|spaces"

    def convert(self, value: str) -> str:
        return value.removesuffix("s")

    def to_string(self, value: str) -> str:
        return f"{value}s"


register_url_convertor("plural", _RepositoryTypeConvertor())
