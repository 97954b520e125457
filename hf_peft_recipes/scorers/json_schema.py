"""JSON that has to be of a schema."""

import json
import re
from collections.abc import Mapping
from typing import Any

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


def json_schema(answer: str, reference: str | None, *, schema: Mapping[str, Any] | None = None) -> float:
    """Return 1.0 when the whole answer, but for a code fence around it, is JSON of the schema, else 0.0.

    Args:
        answer: of the model.
        reference: holds the schema, as JSON, where none is given.
        schema: a JSON schema, of the draft that its `$schema` names (2020-12 without one). References beyond it, to
            files or addresses, are not followed.

    Raises:
        ValueError: the schema is broken.
    """
    return float(mismatch(answer, reference, schema) is None)


def mismatch(answer: str, reference: str | None, schema: Mapping[str, Any] | None = None) -> tuple[str, str] | None:
    """Return where in the answer (`$.items[0].price`) and in which way it is not of the schema; None where it is.

    The place is empty where the answer is no JSON at all. Of several errors it is the one nearest to the top.

    Raises:
        ValueError: the schema is broken.
    """
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    wanted = _schema_of(reference) if schema is None else schema
    check_schema(wanted)
    text = answer.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return "", str(error)
    # The library's own registry would fetch what `$ref` names, from the network too.
    try:
        found = best_match(validator_for(wanted)(wanted, registry=REGISTRY).iter_errors(value))
    except Unresolvable as error:
        raise ValueError(f"the schema refers to {error.ref!r}, which is not in it") from None
    except RecursionError:
        return "$", "it is nested too deeply"
    return None if found is None else (found.json_path, found.message)


def check_schema(schema: Any) -> None:
    """Raise a ValueError where a schema is none."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, Mapping):
        raise ValueError("a schema is a mapping")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None


def _schema_of(reference: str | None) -> Any:
    try:
        return json.loads(str(reference))
    except ValueError as error:
        raise ValueError(f"the reference is no schema: {error}") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
