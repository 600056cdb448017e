"""The conversion of all records to JSON and back.

Every record is a frozen dataclass, and its JSON form has the same names: tuples become lists, records become
dictionaries. ``records.summaries`` has the layouts of the files that are not simply one record.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shiftproof.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# Some files of the previous version lack the schema version; they are the same otherwise.
SCHEMA = 1
Record = TypeVar("Record")


def to_json(record: Any) -> Any:
    """Converts a record, or any nesting of records, tuples and mappings, to plain dictionaries and lists.

    >>> from shiftproof.records.comparisons import Measured
    >>> to_json((Measured(0.5, None),))
    [{'value': 0.5, 'interval': None}]
    """
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(record, fallback=_plain_mapping)


def document(record: Any) -> dict[str, Any]:
    """Returns the content of a file that holds one record: its JSON form, after the schema version."""
    return {"schema": SCHEMA, **to_json(record)}


def from_json(cls: type[Record], value: Any, what: str = "the record") -> Record:
    """Builds a record of type ``cls`` from its JSON form; unknown entries are ignored.

    Raises an InputError, which refers to the value as ``what``, if its schema version is another one, or if an entry is
    missing or of the wrong type; the message then gives the entry's dotted location.
    """
    from pydantic import ValidationError

    require_schema(value, what)
    adapter = _adapter(cast("Hashable", cls))
    try:
        # The value is validated as text, because only then does strict validation accept a list for a tuple.
        record: Record = adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        place = f" at {'.'.join(map(str, first['loc']))}" if first["loc"] else ""
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(f"{what} is damaged{place}: {first['msg']}{more}.") from error
    return record


def require_schema(value: Any, what: str) -> None:
    """Raises an InputError if a value has another schema version; one without a version counts as the first."""
    if isinstance(value, Mapping) and value.get("schema", SCHEMA) != SCHEMA:
        raise InputError(f"{what} has schema {value['schema']!r}; this version reads schema {SCHEMA}.")


@functools.cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cast("type[Any]", cls))


def _plain_mapping(value: Any) -> dict[str, Any]:
    """Converts a mapping that is not a dictionary, which pydantic does not convert."""
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    raise TypeError(f"a {type(value).__name__} has no JSON form.")
