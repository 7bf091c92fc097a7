"""What a listing should be, worked out the slow way: Python's sort over everything."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping


def compare(left, right, sort, key):
    """-1, 0 or 1 by the rules of `Sort`, one key after the other."""
    for item in sort:
        a, b = left[item.column], right[item.column]
        if a is None or b is None:
            if (a is None) == (b is None):
                continue
            return -1 if (a is None) == item.puts_nulls_first else 1
        if a != b:
            return (-1 if a < b else 1) * (-1 if item.descending else 1)
    return (left[key] > right[key]) - (left[key] < right[key])


def ordered(rows, sort, key="uuid"):
    return sorted(rows, key=functools.cmp_to_key(lambda a, b: compare(a, b, sort, key)))


def matches(row, where):
    return all(_holds(row[name], condition) for name, condition in where.items())


def _holds(value, condition):
    if isinstance(condition, Mapping):
        return all(_test(value, operator, operand) for operator, operand in condition.items())
    if isinstance(condition, list | tuple | set):
        return value in condition and value is not None
    return value == condition if condition is not None else value is None


def _test(value, operator, operand):
    if operator == "null":
        return (value is None) == operand
    if operator in {"ne", "not_in"}:
        return value is None or (value != operand if operator == "ne" else value not in operand)
    if value is None:
        return False
    return {
        "eq": lambda: value == operand,
        "in": lambda: value in operand,
        "lt": lambda: value < operand,
        "le": lambda: value <= operand,
        "gt": lambda: value > operand,
        "ge": lambda: value >= operand,
        "prefix": lambda: value.startswith(operand),
        "contains": lambda: operand in value,
        "regex": lambda: re.search(operand, value) is not None,
    }[operator]()
