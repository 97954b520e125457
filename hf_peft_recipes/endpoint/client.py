"""A model behind a server, asked for chat completions (`POST {base_url}/chat/completions`)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_peft_recipes.endpoint.answers import Answers, question_key
from hf_peft_recipes.endpoint.spending import Budget, Spending
from hf_peft_recipes.endpoint.transport import Address, EndpointError, ask
from hf_peft_recipes.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"


class Endpoint:
    """One model of one server; any number of threads may ask it at once."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = KEY_VARIABLE,
        seconds: float = 60.0,
        retries: int = 4,
        pause_seconds: float = 1.0,
        budget: Budget | None = None,
        cache: Path | None = None,
    ) -> None:
        """Args:
            base_url: up to and with the version: `https://api.openai.com/v1`, `http://127.0.0.1:8000/v1`.
            model: as the server calls it.
            api_key_env: the environment variable with the key, which goes to that server; a server of one's own
                may want none, so `OPENAI_API_KEY` may be missing, but not another one that is named here.
            seconds: from a question to its answer.
            retries: of a question that was not answered.
            pause_seconds: before the first of them; see `transport.Address`.
            budget: of this object, see `Budget`.
            cache: a file of answers; None for none on disk.

        Raises:
            UserError: the address is none, or the key is missing.
        """
        key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        if api_key_env not in (None, KEY_VARIABLE) and not key:
            raise UserError(f"there is no environment variable {api_key_env}, which api_key_env names")
        url = f"{base_url.rstrip('/')}/chat/completions"
        self._address = Address(url, key, seconds, retries + 1, pause_seconds)
        self.model, self.spending, self._answers = model, Spending(budget or Budget()), Answers(cache)

    def complete(self, messages: Sequence[Mapping[str, str]], *, n: int = 1, **sampling: Any) -> list[str]:
        """Return `n` answers to a conversation, without white space around them.

        What was asked in the same words before, with the same sampling, is taken from the answers that are kept; a
        `seed` tells apart what is to be drawn anew.

        Args:
            messages: turns, each with role and content.
            n: number of answers; a server that gives fewer at a time is asked again.
            sampling: the API's own parameters: `temperature`, `top_p`, `max_tokens`, `seed`, `stop` …; what is None is
                left out.

        Raises:
            UserError: key, model or address are wrong.
            BudgetSpentError: there is nothing left to ask with.
            EndpointError: there was no answer, or one without text.
        """
        turns = [dict(turn) for turn in messages]
        chosen = {name: value for name, value in sampling.items() if value is not None}
        key = question_key(self._address.url, self.model, turns, n, chosen)
        known = self._answers.get(key)
        if known is not None:
            return list(known)
        texts: list[str] = []
        while len(texts) < n:
            # Otherwise the rest would be drawn as the beginning was.
            seed = {"seed": chosen["seed"] + len(texts)} if "seed" in chosen else {}
            number = {"n": n - len(texts)} if n - len(texts) > 1 else {}
            texts += self._ask({"model": self.model, "messages": turns, **number, **chosen, **seed})
        if all(texts):
            # An empty answer may be an accident, which is not to last.
            self._answers.put(key, texts[:n])
        return texts[:n]

    def _ask(self, question: Mapping[str, Any]) -> list[str]:
        sent = json.dumps(question, ensure_ascii=False).encode("utf-8", "replace")
        answer, came = ask(self._address, sent, self.spending.begin)
        self.spending.add(answer.get("usage"), sent, came)
        choices = answer.get("choices")
        try:
            texts = [choice["message"].get("content") for choice in choices]  # type: ignore[union-attr]
        except (TypeError, KeyError, AttributeError):
            texts = []
        if not texts:
            raise EndpointError(f"{self._address.url}: an answer without choices")
        return [text.strip() if isinstance(text, str) else "" for text in texts]
