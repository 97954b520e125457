"""The Hub: what goes up, in one commit that is proved to have landed; what comes down, byte for byte the same."""

from hf_peft_recipes.hub.address import Address, parse_address
from hf_peft_recipes.hub.bases import Base, section_fingerprint
from hf_peft_recipes.hub.checkpoints import CheckpointPublisher
from hf_peft_recipes.hub.publishing import PushRequest, push, reserve
from hf_peft_recipes.hub.pulling import download, pull
from hf_peft_recipes.hub.shelf import list_published, publish_recipe

__all__ = [
    "Address",
    "Base",
    "CheckpointPublisher",
    "PushRequest",
    "download",
    "list_published",
    "parse_address",
    "publish_recipe",
    "pull",
    "push",
    "reserve",
    "section_fingerprint",
]
