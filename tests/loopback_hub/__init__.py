"""A small Hugging Face Hub on 127.0.0.1, so that the tests can drive the real clients through it."""

from loopback_hub.faults import Fault
from loopback_hub.hub import LoopbackHub
from loopback_hub.server import Request
from loopback_hub.store import Commit, PullRequest

__all__ = ["Commit", "Fault", "LoopbackHub", "PullRequest", "Request"]
