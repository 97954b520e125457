"""The certificate: a fresh process loads what was written, with plain `peft` or `transformers`, and says what it found.

The live model leaves a statement, `certificate.json`: the digests of all that was trained, and on fixed prompts its
token ids, its log-probabilities and its greedy answer. Whoever loads the folder, here or from the Hub, can be held to
it. The prompts are the same for every run, so that no row of anybody's data is published with them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_peft_recipes import quantizers
from hf_peft_recipes.adapters import adapter_file, let_disable
from hf_peft_recipes.errors import CertificateError, UserError
from hf_peft_recipes.fresh_process import last_words, run_verb
from hf_peft_recipes.heads import Head, head_of_class
from hf_peft_recipes.lineage import base_differences, read_config, read_fingerprint
from hf_peft_recipes.pickles import adapter_advice
from hf_peft_recipes.results import write_text

STATEMENT_FILE = "certificate.json"
PROMPTS = (
    "Review: The rooms were quiet and the breakfast was late.\nIs this review positive or negative?",
    "What is seventeen plus twenty-five?",
    "Übersetze: le café ouvre à huit heures. 你好!",
    "def mean(values):",
)
ANSWER_TOKENS = 16
TOP = 32
"""So many log-probabilities are kept at every position, the largest ones."""
TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""How far a log-probability may be off, in nats, by the base's dtype: other kernels round differently. On one machine
the differences seen are those of printing six digits."""

_OF_LOADING = ("dtype", "attn_implementation", "quantization", "num_labels", "id2label", "label2id", "pad_token_id")
"""What a statement may say of how its model is loaded: what `saving` and the heads write."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    name: str
    ok: bool
    detail: str


def state(
    model: Any,
    tokenizer: Any,
    stop_ids: Sequence[int],
    model_class: str,
    load: Mapping[str, Any],
    whole: bool = False,
    trained: Mapping[str, Any] | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Return what the live model says of itself, to be written beside its weights.

    Args:
        model: with its adapter, or trained whole.
        tokenizer: of the model.
        stop_ids: ids that end an answer.
        model_class: name of the transformers class that loads the base.
        load: keyword arguments with which a plain client loads it: `dtype`, `quantization` …
        whole: whether every tensor counts as trained, and not those alone that had gradients.
        trained: what counts as trained, by name; None for what the model itself holds.
        precision: the dtype that an engine rounds weights to in every pass, whatever they are kept in; None where none
            does.
    """
    head = head_of_class(model_class)
    try:
        said, autocast = _say(head, model, tokenizer, stop_ids), False
    except RuntimeError:
        # Some methods (IA3 on a 4-bit base) multiply float32 with bfloat16, which works nowhere but under autocast.
        with _autocast(model, True):
            said, autocast = _say(head, model, tokenizer, stop_ids), True
    with _autocast(model, autocast):
        effect = _without_adapter(head, model, said)
    counted = trained or {name: one for name, one in model.named_parameters() if whole or one.requires_grad}
    return {
        "schema_version": 1,
        "adapter_effect": effect,
        "autocast": autocast,
        **({"precision": precision} if precision else {}),
        "model_class": model_class,
        "load": dict(load),
        "stop_ids": list(stop_ids),
        "trained": {name: digest(one) for name, one in counted.items()},
        "prompts": said,
    }


