"""vLLM in this process, the adapter beside the base as a LoRA request.

Written after vLLM's documentation and sources (`LLM.generate`, `SamplingParams`, `LoRARequest`); it was not run: it
wants a GPU and a package that this project does not install.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.generation.engines import Conversation, Counts, Engine, Served
from hf_peft_recipes.generation.engines.server import NAMES, make_seeds

AT_ONCE = 512
"""Conversations that are handed over together: vLLM gives back nothing before the last of them is answered."""
_AS_IT_IS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What draws from the model as it is, said outright: left out, vLLM may take the base's own generation config."""


class VllmPolicy(Engine):
    """Answers of vLLM."""

    def __init__(self, served: Served, options: Mapping[str, Any]) -> None:
        """Load the base.

        Args:
            served: base, adapter and stop ids.
            options: keyword arguments of `vllm.LLM`.

        Raises:
            UserError: vLLM is not installed, or refuses an option.
        """
        if find_spec("vllm") is None:
            raise UserError("engine vllm: vLLM is not installed (pip install vllm), or take the engine transformers")
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        adapter = {"enable_lora": True, "max_lora_rank": served.adapter_rank or 16} if served.adapter else {}
        given = {"model": served.base, "revision": served.revision, **adapter, **options}
        try:
            self._engine = LLM(**given)
        except (TypeError, ValueError) as error:
            raise UserError(f"engine vllm: {str(error).splitlines()[0]}") from None
        self._served, self._request = served, LoRARequest
        self._loaded = 0
        self.adapter = served.adapter
        self.counts = Counts()

    @property
    def adapter(self) -> Any:
        """The folder of the adapter; each one that is set is loaded anew."""
        return self._adapter

    @adapter.setter
    def adapter(self, folder: Any) -> None:
        # vLLM keeps adapters by number: another one under the same number would not be read.
        self._loaded += 1
        self._adapter = folder
        self._lora = self._request(f"adapter-{self._loaded}", self._loaded, str(folder)) if folder else None

    def draw(
        self, conversations: Sequence[Conversation], samples: int, sampling: Mapping[str, Any], seed: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield numbers of conversations with the answers to each; each is asked with a seed of its own."""
        from vllm import SamplingParams

        renderer, asked = self._served.renderer, {NAMES.get(name, name): value for name, value in sampling.items()}
        told = {**_AS_IT_IS, **asked, "n": samples, "stop_token_ids": list(self._served.stop_ids)}
        seeds = make_seeds(seed, conversations)
        for start in range(0, len(conversations), AT_ONCE):
            began, part = time.perf_counter(), conversations[start : start + AT_ONCE]
            try:
                # Of several answers to one prompt vLLM seeds each by its number.
                parameters = [SamplingParams(**told, seed=each) for each in seeds[start : start + AT_ONCE]]
            except (TypeError, ValueError) as error:
                raise UserError(f"engine vllm: sampling: {error}") from None
            prompts = [{"prompt_token_ids": renderer.serve(turns)} for turns in part]
            outputs = self._engine.generate(prompts, parameters, use_tqdm=False, lora_request=self._lora)
            self.counts.seconds += time.perf_counter() - began
            for number, output in enumerate(outputs, start):
                self._count(output)
                yield number, [answer.text.strip() for answer in output.outputs]

    def _count(self, output: Any) -> None:
        self.counts.answers += len(output.outputs)
        self.counts.answer_tokens += sum(len(answer.token_ids) for answer in output.outputs)
        self.counts.cut_off += sum(answer.finish_reason == "length" for answer in output.outputs)
        self.counts.prompt_tokens += len(output.prompt_token_ids)


def make(served: Served, options: Mapping[str, Any]) -> VllmPolicy:
    """Return the policy.

    Args:
        served: base, adapter and stop ids.
        options: keyword arguments of `vllm.LLM`.

    Raises:
        UserError: vLLM is not installed, or refuses an option.
    """
    return VllmPolicy(served, options)
