"""Who may knock: the users, organisations and tokens of the test Hub, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.requests import HTTPConnection

from .errors import HubError

Role = Literal["read", "write"]


@dataclass(frozen=True)
class Account:
    """A user behind a token; `role` is what the token allows."""

    user: str
    role: Role

    def owns(self, namespace: str) -> bool:
        """Whether the user is the namespace or a member of the organisation of that name."""
        return self.user == namespace or self.user in ORGANISATIONS.get(namespace, ())


# organisation -> members
ORGANISATIONS: dict[str, tuple[str, ...]] = {
    "team": ("alice",),
}

# name in `TestHub.tokens` -> (token, account)
_TOKEN_TABLE: dict[str, tuple[str, Account]] = {
    "alice": ("hf_alice_write", Account("alice", "write")),
    "alice-read": ("hf_alice_read", Account("alice", "read")),
    "bob": ("hf_bob_write", Account("bob", "write")),
    "bob-read": ("hf_bob_read", Account("bob", "read")),
}

TOKENS: dict[str, str] = {name: token for name, (token, _) in _TOKEN_TABLE.items()}
_ACCOUNTS: dict[str, Account] = dict(_TOKEN_TABLE.values())


def organisations_of(user: str) -> list[str]:
    """The organisations `user` is a member of, in the order of the table."""
    return [name for name, members in ORGANISATIONS.items() if user in members]


def identify(connection: HTTPConnection) -> Account | None:
    """The account a request comes from, or None when it is anonymous.

    Raises:
        HubError: 401 when a token is sent that nobody holds.
    """
    header = connection.headers.get("authorization")
    if header is None:
        return None
    account = _ACCOUNTS.get(header.removeprefix("Bearer "))
    if account is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return account