def _say(head: Head, model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return what the model makes of the fixed prompts."""
    prompts = []
    for text in PROMPTS:
        ids = prompt_ids(tokenizer, text)
        answer = head.answer(model, ids, stop_ids, tokenizer.pad_token_id, ANSWER_TOKENS)
        said = head.values(model, ids, answer)
        values, tokens = said.topk(min(TOP, said.shape[1]))
        prompts.append(
            {
                "text": text,
                "ids": ids,
                "answer": answer,
                "tokens": tokens.tolist(),
                "log_probabilities": [[round(value, 6) for value in row] for row in values.tolist()],
            }
        )
    return prompts


def write_statement(folder: Path, statement: Mapping[str, Any]) -> None:
    """Write the statement into the folder that it is about."""
    write_text(folder / STATEMENT_FILE, json.dumps(statement, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_statement(folder: Path) -> dict[str, Any]:
    """Return the statement of the model in `folder`.

    Raises:
        UserError: it has none, or one that cannot be read.
    """
    path = folder / STATEMENT_FILE
    if not path.is_file():
        raise UserError(f"{str(folder)!r} has no {STATEMENT_FILE}: what it was when it was trained is not known")
    try:
        statement: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from None
    return statement


def certify(folder: Path) -> dict[str, Any]:
    """Return the verdict on the model in `folder`, loaded in this process: `{status, checks, figures}`.

    Args:
        folder: an adapter or a model, with its statement.

    Raises:
        UserError: there is no statement.
    """
    statement = read_statement(folder)
    checks: list[Check] = []
    figures: dict[str, float] = {}
    try:
        _check_all(folder, statement, checks, figures)
    except Exception as error:  # whatever a plain client may raise is the finding
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        checks.append(Check("loads", False, f"{type(error).__name__}: {lines[0] if lines else ''}"))
    status = "passed" if all(check.ok for check in checks) else "failed"
    return {"status": status, "checks": [asdict(check) for check in checks], "figures": figures}


def certify_in_fresh_process(folder: Path) -> dict[str, Any]:
    """Return the verdict on the model in `folder`, as `certify` gives it in a process of its own.

    Raises:
        CertificateError: the process ended without a verdict.
    """
    finished = run_verb("certify", str(folder), "--json")
    try:
        verdict: dict[str, Any] = json.loads(finished.stdout)
    except ValueError:
        raise CertificateError(f"the certificate's process ended without a verdict: {last_words(finished)}") from None
    return verdict


def require(verdict: Mapping[str, Any], what: str) -> None:
    """Raise a CertificateError that names every check that failed."""
    failed = [f"{check['name']}: {check['detail']}" for check in verdict["checks"] if not check["ok"]]
    if failed:
        raise CertificateError(f"{what} does not load as what was trained: {'; '.join(failed)}")


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a prompt as a plain client makes them."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": text}]
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])
    return list(tokenizer(text).input_ids)


def digest(tensor: Any) -> str:
    """Return the tensor's shape, dtype and the start of the SHA-256 of its bytes."""
    import torch

    from hf_peft_recipes.float8 import stored_parts

    content = hashlib.sha256()
    for part in stored_parts(tensor.detach()):
        content.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"{'x'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')} {content.hexdigest()[:32]}"


def _check_all(folder: Path, statement: Mapping[str, Any], checks: list[Check], figures: dict[str, float]) -> None:
    """Append one check after the other; what raises ends the list."""
    from transformers import AutoTokenizer

    adapter = adapter_file(folder)
    if adapter is None and not any(folder.glob("*.safetensors")):
        raise UserError(f"no safetensors{adapter_advice(folder)}")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    model = _load(folder, statement, adapter is not None)
    if adapter is not None:
        # Only now are the base's files sure to be here.
        checks += [_check_base(folder), _check_keys(model, adapter)]
    checks.append(_check_tensors(model, statement["trained"]))
    checks.append(_check_template(tokenizer, statement["prompts"]))
    with _autocast(model, statement["autocast"]):
        _check_behaviour(model, tokenizer, statement, checks, figures)


def _check_behaviour(
    model: Any, tokenizer: Any, statement: Mapping[str, Any], checks: list[Check], figures: dict[str, float]
) -> None:
    """Append what can be told of the model by what it says."""
    tolerance = TOLERANCE.get(str(statement["load"].get("dtype")), TOLERANCE["bfloat16"])
    # What was said by weights that an engine had rounded is told apart from what the weights say no better than that.
    tolerance = max(tolerance, TOLERANCE.get(str(statement.get("precision")), 0.0))
    head = head_of_class(statement["model_class"])
    off = figures["log_probability_difference"] = _difference(head, model, statement["prompts"])
    if hasattr(model, "disable_adapter"):
        effect = figures["adapter_effect"] = _without_adapter(head, model, statement["prompts"])
        acts = effect > off or statement["adapter_effect"] == 0
        checks.append(Check("the adapter acts", acts, f"log-probabilities are off by {effect:.4g} nats without it"))
    under = ", under torch.autocast alone" if statement["autocast"] else ""
    checks.append(Check("logits", off <= tolerance, f"largest difference {off:.3g} nats, {tolerance:g} allowed{under}"))
    checks.append(_check_answers(head, model, tokenizer, statement, tolerance))


def _autocast(model: Any, enabled: bool) -> Any:
    import torch

    return torch.autocast(model.device.type, torch.bfloat16, enabled=enabled)


def _load(folder: Path, statement: Mapping[str, Any], has_adapter: bool) -> Any:
    """Return the model as a plain client of `peft` or `transformers` loads it."""
    import peft
    import torch
    import transformers

    # The statement may be anybody's: what it says of loading is looked up by name, and never that code is to be run.
    keywords = {key: statement["load"][key] for key in _OF_LOADING if key in statement["load"]}
    keywords |= {"trust_remote_code": False, "use_safetensors": True}
    if quantization := keywords.pop("quantization", None):
        keywords["quantization_config"] = quantizers.make_config(quantization)
    if torch.cuda.is_available():
        keywords["device_map"] = {"": 0}
    name = statement["model_class"]
    head_of_class(name)
    loader = getattr(peft, name.replace("AutoModel", "AutoPeftModel")) if has_adapter else getattr(transformers, name)
    model = loader.from_pretrained(str(folder), **keywords)
    quantizers.mend(model)
    if has_adapter:
        let_disable(model)
    return model.eval()


def _check_base(folder: Path) -> Check:
    """Compare the base that the adapter's config names with the fingerprint that travels with the adapter."""
    expected, config = read_fingerprint(folder), read_config(folder)
    if expected is None:
        return Check("base", True, "not fingerprinted: it was an object of the caller's, without files")
    told = base_differences(
        folder, {"name_or_path": config["base_model_name_or_path"], "revision": config.get("revision")}
    )
    at = f"@{expected.revision[:12]}" if expected.revision else ""
    return Check("base", not told, "; ".join(told[:3]) or f"{expected.name}{at}, as trained on")


def _check_keys(model: Any, adapter: Path) -> Check:
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(adapter), "pt") as file:
        written = set(file.keys())
    loaded = set(get_peft_model_state_dict(model))
    missing, unknown = sorted(loaded - written), sorted(written - loaded)
    told = [
        f"{len(names)} {what} ({names[0]} …)" for what, names in (("missing", missing), ("unknown", unknown)) if names
    ]
    return Check("keys", not told, "; ".join(told) or f"{len(written)} tensors, none missing, none unknown")


