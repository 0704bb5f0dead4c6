"""Quantities as people write them in configuration: sizes, durations, shares, modes."""

import math
import re

_UNITS = {
    "": 1,
    "b": 1,
    **{
        f"{letter}{suffix}": base**power
        for power, letter in enumerate("kmgtp", start=1)
        for suffix, base in (("ib", 1024), ("i", 1024), ("b", 1000))
    },
}
_DURATIONS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", re.ASCII)


def parse_bytes(value: object) -> int:
    """Read a size: a whole number of bytes, or text such as `500GiB` or `1.5 TB`.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        number, unit = match.groups()
        # A bare letter (`500G`) means 2^30 to some and 10^9 to others: not guessed.
        if (factor := _UNITS.get(unit.lower())) is not None:
            exact = float(number) * factor if "." in number else int(number) * factor
            return int(exact)
    raise ValueError("not a size: write bytes, or a number and a unit, as in 500GiB or 2TB")


def show_bytes(count: int) -> str:
    """Write a size so that `parse_bytes` reads it back exactly."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count and count % 1024**power == 0:
            return f"{count // 1024**power}{unit}"
    return str(count)


def parse_seconds(value: object) -> float:
    """Read a duration: seconds, or text such as `20s`, `500ms` or `1.5h`.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value >= 0 and math.isfinite(value):
            return float(value)
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        number, unit = match.groups()
        if (factor := _DURATIONS_S.get(unit.lower())) is not None:
            return float(number) * factor
    raise ValueError("not a duration: write seconds, or a number and a unit, as in 20s or 5min")


def parse_share(value: object) -> float:
    """Read a share of something: 0.95, or text such as `95%`.

    Raises:
        ValueError: It is something else, or not above 0 and at most 1.
    """
    share = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    elif isinstance(value, str):
        text = value.strip()
        number = text.removesuffix("%")
        if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", number, re.ASCII):
            share = float(number) / (100 if text.endswith("%") else 1)
    if not 0 < share <= 1:
        raise ValueError("not a share: write 0.95 or 95%")
    return share


def parse_count(value: object) -> int:
    """Read a whole number of at least 1.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", value, re.ASCII):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 10**9:
        return value
    raise ValueError("not a whole number of at least 1")


def parse_number(value: object) -> int:
    """Read a whole number, 0 included.

    Raises:
        ValueError: It is something else.
    """
    if value in {0, "0"} and not isinstance(value, bool):
        return 0
    return parse_count(value)


def parse_mode(value: object) -> int:
    """Read permission bits in octal text: `0660`.

    Raises:
        ValueError: It is something else. (A TOML number would be taken as decimal by mistake.)
    """
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value, re.ASCII):
        return int(value, 8)
    raise ValueError('not a mode: write it in quotes and octal, as in "0660"')
