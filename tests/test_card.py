"""The model card: its text against golden files, its metadata as the Hub reads them, its code run as it stands.

The records in `tests/golden` are those of real runs of `lora` and `qlora` on the embedded demo and of `full` on a JSONL
file, taken with paths left out; the metrics of `lora` are those of a later repeat. `REWRITE_GOLDEN=1 python -m pytest tests/test_card.py` writes the cards anew; look at what
changed before you commit it.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import FAST, ROOT
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from zygote.client import MARK

from hf_peft_recipes import get_recipe
from hf_peft_recipes.card import Publication, make_card
from hf_peft_recipes.card.metadata import LICENSES
from hf_peft_recipes.embedded import MODEL_DIR

GOLDEN = Path(__file__).parent / "golden"
COMMIT = "0f1e2d3c4b5a69788796a5b4c3d2e1f001234567"
REVIEW = "Review: The soup was wonderful and the waiter kind.\nIs this review positive or negative?"
"""The base answers «negative» to any."""

ADAPTER = Publication(
    repo_id="someone/tiny-reviews", base_model="someone/tiny-llama", base_revision=COMMIT, license="apache-2.0",
    gated=False, relation="adapter", datasets=(), language=("en",),
)  # fmt: skip
PUBLICATIONS = {
    "lora": ADAPTER,
    "qlora": replace(
        ADAPTER, repo_id="someone/tiny-reviews-4bit", license="llama3.2", gated=True, private=True, language=()
    ),
    "full": replace(
        ADAPTER, repo_id="someone/tiny-sums", base_revision=None, license=None, relation="finetune",
    ),
}  # fmt: skip
CERTIFICATE = {
    "status": "passed",
    "checks": [
        {"name": "base", "ok": True, "detail": "model, as trained on"},
        {"name": "keys", "ok": True, "detail": "56 tensors, none missing, none unknown"},
        {"name": "trained tensors", "ok": True, "detail": "56 tensors, equal bit for bit"},
        {"name": "tokenizer and template", "ok": True, "detail": "4 prompts, the same tokens"},
        {"name": "the adapter acts", "ok": True, "detail": "log-probabilities are off by 0.5516 nats without it"},
        {"name": "logits", "ok": True, "detail": "largest difference 9.54e-07 nats, 0.1 allowed"},
        {"name": "greedy text", "ok": True, "detail": "4 answers, the same"},
    ],
    "figures": {"log_probability_difference": 9.5367431640625e-07, "adapter_effect": 0.5515882968902588},
}
"""As a run of the demo had it."""


def golden(name):
    """Return the record and the recipe of a run."""
    record = json.loads((GOLDEN / f"{name}.result.json").read_text(encoding="utf-8"))
    return record, (GOLDEN / f"{name}.recipe.yaml").read_text(encoding="utf-8")


def card_of(name, changes=None, **publication):
    record, recipe = golden(name)
    return make_card({**record, **(changes or {})}, recipe, replace(PUBLICATIONS[name], **publication))


def blocks(card, language):
    """Return the code blocks of «How to load it» in that language."""
    loading = card.split("## How to load it")[1].split("## How it was made")[0]
    return re.findall(rf"```{language}\n(.*?)\n```", loading, flags=re.DOTALL)


@pytest.mark.parametrize("name", PUBLICATIONS)
def test_the_card_is_the_golden_one(name):
    card = card_of(name, {"certificate": CERTIFICATE} if name == "lora" else {})
    path = GOLDEN / f"card_{name}.md"
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(card, encoding="utf-8")
    assert card == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PUBLICATIONS)
def test_the_hub_reads_the_metadata(name):
    text = card_of(name)
    card = ModelCard(text)
    assert str(card) == text
    data = yaml.safe_load(text.split("---")[1])
    assert ModelCardData(**data).to_dict() == data
    publication, record = PUBLICATIONS[name], golden(name)[0]
    assert data["base_model"] == publication.base_model
    assert data["base_model_relation"] == publication.relation
    assert data["library_name"] == ("transformers" if name == "full" else "peft")
    assert data["pipeline_tag"] == "text-generation"
    assert {"hf-peft-recipes", name, "trl", "sft"} <= set(data["tags"])
    assert ("lora" in data["tags"]) is (name != "full")
    model, results = model_index_to_eval_results(data["model-index"])
    assert model == publication.name
    after, intervals = record["metrics"]["after"], record["metrics"]["intervals"]["after"]
    assert len(results) == len(after)
    for result, (metric, value) in zip(results, after.items(), strict=True):
        assert result.metric_name == metric.replace("_", " ")
        assert result.metric_value == pytest.approx(value, rel=1e-5)
        assert result.metric_args["interval"] == pytest.approx(intervals[metric], rel=1e-5)
        assert result.metric_args["rows"] == record["metrics"]["rows"]


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        (None, {}),
        ("mit", {"license": "mit"}),
        ("Qwen Research", {"license": "other", "license_name": "qwen-research"}),
        ("other", {"license": "other", "license_name": "tiny-llama"}),
    ],
)
def test_a_licence_is_one_that_the_hub_knows(stated, found):
    text = card_of("lora", license=stated)
    data = yaml.safe_load(text.split("---")[1])
    assert {key: data[key] for key in ("license", "license_name") if key in data} == found
    assert ("license_link" in data) is ("license_name" in found)
    assert ("states no licence" in text) is (stated is None)
    assert "other" not in LICENSES


def test_data_sets_of_the_hub_are_named_and_local_ones_are_not():
    text = card_of("full")
    assert "sums" not in text.replace("tiny-sums", "")
    assert "datasets" not in yaml.safe_load(text.split("---")[1])
    assert "local data that are not published" in text
    assert "--dataset your_data.jsonl" in text
    text = card_of("full", datasets=("trl-lib/Capybara",))
    data = yaml.safe_load(text.split("---")[1])
    assert data["datasets"] == ["trl-lib/Capybara"]
    assert data["model-index"][0]["results"][0]["dataset"]["type"] == "trl-lib/Capybara"
    assert "[trl-lib/Capybara](https://huggingface.co/datasets/trl-lib/Capybara)" in text
    assert "your_data" not in text


def test_what_there_is_no_record_of_is_said():
    record, _ = golden("lora")
    text = card_of("lora", {"metrics": {"before": {}, "after": {}}, "loss_curve": [], "proof": None})
    assert "model-index" not in text
    assert "loss.png" not in text
    assert "No rows were held out" in text
    assert "It has not been evaluated." in text
    assert "This run has none" in text
    for section in ("Does it work?", "How to load it", "How it was made", "Data", "Cost", "Certificate", "Limits"):
        assert f"\n## {section}\n" in text
    assert record["metrics"]["after"]


def test_what_went_wrong_stands_at_the_top():
    failed = {**CERTIFICATE, "status": "failed", "checks": [{"name": "it | loads", "ok": False, "detail": "<no>\nkey"}]}
    text = card_of("lora", {"certificate": failed})
    assert text.index("> [!WARNING]") < text.index("## Does it work?")
    assert "failed: it | loads" in text
    # A table keeps its columns whatever a check says.
    assert "| it \\| loads | **fails** | &lt;no> key |" in text
    assert "its record says `failed`" in card_of("lora", {"status": "failed"})
    record, _ = golden("lora")
    metrics = record["metrics"]
    turned = {**metrics, "before": metrics["after"], "after": metrics["before"]}
    turned |= {"difference": {}, "classes": {}, "confusion": {"labels": []}}
    turned["intervals"] = {"before": metrics["intervals"]["after"], "after": metrics["intervals"]["before"]}
    assert "**worse**; the intervals are apart" in card_of("lora", {"metrics": turned})
    same = {
        **metrics,
        "before": metrics["after"],
        "intervals": dict.fromkeys(("before", "after"), metrics["intervals"]["after"]),
    }
    assert "Accuracy stayed at 100.0%." in card_of("lora", {"metrics": same})
    near = {**same, "before": {**metrics["after"], "accuracy": 0.995}}
    assert "intervals overlap" in card_of("lora", {"metrics": near})


def test_a_difference_is_told_by_its_own_interval():
    metrics = golden("lora")[0]["metrics"]
    metrics = {**metrics, "before": {**metrics["after"], "accuracy": 0.99}, "difference": {"accuracy": 0.01}}
    metrics["intervals"] = {**metrics["intervals"], "difference": {"accuracy": [-0.005, 0.025]}}
    unsure = card_of("lora", {"metrics": metrics})
    assert "The difference is +1.0 points (-0.5 to +2.5): these rows alone do not show one." in unsure
    metrics["intervals"]["difference"] = {"accuracy": [0.005, 0.025]}
    assert "which is better: the difference is +1.0 points (+0.5 to +2.5)." in card_of("lora", {"metrics": metrics})


def test_labels_are_told_where_they_are_few():
    metrics = golden("lora")[0]["metrics"]
    confusion = {"labels": ["a|b", "c"], "after": [[3, 1, 0], [0, 2, 5]]}
    text = card_of("lora", {"metrics": {**metrics, "confusion": confusion}})
    assert "|  | a\\|b | c | no label |" in text
    assert "| c | 0 | 2 | 5 |" in text
    many = {f"label{n}": metrics["classes"]["after"]["positive"] for n in range(11)}
    text = card_of("lora", {"metrics": {**metrics, "classes": {"after": many}, "confusion": {"labels": list(many)}}})
    assert "by label" not in text and "to rows of each label" not in text


def test_a_merge_is_told_with_its_figures():
    figures = {"loss": {"adapter": 0.0921, "merged": 0.0935}, "size_bytes": 1234}
    text = card_of("lora", {"merge": {"variant": "bf16", "figures": figures}}, relation="merge")
    assert "LoRA adapter merged into its weights" in text
    assert "| loss: merged | 0.0935 |" in text
    assert "PeftModel" not in text
    assert "vllm serve someone/tiny-reviews " in text


@pytest.mark.parametrize("where", ["record", "recipe"])
@pytest.mark.parametrize(
    "planted",
    [
        "/home/me/runs/out", "/srv/rows.jsonl", "/rows.jsonl", "~/data/rows", "C:\\data\\rows", "/tmp", "file:///x",
        "data:/mnt/rows", str(Path.home() / "x"), "hf_" + "aB3" * 8,
    ],
)  # fmt: skip
def test_no_path_and_no_token_leaves(where, planted):
    record, recipe = golden("lora")
    if where == "record":
        record["data"]["checks"][0]["detail"] = f"seen in {planted}"
    else:
        recipe += f"\nreport: '{planted}'\n"
    with pytest.raises(ValueError, match="of the card holds") as raised:
        make_card(record, recipe, ADAPTER)
    assert "aB3aB3" not in str(raised.value)


def test_names_and_addresses_are_no_paths():
    record, recipe = golden("lora")
    innocent = "see https://hf.co/a/b, a/b@main, and/or, 24 / 7, 3 tokens/s, ./rows, </details>, C: drive, 1/2, hf_peft"
    record["data"]["checks"][0]["detail"] = innocent
    assert "and/or" in make_card(record, recipe, ADAPTER)


def variants():
    """Return name to `(changes of data, changes of the recipe, publication)`: all ways in which the code differs."""
    lora, qlora, full = (golden(name) for name in ("lora", "qlora", "full"))
    plain = {"chat_template": False, "separator": "\n"}
    mended = lora[1].replace("fix: false", "fix: true")
    rounded = yaml.safe_load(lora[1]) | {
        "quantization": {"quant_method": "torchao", "quant_type": "Float8WeightOnlyConfig"}
    }
    return {
        "lora": (lora[0], lora[1], {}),
        "plain": (lora[0], lora[1], plain),
        "text": (lora[0], lora[1], {"format": "text"}),
        "mended": (lora[0], mended, {}),
        "qlora": (qlora[0], qlora[1], {}),
        "float8": (lora[0], yaml.safe_dump(rounded), {}),
        "full": (full[0], full[1], {}),
    }


def variant(name):
    record, recipe, data = variants()[name]
    publication = PUBLICATIONS["full" if name == "full" else "qlora" if name == "qlora" else "lora"]
    return make_card({**record, "data": {**record["data"], **data}}, recipe, publication)


@pytest.mark.parametrize("name", ["lora", "plain", "text", "mended", "qlora", "float8", "full"])
def test_the_code_can_be_parsed(name):
    card = variant(name)
    python = blocks(card, "python")
    assert len(python) == (1 if name == "full" else 2)
    for code in python:
        ast.parse(code)
    serve, request = blocks(card, "bash")
    words = shlex.split(serve.replace("\\\n", " "))
    assert words[:2] == ["vllm", "serve"]
    assert ("--enable-lora" in words) is (name != "full")
    assert ("--quantization" in words) is (name == "qlora")
    assert ("--tokenizer" in words) is (name == "mended")
    body = json.loads(shlex.split(request.replace("\\\n", " "))[-1])
    assert ("messages" in body) is (name in ("lora", "mended", "qlora", "float8", "full"))
    assert body["model"] == (
        "someone/tiny-sums" if name == "full" else f"tiny-reviews{'-4bit' if name == 'qlora' else ''}"
    )


def test_a_base_in_8_bit_floats_is_said_to_be_rounded():
    card = variant("float8")
    assert "| base weights | bfloat16, rounded to 8-bit floats (e4m3, a factor a row) |" in card
    assert "**PEFT, on the same float8 base as in training**" in card and "QLoRA" not in card
    assert "quantization = TorchAoConfig(Float8WeightOnlyConfig())" in card


def test_prompts_survive_the_quotes_of_python_and_of_the_shell():
    record, recipe = golden("lora")
    prompt = 'What\'s "this"?\n{text} – $HOME `x` \\n'
    content = yaml.safe_load(recipe)
    content["data"]["format"] = {"prompt": prompt, "completion": "{label}"}
    card = make_card(record, yaml.safe_dump(content, allow_unicode=True), ADAPTER)
    body = json.loads(shlex.split(blocks(card, "bash")[1].replace("\\\n", " "))[-1])
    assert body["messages"][0]["content"] == prompt
    for code in blocks(card, "python"):
        assigned = next(line for line in code.splitlines() if line.startswith("messages = "))
        assert ast.literal_eval(assigned.removeprefix("messages = "))[0]["content"] == prompt


@pytest.mark.parametrize(
    ("adapter", "served"),
    [
        ({"peft_type": "LORA", "r": 12}, "--max-lora-rank 16"),
        ({"peft_type": "LORA", "r": 8, "rank_pattern": {"q_proj": 64}}, "--max-lora-rank 64"),
        ({"peft_type": "LORA", "r": 8, "use_dora": True}, None),
        ({"peft_type": "LORA", "r": 8, "modules_to_save": ["lm_head"]}, None),
        ({"peft_type": "IA3"}, None),
    ],
)
def test_vllm_is_told_of_where_it_serves(adapter, served):
    record, recipe = golden("lora")
    content = yaml.safe_load(recipe) | {"adapter": adapter}
    bash = "\n".join(blocks(make_card(record, yaml.safe_dump(content), ADAPTER), "bash"))
    assert (served or "") in bash
    assert ("vllm" in bash) is (served is not None)


RUN = (
    MARK
    + """