def _check_tensors(model: Any, trained: Mapping[str, str]) -> Check:
    """Compare every tensor that was trained with what was loaded under its name."""
    loaded = dict(model.named_parameters())
    missing = [name for name in trained if name not in loaded]
    other = [name for name in trained if name in loaded and digest(loaded[name]) != trained[name]]
    told = [
        f"{len(names)} {what} ({names[0]} …)"
        for what, names in (("not loaded", missing), ("of other values", other))
        if names
    ]
    return Check("trained tensors", not told, "; ".join(told) or f"{len(trained)} tensors, equal bit for bit")


def _check_template(tokenizer: Any, prompts: Sequence[Mapping[str, Any]]) -> Check:
    differ = [prompt["text"] for prompt in prompts if prompt_ids(tokenizer, prompt["text"]) != prompt["ids"]]
    told = (
        f"{len(differ)} of {len(prompts)} prompts give other tokens"
        if differ
        else f"{len(prompts)} prompts, the same tokens"
    )
    return Check("tokenizer and template", not differ, told)


def _check_answers(head: Head, model: Any, tokenizer: Any, statement: Mapping[str, Any], tolerance: float) -> Check:
    """Compare greedy answers; where two tokens were as good as equal, either may come."""
    differ = []
    for prompt in statement["prompts"]:
        answer = head.answer(model, prompt["ids"], statement["stop_ids"], tokenizer.pad_token_id, ANSWER_TOKENS)
        if answer == prompt["answer"]:
            continue
        at = next(
            (at for at, pair in enumerate(zip(answer, prompt["answer"], strict=False)) if pair[0] != pair[1]),
            min(len(answer), len(prompt["answer"])),
        )
        first, second = prompt["log_probabilities"][at][:2]
        if first - second > 2 * tolerance:
            differ.append(prompt["text"])
    told = (
        f"{len(differ)} of {len(PROMPTS)} answers differ"
        if differ
        else f"{len(statement['prompts'])} answers, the same"
    )
    return Check("greedy text", not differ, told)


def _without_adapter(head: Head, model: Any, prompts: Sequence[Mapping[str, Any]]) -> float:
    """Return how far log-probabilities are off when the adapter is left out; 0 where there is none."""
    if not hasattr(model, "disable_adapter"):
        return 0.0
    with model.disable_adapter():
        return _difference(head, model, prompts)


def _difference(head: Head, model: Any, prompts: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest difference of a kept log-probability from what the model says now, in nats."""
    import torch

    largest = 0.0
    for prompt in prompts:
        now = head.values(model, prompt["ids"], prompt["answer"])
        kept = torch.tensor(prompt["log_probabilities"])
        found = now.gather(1, torch.tensor(prompt["tokens"]))
        largest = max(largest, float((found - kept).abs().max()))
    return largest
