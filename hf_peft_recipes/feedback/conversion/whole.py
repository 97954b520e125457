"""Records as they are: files of feedback put together, or kept in another type of file."""

from collections.abc import Mapping
from typing import Any

from hf_peft_recipes.errors import UserError
from hf_peft_recipes.feedback.conversion.logs import Imported, ImportRequest, imported, read_placed
from hf_peft_recipes.feedback.record import BadRecordError, FeedbackRecord, read_record


def read_whole(dataset: Any, request: ImportRequest) -> Imported:
    """Return the records of a data set whose rows are records.

    Raises:
        UserError: nothing there, rows that are no records, something said of them that they say themselves.
    """
    said = {"columns": request.columns, "source": request.source, "scale": request.scale}
    for name, value in said.items():
        if value:
            raise UserError(f"--{name}: records say it themselves")
    placed, _, label = read_placed(dataset)
    made, bad = list[FeedbackRecord](), list[tuple[str, str]]()
    for record in placed:
        try:
            if record.row is None:
                raise BadRecordError(record.problem)
            made.append(read_record(_without_nulls(record.row)))
        except BadRecordError as error:
            bad.append((record.place, str(error)))
    return imported(made, bad, {}, len(placed), label, request.drops, {}, [])


def _without_nulls(value: Any) -> Any:
    """Return the value without the keys that are null: Arrow gives each mapping of a column the keys of all of them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
