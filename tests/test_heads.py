"""Models that do not write on: their rows, their labels, their scores; and they load as what was trained."""

import contextlib
import io
import json

import jsonschema
import pytest
import torch
import yaml
from conftest import FAST, write_jsonl

from hf_peft_recipes import get_recipe, trained
from hf_peft_recipes.card.head_snippets import TEXT, head_code
from hf_peft_recipes.card.publication import Publication
from hf_peft_recipes.data.encoders import Labeller, Rewriter, RewrittenRow, Tagger
from hf_peft_recipes.data.formats import detect_format
from hf_peft_recipes.embedded import MODEL_DIR, REWRITER_DIR, demo
from hf_peft_recipes.errors import UserError
from hf_peft_recipes.models import context_length
from hf_peft_recipes.results import read_schema
from hf_peft_recipes.spec.objectives import objective_facts

SHORT = {**FAST, "evaluation.max_rows": 40, "certify": "auto"}
REVIEWS = [{"text": f"The soup number {n} was {'fine' if n % 3 else 'cold'}.", "label": "good" if n % 3 else "bad"} for n in range(60)]  # fmt: skip


def example(row):
    return detect_format(list(row), {}, "rows", {}, [row]).example(row)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small BERT, with a tokenizer that puts its own tokens around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = [" ".join(row["tokens"]) for row in demo("tagged").splits["train"][:400]]
    words.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("bert")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def test_a_label_is_learned_for_the_text_as_it_is(tokenizer):
    labeller = Labeller(tokenizer, [], ("bad", "good"))
    (row, bad) = labeller.rows([example({"text": "Cold soup.", "label": "bad"}), example({"text": "x", "label": "so"})])
    assert row.columns() == {"input_ids": tokenizer("Cold soup.").input_ids, "labels": 0}
    assert "no label of the training rows" in str(bad)


def test_a_row_that_is_cut_keeps_the_token_that_ends_it(bert):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert)
    (row,) = Labeller(tokenizer, [], ("a", "b")).rows([example({"text": "The soup was really cold.", "label": "b"})])
    (cut,) = row.cut(4, False)
    assert cut.input_ids == [*row.input_ids[:3], tokenizer.sep_token_id]
    tagger = Tagger(tokenizer, [], ("O", "B-X"))
    (row,) = tagger.rows([example({"tokens": ["soup", "cold"], "tags": ["B-X", "O"]})])
    (cut,) = row.cut(3, False)
    assert (cut.input_ids[-1], cut.labels[-1]) == (tokenizer.sep_token_id, -100)


@pytest.mark.parametrize("words", [["unbelievably", "cosy", "!"], ["我", "crème", "brûlée", "👍🏽"], ["a​b", "c"]])
def test_the_last_token_of_every_word_carries_its_tag(tokenizer, words):
    tags = [f"B-{number}" for number in range(len(words))]
    tagger = Tagger(tokenizer, [], tags)
    (row,) = tagger.rows([example({"tokens": words, "tags": tags})])
    positions = [at for at, label in enumerate(row.labels) if label != -100]
    assert [row.labels[at] for at in positions] == list(range(len(words)))
    # Up to and with the token of a word stands the sentence up to that word.
    for number, at in enumerate(positions):
        assert tokenizer.decode(row.input_ids[: at + 1]).strip() == " ".join(words[: number + 1])


def test_a_word_that_the_tokenizer_drops_carries_nothing(bert):
    from transformers import AutoTokenizer

    tagger = Tagger(AutoTokenizer.from_pretrained(bert), [], ("O", "B-X"))
    row = example({"tokens": ["soup", "​", "cold"], "tags": ["O", "B-X", "B-X"]})
    assert tagger.positions(row)[1] is None
    assert sorted(label for label in tagger.rows([row])[0].labels if label != -100) == [0, 1]


def test_source_and_target_are_both_ended_and_cut():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REWRITER_DIR)
    (row,) = Rewriter(tokenizer, [tokenizer.eos_token_id]).rows([example({"source": "ask me", "target": "no"})])
    assert row.labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.labels, skip_special_tokens=True) == "no"
    (cut,) = RewrittenRow([5, 6, 7], [8, 9, 4], (0, 1)).cut(2, False)
    assert (cut.input_ids, cut.labels) == ([5, 6], [8, 4])


def test_parts_of_speech_are_tags_too():
    assert example({"tokens": ["a", "soup"], "tags": ["DET", "NOUN"]}).reference == "DET NOUN"


