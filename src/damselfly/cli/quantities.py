"""Quantities as people read them: sizes in binary units, durations, ages, shares."""

UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """A size: `0 B`, `1.5 KiB`, `412 MiB`."""
    if count < 1023.5:
        return f"{count:.0f} B"
    for unit in UNITS:
        count /= 1024
        if count < 9.95:
            return f"{count:.1f} {unit}"
        if count < 1023.5:
            return f"{count:.0f} {unit}"
    return f"{count:.0f} {UNITS[-1]}"


def rate_text(bytes_per_s: float) -> str:
    """A rate: `118 MiB/s`."""
    return f"{bytes_text(bytes_per_s)}/s"


def share_text(part: int, whole: int) -> str:
    """A share in percent. Only the whole is 100 %, and only nothing is 0 %."""
    if whole <= 0 or part >= whole:
        return "100%"
    percent = 100 * part // whole
    return "<1%" if percent == 0 and part else f"{percent}%"


def seconds_text(seconds: float) -> str:
    """A duration with its two largest units: `0.4 s`, `3 min 12 s`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    left = round(seconds)
    if left < 60:
        return f"{left} s"
    for small, large, small_s, large_s in (
        ("s", "min", 1, 60),
        ("min", "h", 60, 3600),
        ("h", "d", 3600, 86400),
    ):
        if left < large_s * (24 if large == "h" else 60) or large == "d":
            return f"{left // large_s} {large} {left % large_s // small_s} {small}"
    raise AssertionError("days have no end")


def countdown_text(seconds: float) -> str:
    """What is left, as a clock: `0:06`, `1:02:03`."""
    left = min(round(seconds), 99 * 3600 + 3599)
    hours, minutes = divmod(left // 60, 60)
    return f"{hours}:{minutes:02}:{left % 60:02}" if hours else f"{minutes}:{left % 60:02}"


def age_text(then_ns: int | None, now_ns: int) -> str:
    """How long ago something was: `just now`, `3 min ago`, `2 d ago`."""
    if then_ns is None:
        return "never"
    seconds = max(0, now_ns - then_ns) // 10**9
    if seconds < 10:
        return "just now"
    for limit, unit_s, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit_s} {unit} ago"
    return f"{seconds // 86400} d ago"
