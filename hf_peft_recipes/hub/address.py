"""Names on the Hub: `user/name`, `user/name@revision`."""

from dataclasses import dataclass

from hf_peft_recipes.errors import UserError


@dataclass(frozen=True)
class Address:
    """A repository, and which of its states is meant."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return the address as it is typed."""
        return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id


def parse_address(text: str) -> Address:
    """Return the address that `text` spells.

    Raises:
        UserError: it is not `user/name` with an optional `@revision`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repo_id, _, revision = text.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{text!r} is no name on the Hub: {str(error).splitlines()[0]}") from None
    if repo_id.count("/") != 1:
        raise UserError(f"{text!r} is no name on the Hub: user/name is wanted")
    if ".." in revision or revision.startswith(("/", "-")) or (not revision and text.endswith("@")):
        raise UserError(f"{text!r}: {revision!r} is no revision")
    return Address(repo_id, revision or None)
