"""Who may do what: users, their tokens, and the namespaces they write to."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopback_hub.refusals import Refusal

ROLES = ("write", "read", "fineGrained")


@dataclass(frozen=True)
class Account:
    """One access token and whose it is."""

    token: str
    name: str
    role: str
    permissions: tuple[str, ...]
    organizations: tuple[str, ...]

    @property
    def may_write(self) -> bool:
        """Whether the token writes at all."""
        return self.role == "write" or (self.role == "fineGrained" and "repo.write" in self.permissions)

    def owns(self, repository: str) -> bool:
        """Whether the repository is in a namespace of this user."""
        return repository.split("/")[0] in (self.name, *self.organizations)

    def described(self) -> dict[str, Any]:
        """Return the body of `whoami-v2`."""
        access: dict[str, Any] = {"displayName": "test", "role": self.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        if self.role == "fineGrained":
            entity = {"_id": self.name, "type": "user", "name": self.name}
            scoped = [{"entity": entity, "permissions": list(self.permissions)}]
            access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        return {
            "type": "user", "id": self.name, "name": self.name, "fullname": self.name, "isPro": False, "avatarUrl": "",
            "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in self.organizations],
            "auth": {"type": "access_token", "accessToken": access},
        }  # fmt: skip


class Accounts:
    """All tokens of the Hub."""

    def __init__(self) -> None:
        self._by_token: dict[str, Account] = {}

    def add(self, name: str, role: str, permissions: Sequence[str], organizations: Sequence[str]) -> str:
        """Return a new token of the user; a user may have several."""
        if role not in ROLES:
            raise ValueError(f"role {role!r}: one of {', '.join(ROLES)} is wanted")
        token = "hf_" + "".join(secrets.choice("abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(34))
        self._by_token[token] = Account(token, name, role, tuple(permissions), tuple(organizations))
        return token

    def of(self, authorization: str | None) -> Account | None:
        """Return whose request it is, None for nobody's; refuse a token that is not known."""
        if not authorization:
            return None
        account = self._by_token.get(authorization.removeprefix("Bearer ").strip())
        if account is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return account


def signed_in(account: Account | None) -> Account:
    """Return the account; refuse a request of nobody."""
    if account is None:
        raise Refusal(401, "Invalid username or password.")
    return account


def may_write(account: Account | None, what: str) -> Account:
    """Return the account; refuse one whose token only reads."""
    account = signed_in(account)
    if not account.may_write:
        raise Refusal(403, f"Forbidden: you must use a write token to {what}.")
    return account