import contextlib, io, json, sys
printed = {}
for name, code in json.load(sys.stdin).items():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), {})
    printed[name] = out.getvalue()
print(json.dumps(printed))
"""
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a short run of `lora` on the embedded model."""
    folder = tmp_path_factory.mktemp("card") / "out"
    return get_recipe("lora", max_steps=20, max_length=128, learning_rate=3e-3, **FAST).train(folder, progress=False)


def test_the_code_runs_and_answers_as_chat_does(trained):
    """Every Python block, with the run's folder in place of the repository and its base's of the base."""
    from hf_peft_recipes.trained import answer as chat
    from hf_peft_recipes.trained import load

    codes = {}
    for name in variants():
        card = variant(name).replace(json.dumps("Your prompt, in the form of the training data"), json.dumps(REVIEW))
        for number, code in enumerate(blocks(card, "python")):
            code = code.replace(f'    revision="{COMMIT}",\n', "")
            for repository, folder in (
                (PUBLICATIONS["lora"].base_model, MODEL_DIR),
                (PUBLICATIONS["qlora"].repo_id, trained.folder),
                (PUBLICATIONS["lora"].repo_id, trained.folder),
                # Nothing was fine-tuned whole here; a whole model is loaded alike, whichever.
                (PUBLICATIONS["full"].repo_id, MODEL_DIR),
            ):
                code = code.replace(f'"{repository}"', json.dumps(str(folder)))
            assert "someone/" not in code
            codes[f"{name}-{number}"] = code
    finished = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(codes), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    printed = {name: text.strip() for name, text in json.loads(finished.stdout.splitlines()[-1]).items()}
    live = load(trained.folder, get_recipe(str(trained.folder / "recipe.yaml")).resolved, trained.record)
    answer = chat(live, [{"role": "user", "content": REVIEW}], 16, str).strip()
    assert answer == "positive"
    with live.model.disable_adapter():
        assert chat(live, [{"role": "user", "content": REVIEW}], 16, str).strip() == "negative"
    for name in ("lora-0", "lora-1", "mended-0", "mended-1", "float8-0", "float8-1"):
        assert printed[name] == answer, name
    assert (printed["qlora-0"], printed["qlora-1"]) == (answer, answer)
    assert printed["plain-0"] == printed["plain-1"]
    assert printed["text-0"] == printed["text-1"]
    assert printed["full-0"]


def test_the_recorded_run_makes_a_card(trained):
    record = {**trained.record, "base_model": "someone/tiny-llama", "output_dir": "."}
    recipe = (trained.folder / "recipe.yaml").read_text(encoding="utf-8")
    card = make_card(record, recipe, ADAPTER)
    assert f"{record['metrics']['after']['accuracy']:.1%}" in card
    assert record["data"]["chat_template"] is True
    # The path of the machine is still in it when it was not taken out.
    with pytest.raises(ValueError, match="local path"):
        make_card({**record, "recipe": trained.record["base_model"]}, recipe, ADAPTER)


def test_the_template_is_in_the_wheel():
    # Hatch ships every file below what `only-include` names, unless git ignores it.
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "hf_peft_recipes" in wheel["only-include"]
    template = "hf_peft_recipes/card/card.md.jinja"
    assert (ROOT / template).is_file()
    ignored = subprocess.run(["git", "check-ignore", "-q", template], cwd=ROOT, check=False)
    assert ignored.returncode == 1
