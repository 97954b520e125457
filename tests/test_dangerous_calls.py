"""No line of the package may do what lets data become code, but for those that are named here, with the reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hf_peft_recipes"
ALLOWED = {
    ("data/workers.py", "import pickle"): "between this process and workers that it starts, over their own pipes",
    ("data/workers.py", "pickle.load"): "what stands on the pipe was written by the process that started this one",
    ("data/workers.py", "pickle.loads"): "what a worker that was started here has written to its pipe",
    (
        "pickles.py",
        "import pickle",
    ): "looks into pickles: whatever they name is stood in for, nothing is imported or run",
    ("pickles.py", "pickle.Unpickler"): "as above: `find_class` and `persistent_load` are replaced",
    (
        "scorers/harness.py",
        "exec",
    ): "the model's code, in the process that is there for it, after --allow_code_execution",
    ("scorers/harness.py", "compile"): "as above",
}
_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "commands.getoutput", "subprocess.getoutput",
    "subprocess.getstatusoutput", "tempfile.mktemp", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "pandas.read_pickle",
    "ssl._create_unverified_context", "urllib.request.urlopen", "shutil.unpack_archive", "os.spawnl", "os.execv",
}  # fmt: skip
_METHODS = {"extractall", "extract", "read_pickle"}
_KEYWORDS = {
    "shell": {True}, "trust_remote_code": {True}, "weights_only": {False}, "use_safetensors": {False},
    "allow_pickle": {True}, "verify": {False}, "allow_code_execution": {True}, "allow_all_kernels": {True},
    "safe_serialization": {False}, "Loader": None,
}  # fmt: skip
_MODES = {0o666, 0o777, 0o722, 0o702, 0o776}


def found_in(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of all in a module that lets data become code, or others change what is written."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, f"import {each.name}") for each in node.names if each.name.split(".")[0] in _MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _MODULES:
            yield node.lineno, f"import {node.module}"
        elif isinstance(node, ast.ClassDef):
            yield from (
                (base.lineno, ast.unparse(base)) for base in node.bases if ast.unparse(base).endswith("Unpickler")
            )
        elif isinstance(node, ast.Constant) and type(node.value) is int and node.value in _MODES:
            yield node.lineno, oct(node.value)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {each.arg: each.value for each in node.keywords}
            reads = name.split(".")[0] in _MODULES and name.rpartition(".")[2] not in ("dump", "dumps")
            if name in _CALLS or reads or name.rpartition(".")[2] in _METHODS:
                yield node.lineno, name
            if name == "torch.load" and ast.unparse(given.get("weights_only", ast.Constant(None))) != "True":
                yield node.lineno, "torch.load"
            for key, refused in _KEYWORDS.items():
                value = given.get(key)
                if value is not None and (
                    refused is None or (isinstance(value, ast.Constant) and value.value in refused)
                ):
                    yield node.lineno, f"{key}={ast.unparse(value)}"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                refused = (
                    _KEYWORDS.get(key.value) if isinstance(key, ast.Constant) and isinstance(key.value, str) else None
                )
                if refused and isinstance(value, ast.Constant) and value.value in refused:
                    yield node.lineno, f"{key.value}={value.value}"


def test_nothing_dangerous_is_called_without_a_reason():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        found |= {(place, name): line for line, name in found_in(path.read_text("utf-8"))}
    unreasoned = [f"{place}:{line}: {name}" for (place, name), line in found.items() if (place, name) not in ALLOWED]
    assert not unreasoned, "\n".join(unreasoned)
    assert not ALLOWED.keys() - found.keys(), "a reason is given for what is not there any more"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import pickle", "import pickle"),
        ("from pickle import loads", "import pickle"),
        ("import pickle\npickle.loads(b'')", "pickle.loads"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "weights_only=False"),
        ("yaml.load(text)", "yaml.load"),
        ("yaml.safe_load(text, Loader=yaml.Loader)", "Loader=yaml.Loader"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("subprocess.run('ls', shell=True)", "shell=True"),
        ("tempfile.mktemp()", "tempfile.mktemp"),
        ("archive.extractall(folder)", "extractall"),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", "trust_remote_code=True"),
        ("load(**{'use_safetensors': False})", "use_safetensors=False"),
        ("path.chmod(0o777)", "0o777"),
        ("class Reader(pickle.Unpickler): ...", "pickle.Unpickler"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle=True"),
    ],
)
def test_what_is_dangerous_is_found(text, name):
    assert name in [each.rpartition(".")[2] if name == "extractall" else each for _, each in found_in(text)]


def test_what_is_not_is_left_alone():
    assert not list(
        found_in(
            "model.eval()\ntorch.load(path, weights_only=True)\nre.compile('x')\nyaml.safe_load(text)\nrun(['ls'])"
        )
    )
