import subprocess
import sys
from pathlib import Path

import pytest

from hf_peft_recipes import get_recipe, list_recipes, register_recipe, registry
from hf_peft_recipes.errors import UserError


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_decorated", {})


def test_shipped_recipes_are_found_recursively():
    folder = registry.shipped_folder()
    files = sorted(path.stem for path in folder.rglob("*.yaml") if path.parent != folder / "parts")
    assert list_recipes() == files
    assert "trainer" not in files, "what recipes extend is none by itself"
    assert {"lora", "qlora", "full", "sft"} <= set(files)


def test_pattern_selects():
    assert list_recipes("q*ora") == ["qdora", "qlora"]
    assert list_recipes("nothing*") == []


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown recipe 'qlorra'; did you mean 'qlora'"):
        registry.find("qlorra")


def test_missing_file_is_named():
    with pytest.raises(UserError, match=r"recipe file '\./my\.yaml' does not exist"):
        registry.find("./my.yaml")


def test_decorator_registers_and_is_called_only_when_asked_for():
    calls = []

    @register_recipe
    def mine():
        calls.append(1)
        return {"extends": "qlora", "summary": "Mine.", "training": {"learning_rate": 3e-4}}

    assert "mine" in list_recipes()
    assert not calls
    assert get_recipe("mine").resolved.value("training.learning_rate") == 3e-4
    assert calls


def test_a_taken_name_is_refused_with_both_origins():
    with pytest.raises(
        UserError, match=r"two recipes are named 'lora': recipes/methods/lora\.yaml and .*test_registry"
    ):

        @register_recipe(name="lora")
        def other():
            return {}


def test_entry_point_of_an_installed_package(tmp_path: Path):
    package = tmp_path / "toy"
    (package / "toy_recipes").mkdir(parents=True)
    (package / "toy_recipes" / "__init__.py").write_text(
        "def gentle():\n    return {'extends': 'lora', 'summary': 'Small steps.', 'training': {'learning_rate': 1e-5}}\n"
    )
    (package / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['hatchling']\nbuild-backend = 'hatchling.build'\n"
        "[project]\nname = 'toy-recipes'\nversion = '1'\n"
        "[project.entry-points.'hf_peft_recipes.recipes']\ngentle = 'toy_recipes:gentle'\n"
    )
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(package)]
    subprocess.run(pip, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import hf_peft_recipes as hpr\n"
        "assert 'gentle' in hpr.list_recipes()\n"
        "assert 'toy_recipes' not in sys.modules, 'listing imported the package'\n"
        "recipe = hpr.get_recipe('gentle')\n"
        "entry = recipe.show()['training']['learning_rate']\n"
        "print(entry['value'], entry['origin'])\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split("\n")[0] == "1e-05 entry point toy_recipes:gentle of toy-recipes"