def test_positions_that_begin_behind_the_padding_are_fewer():
    from transformers import BertConfig, RobertaConfig, XLMRobertaConfig

    assert context_length(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert context_length(XLMRobertaConfig(max_position_embeddings=66, pad_token_id=0)) == 65
    assert context_length(BertConfig(max_position_embeddings=512)) == 512


@pytest.mark.parametrize(
    ("name", "rows", "told"),
    [
        ("classify", [{"text": f"row {n}", "label": "good"} for n in range(20)], "every label is 'good'"),
        ("tag", [{"tokens": [str(n)], "tags": ["O"]} for n in range(20)], "every tag is 'O'"),
        ("tag", [{"tokens": ["a", "b"], "tags": ["O"]}] * 20, "2 tokens have 1 tags"),
        ("classify", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4, r"preference data, .* did you mean lora\+dpo\?"),
        ("reward", [{"text": "a", "label": "b"}] * 4, r"text_label data, which reward does not learn from"),
        ("classify", [{"text": f"row {n}", "label": f"answer {n}"} for n in range(1500)], "different labels .* did you mean sft"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_told_before_anything_is_loaded(name, rows, told, tmp_path):
    with pytest.raises(UserError, match=told):
        get_recipe(name, dataset=rows, **FAST).train(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_label_that_is_never_learned_is_told(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", REVIEWS)
    write_jsonl(tmp_path / "test.jsonl", [{"text": "The soup was odd.", "label": "unclear"}])
    with pytest.raises(UserError, match="'unclear' stands in 1 held-out rows and in no training row"):
        get_recipe("classify", dataset=str(tmp_path), **FAST).train(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "metric", "chance"),
    [
        ("classify", {"max_steps": 15}, "accuracy", 0.5),
        ("tag", {"max_steps": 30, "learning_rate": 3e-3}, "entity_f1", 0.0),
        ("reward", {"max_steps": 30, "learning_rate": 3e-3}, "score_accuracy", 0.5),
        ("seq2seq", {"max_steps": 60, "learning_rate": 3e-3}, "accuracy", 0.5),
    ],
)
def test_every_head_beats_its_base_and_loads_as_what_was_trained(name, options, metric, chance, tmp_path):
    result = get_recipe(name, **{**SHORT, **options}).train(tmp_path / "out", progress=False)
    before, after = result.record["metrics"]["before"], result.record["metrics"]["after"]
    assert after[metric] > max(before[metric], chance) + 0.2, (before, after)
    assert result.record["certificate"]["status"] == "passed", result.record["certificate"]
    jsonschema.validate(result.record, read_schema())
    again = trained.evaluate(result.load(), result.record)
    assert again["after"][metric] == pytest.approx(after[metric], abs=1e-6)
    assert again["before"]["loss"] == pytest.approx(before["loss"], rel=1e-2)
    printed = told_by_the_card(name, result)
    if name == "reward":
        assert float(printed)
    elif name == "tag":
        assert "B-BLAME" in printed
    else:
        assert printed == "negative"


def told_by_the_card(name, result):
    """Return what the model card's code prints of a review, the run's folder and its base in place of repositories."""
    base = str(REWRITER_DIR if name == "seq2seq" else MODEL_DIR)
    publication = Publication(str(result.folder), base, None, None, False, "adapter", ())
    recipe = yaml.safe_load((result.folder / "recipe.yaml").read_text(encoding="utf-8"))
    review = "Review: The soup was cold and awful.\nIs this review positive or negative?"
    code = head_code(objective_facts(name).head, result.record, recipe, publication)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace(json.dumps(TEXT), json.dumps(review)), {})
    return printed.getvalue().strip()


CERTIFIED = ("qlora+classify", "qlora+reward", "lora_fp8+classify")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["qlora+classify", "full+tag", "qlora+reward", "lora_fp8+classify", "lora+classify", "qlora+tag"]
)
def test_encoders_train_and_load(name, bert, tmp_path):
    if "reward" in name:
        bert = MODEL_DIR
    # In a process of its own where the base is quantised around a head; the others are like those above.
    options = {**SHORT, "evaluation.max_rows": 8, "certify": "auto" if name in CERTIFIED else "off"}
    result = get_recipe(name, model=str(bert), max_steps=3, **options).train(tmp_path / "out", progress=False)
    if name in CERTIFIED:
        assert result.record["certificate"]["status"] == "passed", result.record["certificate"]
    else:
        assert trained.evaluate(result.load(), result.record)["after"] == pytest.approx(
            result.metrics["after"], rel=1e-3
        )
    if name != "full+tag":
        written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert written["modules_to_save"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora+classify", "lora+tag", "qlora+reward", "lora+seq2seq"])
def test_a_merged_model_says_what_the_adapter_says(name, tmp_path):
    options = {**SHORT, "max_steps": 8, "learning_rate": 3e-3, "certify": "off", "evaluation.max_rows": 8}
    result = get_recipe(name, **options).train(tmp_path / "out", progress=False)
    merged = result.merge(tmp_path / "merged")
    best = merged.record["variants"][merged.record["into"]]
    assert best["divergence"]["mean"] < 0.05
    assert (tmp_path / "merged" / "config.json").is_file()


@pytest.mark.slow
def test_a_classifier_is_talked_to_and_asked_no_questions(command, tmp_path):
    options = {**SHORT, "max_steps": 6, "certify": "off", "evaluation.max_rows": 40}
    get_recipe("classify", **options).train(tmp_path / "out", progress=False)
    told = command("chat", tmp_path / "out", "--prompt", "The soup was cold.")
    assert told.stdout.split()[0] in ("negative", "positive") and "LOAD REPORT" not in told.stderr
    (tmp_path / "policy.yaml").write_text("metric: accuracy\nrises_by: 1%\nregression: {falls_at_most: 2%}\n")
    refused = command("evaluate", tmp_path / "out", "--gate", tmp_path / "policy.yaml")
    assert refused.returncode == 2 and "classify writes nothing" in refused.stderr


@pytest.mark.slow
def test_a_head_of_several_layers_is_trained_and_saved_as_one(bert, tmp_path):
    from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(bert)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    options = {**SHORT, "max_steps": 4, "certify": "off", "evaluation.max_rows": 4}
    result = get_recipe("lora+classify", model=str(tmp_path / "roberta"), **options).train(
        tmp_path / "out", progress=False
    )
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    # PEFT names its own beside it.
    assert set(written["modules_to_save"]) == {"classifier", "score"}
    assert not result.record["proof"]["unproved"]


@pytest.mark.parametrize("objective", ["classify", "tag", "seq2seq"])
def test_nothing_has_to_be_evaluated(objective, tmp_path):
    recipe = get_recipe(f"lora+{objective}", max_steps=1, **{**FAST, "evaluation.max_rows": 0})
    assert recipe.train(tmp_path, progress=False).record["status"] == "done"
