"""How figures are written for people: one way, on the page and in the terminal.

Three significant digits, since no figure of a run is known better; an interval decides the digits of its value.
What is undefined is called so.
"""

from __future__ import annotations

import math

UNDEFINED = "undefined"
SIGNIFICANT_DIGITS = 3


def number_text(value: float | None) -> str:
    """0.831, 12.5, 1,234: three significant digits, or all digits of a whole number."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 9:
        return f"{value:,.{max(0, SIGNIFICANT_DIGITS - 1 - exponent)}f}"
    return f"{value:.{SIGNIFICANT_DIGITS - 1}e}"


def signed_text(value: float) -> str:
    """+0.021, -1.3, +1,234: two significant digits, or all digits of a whole number: a part of a sum."""
    return f"{value:+.2g}" if 0.0001 <= abs(value) < 99.5 else f"{value:+,.0f}"


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """0.83 [0.76, 0.90]: as many decimals as the interval's width gives a meaning to.

    That is two digits of a width that begins with 1 or 2, and else one; below a width of 1 at least two decimals. One
    decimal more where an end would be rounded to 0: on which side of it the end lies is what an interval is read for.
    """
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if low is None or high is None or not math.isfinite(high - low):
        return f"{number_text(value)}, interval {UNDEFINED}"
    if high <= low:
        return f"{number_text(value)} [{number_text(low)}, {number_text(high)}]"
    exponent = math.floor(math.log10(high - low))
    digits = 2 if (high - low) / 10**exponent < 3 else 1
    decimals = max(2 if exponent < 0 else 0, digits - 1 - exponent)
    if any(end != 0 and round(end, decimals) == 0 for end in (low, high)):
        decimals += 1
    return f"{value:z,.{decimals}f} [{low:z,.{decimals}f}, {high:z,.{decimals}f}]"


def cell_text(cell: str | float | None) -> str:
    """A cell of a table: words as they are, figures by `number_text`."""
    return cell if isinstance(cell, str) else number_text(cell)


def duration_text(seconds: float) -> str:
    """0.4 s, 12 s, 4 min 12 s, 2 h 5 min, 3 d 4 h: the two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit_s, unit, part_s, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            rest = whole % unit_s // part_s
            return f"{whole // unit_s} {unit} {rest} {part}" if rest else f"{whole // unit_s} {unit}"
    return f"{whole} s"
