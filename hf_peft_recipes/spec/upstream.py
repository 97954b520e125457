"""The names that the installed upstream classes accept, read from their sources so that nothing heavy is imported.

An upstream option is never declared again here: a key of a recipe is right when the class that receives it has it.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hf_peft_recipes.errors import UserError, did_you_mean
from hf_peft_recipes.spec.objectives import objective_facts

QUANTIZATION_CLASSES = {
    "bitsandbytes": "transformers.utils.quantization_config.BitsAndBytesConfig",
    "torchao": "transformers.utils.quantization_config.TorchAoConfig",
}
"""By `quant_method`, as a config.json names who quantises."""

RENAMES = {
    # transformers 5.23 renamed it and warns about the old name; 5.17 knows the old one only.
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Old to new names of `training` keys between the supported versions: either is accepted, the installed one is used."""


@dataclass(frozen=True)
class Field:
    """One keyword argument of an upstream class."""

    annotation: str = ""
    default: str = ""
    """As source text; empty when there is none."""


def training_fields(objective: str) -> dict[str, Field]:
    """Return the keyword arguments of the objective's config class, by name.

    Raises:
        UserError: there is no such objective.
    """
    return class_fields(objective_facts(objective).config_class)


def adapter_fields(peft_type: str) -> dict[str, Field]:
    """Return the keyword arguments of the config class that PEFT registers for `peft_type`, by name.

    Raises:
        UserError: PEFT has no such type.
    """
    return class_fields(adapter_class(peft_type))


def adapter_class(peft_type: str) -> str:
    """Return the dotted path of the config class that PEFT registers for `peft_type` (`LORA`, `IA3` …).

    Raises:
        UserError: PEFT has no such type.
    """
    wanted, found = str(peft_type).lower(), set()
    tuners = _package_folder("peft") / "tuners"
    for folder in [tuners / wanted, *sorted(tuners.iterdir())]:
        init = folder / "__init__.py"
        for call in re.findall(r"register_peft_method\(([^)]*)\)", init.read_text("utf-8") if init.is_file() else ""):
            name = re.search(r'name="(\w+)"', call)
            config = re.search(r"config_cls=(\w+)", call)
            if name and config:
                found.add(name.group(1))
                if name.group(1) == wanted:
                    return f"peft.tuners.{folder.name}.config.{config.group(1)}"
    near = did_you_mean(wanted, found).upper().replace("DID YOU MEAN", "did you mean").replace(" OR ", " or ")
    raise UserError(f"PEFT has no peft_type {peft_type!r}{near}")


@cache
def quantization_fields(method: str) -> dict[str, Field]:
    """Return the keyword arguments of the configuration of who quantises, by name, and who that is.

    Args:
        method: a key of `QUANTIZATION_CLASSES`.

    Raises:
        UserError: nobody of that name quantises here.
    """
    if method not in QUANTIZATION_CLASSES:
        known = ", ".join(QUANTIZATION_CLASSES)
        hint = did_you_mean(method, QUANTIZATION_CLASSES)
        raise UserError(f"quantization.quant_method {method!r} is not known here{hint} (known: {known})")
    return {"quant_method": Field("str"), **_parameters(_find_class(QUANTIZATION_CLASSES[method])[0], "__init__")}


@cache
def model_fields() -> dict[str, Field]:
    """Return the keyword arguments of `from_pretrained`, those that it takes out of `**kwargs` included, by name."""
    text = (_package_folder("transformers") / "modeling_utils.py").read_text("utf-8")
    start = text.index("    def from_pretrained(")
    # Up to the next method: parsing the whole file would cost more than everything else together.
    body = text[start : re.compile(r"^    (?:@|def )", re.M).search(text, start + 10).start()]  # type: ignore[union-attr]
    taken = re.findall(r'kwargs\.pop\(\s*"([a-z]\w*)"', body)
    signature = _parameters(ast.parse(f"class _:\n{body}").body[0], "from_pretrained")
    return {"attn_implementation": Field("str"), **{name: Field() for name in taken}, **signature}


@cache
def class_fields(dotted: str) -> dict[str, Field]:
    """Return the dataclass fields of the class at `dotted`, inherited ones included, by name."""
    node, module = _find_class(dotted)
    fields: dict[str, Field] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and (origin := _origin_of(base.id, module)):
            fields |= class_fields(origin)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name, annotation = statement.target.id, ast.unparse(statement.annotation)
            if not name.startswith("_") and not annotation.startswith("ClassVar"):
                fields[name] = Field(annotation, _default(statement.value))
    return fields


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
        return given.get("default") or f"{given.get('default_factory', '')}()"
    return ast.unparse(value) if value is not None else ""


def _find_class(dotted: str) -> tuple[ast.ClassDef, str]:
    module, _, name = dotted.rpartition(".")
    source = _module_file(module).read_text("utf-8")
    # One class is parsed, not its module: upstream's files are long and `show` is to be instant.
    match = re.search(rf"^class {name}\b[^\n]*:\n(?:[ \t]+\S.*\n|[ \t]*\n|[)#].*\n)*", source, re.M)
    if match is None:
        raise LookupError(f"{dotted} is not in the installed version")
    node = ast.parse(match.group(0)).body[0]
    assert isinstance(node, ast.ClassDef)
    return node, module


@cache
def _parsed_imports(module: str) -> dict[str, str]:
    """Return the names that a module imports from elsewhere, each with the dotted path that it names."""
    path = _module_file(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports: dict[str, str] = {}
    pattern = r"^[ \t]*from (\.*)([\w.]*) import (\([^)]*\)|[^\n(]*)"
    for dots, target, names in re.findall(pattern, path.read_text("utf-8"), re.M):
        parts = package.split(".")
        prefix = ".".join(parts[: len(parts) - len(dots) + 1]) if dots else ""
        origin = ".".join(part for part in (prefix, target) if part)
        for name in re.findall(r"(\w+)(?: as \w+)?", names):
            imports.setdefault(name, f"{origin}.{name}")
    return imports


def _origin_of(name: str, module: str) -> str | None:
    """Return where the class `name`, as seen from `module`, is defined; None outside the packages of interest."""
    dotted = f"{module}.{name}"
    while not re.search(rf"^class {name}\b", _module_file(module).read_text("utf-8"), re.M):
        origin = _parsed_imports(module).get(name)
        if origin is None or origin.split(".")[0] not in ("trl", "transformers", "peft"):
            return None
        dotted, module = origin, origin.rpartition(".")[0]
    return dotted


def _parameters(node: ast.stmt, function: str) -> dict[str, Field]:
    assert isinstance(node, ast.ClassDef)
    method = next(part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == function)
    names = [*method.args.args, *method.args.kwonlyargs]
    return {
        argument.arg: Field(ast.unparse(argument.annotation) if argument.annotation else "")
        for argument in names
        if argument.arg not in ("self", "cls")
    }


@cache
def _module_file(module: str) -> Path:
    top, *rest = module.split(".")
    path = _package_folder(top).joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package!r} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))
