"""Models behind OpenAI-compatible servers: asked within a budget, again where that helps, and nothing twice."""

from hf_peft_recipes.endpoint.client import Endpoint
from hf_peft_recipes.endpoint.spending import Budget, BudgetSpentError
from hf_peft_recipes.endpoint.transport import EndpointError

__all__ = ["Budget", "BudgetSpentError", "Endpoint", "EndpointError"]
