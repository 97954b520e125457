"""Every shipped recipe: parametrised by the registry, so that a new file is tested for free."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import FAST, ROOT

from hf_peft_recipes import get_recipe, list_recipes, registry
from hf_peft_recipes.device import KNOWN_DEVICES, named_device
from hf_peft_recipes.embedded import MODEL_DIR, REWRITER_DIR
from hf_peft_recipes.errors import UnplannedError
from hf_peft_recipes.spec import load_part, strict_yaml, upstream
from hf_peft_recipes.spec.entries import leaves
from hf_peft_recipes.spec.objectives import objective_facts

NAMES = list_recipes()
IN_ROUNDS = [name for name in NAMES if get_recipe(name).resolved.is_in_rounds]
"""These go through a round in test_rounds.py."""


@pytest.mark.parametrize("name", NAMES)
def test_resolves_on_every_device(name):
    recipe = get_recipe(name, device="cpu")
    for device in map(named_device, KNOWN_DEVICES):
        # Composed once: the parts of a recipe are the same everywhere.
        assert recipe.decide(False, device).objective == recipe.resolved.objective


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IN_ROUNDS])
def test_trains_two_steps(name, rows, tmp_path):
    # Pairs and judged answers are those of the embedded demo.
    data = {"dataset": rows if get_recipe(name).resolved.objective == "sft" else None}
    if objective_facts(get_recipe(name).resolved.objective).is_rewarded:
        data |= {"rewards": ["label"], "max_completion_length": 8}
    small = {
        "split": "train",
        "evaluation.split": None,
        "model": str(REWRITER_DIR if get_recipe(name).resolved.objective == "seq2seq" else MODEL_DIR),
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
    }
    few = {**FAST, "evaluation.max_rows": 4, "data.validation_rows": 4}
    result = get_recipe(name, **data, **small, **few).train(tmp_path / "out", progress=False)
    assert result.status == "done"
    assert len([point for point in result.record["loss_curve"] if "loss" in point]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is_and_where_it_comes_from(name):
    part = load_part(name, lambda word: (word, registry.find(word).origin, registry.find(word).read()))
    assert part.summary.endswith(".")
    assert part.raw["source"]
    first = registry.find(name).read().splitlines()[0]
    command = re.fullmatch(r"# hf-peft-recipes train (\S+) .+", first)
    assert command, "a run command stands at the head of every file"
    assert name in command[1].split("+")


@pytest.mark.parametrize("name", NAMES)
def test_every_value_that_is_not_upstreams_has_its_reason(name):
    source = registry.find(name)
    raw, comments = strict_yaml.load(source.read(), source.origin)
    objective = get_recipe(name).resolved.objective
    defaults = {key: field.default for key, field in upstream.training_fields(objective).items()}
    bare = []
    for path, value in leaves({key: raw[key] for key in ("training", "adapter", "quantization") if raw.get(key)}):
        is_upstreams = path[0] == "training" and repr(value) == defaults.get(path[1], "").replace('"', "'")
        # What makes the method what it is needs no defence.
        names_the_method = path[-1] in ("peft_type", "load_in_4bit")
        if path not in comments and not is_upstreams and not names_the_method:
            bare.append(".".join(path))
    assert not bare


def test_wheel_holds_everything(tmp_path: Path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = registry.shipped_folder()
    for path in folder.rglob("*.yaml"):
        assert f"hf_peft_recipes/recipes/{path.relative_to(folder)}" in names
    for needed in (
        "embedded/model/model.safetensors", "embedded/model/tokenizer.json", "embedded/data/train.jsonl",
        "embedded/data/test.jsonl", "regression/questions.jsonl", "result.schema.json", "accelerate_configs/ddp.yaml",
        "py.typed",
    ):  # fmt: skip
        assert f"hf_peft_recipes/{needed}" in names
    assert wheel.stat().st_size < 10 * 2**20
    # Installed without its checkout, the package finds its recipes inside itself.
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "import hf_peft_recipes as h; print(h.__file__, *h.list_recipes())"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert printed[0].startswith(str(site))
    assert printed[1:] == NAMES


@pytest.mark.parametrize(
    "path", sorted((ROOT / "hf_peft_recipes" / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_configurations_are_read_by_accelerate(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert (
        load_config_from_file(str(path)).to_dict()["num_processes"] == yaml.safe_load(path.read_text())["num_processes"]
    )


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_stand_before_every_row_and_no_packed_ones(name):
    recipe = get_recipe(name)
    assert recipe.resolved.value("training.packing") is False
    # What has no packing is given none.
    assert "packing" not in get_recipe(f"{name}+dpo").resolved.section("training")


@pytest.mark.parametrize("name", ["dpo", "grpo", "prompt_tuning", "vblora", "qdora"])
def test_what_is_not_planned_yet_is_said_and_trains_all_the_same(name):
    recipe = get_recipe(name, device="H100")
    with pytest.raises(UnplannedError, match="no plan of"):
        recipe.plan()
    assert recipe.rehearse(None) is None
