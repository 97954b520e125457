"""Code that is run against tests. What a model writes is run, so nothing here happens unless it was allowed."""

import re

from hf_peft_recipes.scorers.sandbox import run_code

_BLOCK = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)


def unit_tests(
    answer: str, reference: str, *, seconds: float = 5.0, memory_mib: int = 512, allow_code_execution: bool = False
) -> float:
    """Return 1.0 when the answer's code passes every test, else 0.0; a crash, or a limit that is met, is a failure.

    Args:
        answer: Python code, or a text with code blocks, of which the last counts.
        reference: Python code that raises where the answer is wrong: `assert add(1, 2) == 3`.
        seconds: that code and tests may take together.
        memory_mib: that they may have, in MiB.
        allow_code_execution: comes from who runs the recipe alone.

    Raises:
        PermissionError: it is not allowed.
    """
    if not allow_code_execution:
        raise PermissionError("unit_tests runs code that the model wrote: --allow_code_execution allows it")
    return float(run_code(code_of(answer), code_of(reference), seconds, memory_mib).passed)


def code_of(text: str) -> str:
    """Return the last code block of a text, or all of it where there is none."""
    found: list[str] = _BLOCK.findall(text)
    return found[-1] if found else text
