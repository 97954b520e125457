import pkgutil

import pytest

import hf_peft_recipes


def test_all_is_exact():
    assert hf_peft_recipes.__all__ == [
        "MergeResult", "PreemptedError", "PushRequest", "Recipe", "RecipeError", "RunResult", "SweepResult", "UserError", "certify", "get_recipe", "list_checkpoints", "list_recipes",
        "pull", "register_recipe",
    ]  # fmt: skip
    for name in hf_peft_recipes.__all__:
        assert getattr(hf_peft_recipes, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_peft_recipes.nothing  # noqa: B018


def test_every_room_says_what_it_is():
    import importlib.util

    kernels = "hf_peft_recipes.speed.nf4_kernel"
    skipped = {kernels} if importlib.util.find_spec("triton") is None else set()
    for module in pkgutil.walk_packages(hf_peft_recipes.__path__, "hf_peft_recipes."):
        if not module.name.endswith("__main__") and module.name not in skipped:
            assert importlib.import_module(module.name).__doc__, module.name


def test_no_file_is_two_rooms():
    from pathlib import Path

    for path in Path(hf_peft_recipes.__file__).parent.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name
