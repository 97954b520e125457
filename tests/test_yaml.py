import pytest

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.spec import strict_yaml


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("2e-4", 2e-4), ("1.5", 1.5), ("-3", -3), ("0x10", 16), ("true", True), ("False", False), ("null", None), ("~", None),
        ("no", "no"), ("on", "on"), ("y", "y"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("12:30", "12:30"),
        ("text: more", "text: more"), ("[a, 1]", ["a", 1]), ("{a: 1}", {"a": 1}), ("", None), ("1e5", 1e5),
    ],
)  # fmt: skip
def test_words_follow_yaml_1_2(word, value):
    if word:
        assert strict_yaml.load_scalar(word) == value
        assert type(strict_yaml.load_scalar(word)) is type(value)
    if "text" not in word:
        assert strict_yaml.load(f"key: {word}", "f.yaml")[0] == {"key": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"f\.yaml:3: key 'a' stands twice \(first on line 1\)"),
        ("a:\n  x: 1\n  x: 2\n", r"f\.yaml:3: key 'x' stands twice"),
        ("a: [1, 2\n", r"f\.yaml:\d: broken YAML"),
        ("a: !!python/object:os.system x\n", r"f\.yaml:1: could not determine a constructor"),
        ("- 1\n", r"f\.yaml: a recipe is a mapping"),
        ("", r"f\.yaml: a recipe is a mapping"),
        ("1: x\n", r"f\.yaml:1: key '1' is not a plain name"),
        ("a: \x01\n", r"f\.yaml: broken YAML"),
    ],
)
def test_broken_files_name_the_line(text, message):
    with pytest.raises(UserError, match=message):
        strict_yaml.load(text, "f.yaml")


def test_comments_beside_values_are_kept():
    _, comments = strict_yaml.load("a:\n  b: 1   # the reason\n  c: '# no comment'\nd: [1] # list\n", "f.yaml")
    assert comments == {("a", "b"): "the reason", ("d",): "list"}


@pytest.mark.parametrize(
    "value", ["no", "2e-4", "1", "true", "", "a: b", "\n", None, 2e-5, 1.0, [1, "x"], {"k": [True]}]
)
def test_dump_reads_back(value):
    assert strict_yaml.load(strict_yaml.dump({"key": value}), "f.yaml")[0] == {"key": value}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {b: *a}\n",
        "a: &a [*a]\n",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(8)),
    ],
)
def test_aliases_that_come_to_no_end_are_refused(text):
    with pytest.raises(UserError, match=r"file.yaml: its aliases .* come to more than"):
        strict_yaml.load(text, "file.yaml")
    assert strict_yaml.load("a: &a [1, 2]\nb: *a\n", "file.yaml")[0] == {"a": [1, 2], "b": [1, 2]}
