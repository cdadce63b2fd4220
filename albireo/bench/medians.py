"""The median of several records of one type, field by field."""

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
from msgspec import Struct

S = TypeVar("S", bound=Struct)


def median_of(values: Sequence[S]) -> S:
    """A record whose every number is the median of the given records' numbers; texts are the first one's. A number that
    any of them lacks (None) has no median.

    Of dictionaries the keys that all have are there. In lists of records those of the same texts belong together; one
    that is in some lists only has the median of these.
    """
    return cast(S, _median(values))


def _median(values: Sequence[object]) -> object:
    first = values[0]
    if any(value is None for value in values):
        return None
    if isinstance(first, Struct):
        return type(first)(*(_median([getattr(value, name) for value in values]) for name in first.__struct_fields__))
    if isinstance(first, dict):
        found = [value for value in values if isinstance(value, dict)]
        return {key: _median([each[key] for each in found]) for key in first if all(key in each for each in found)}
    if isinstance(first, list):
        together: dict[tuple[str, ...], list[object]] = {}
        for value in values:
            for record in cast(list[Struct], value):
                together.setdefault(_texts(record), []).append(record)
        return [_median(records) for records in together.values()]
    if isinstance(first, str):
        return first
    median = float(np.median(np.array(values, np.float64)))
    return round(median) if isinstance(first, int) else median


def _texts(record: Struct) -> tuple[str, ...]:
    fields = (getattr(record, name) for name in record.__struct_fields__)
    return tuple(field for field in fields if isinstance(field, str))
