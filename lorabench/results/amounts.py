"""Seconds, bytes, shares and scores as people read them; what is not known is "n/a"."""

from decimal import Decimal
from typing import Any

from lorabench.results.run_folder import number_at
from lorabench.results.table import UNKNOWN


def format_seconds(seconds: float | None) -> str:
    """`538 s`, from an hour on `7384 s (2:03 h)`, below ten seconds `3.4 s`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s ({hours}:{minutes:02d} h)"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: `0.351`, `0.0121`, `12.3`."""
    return f"{Decimal(f'{value:.2e}'):f}"


def format_gb(gigabytes: float | None) -> str:
    """`29.6 GB`, below one `0.45 GB` (10^9 bytes)."""
    if gigabytes is None:
        return UNKNOWN
    return f"{gigabytes:.1f} GB" if gigabytes >= 0.995 else f"{gigabytes:.2f} GB"


def format_score(scores: Any, name: str) -> str:
    """Four digits after the point, of one of an evaluation's scores."""
    value = number_at(scores, name)
    return UNKNOWN if value is None else f"{value:.4f}"


def format_count(value: float | None) -> str:
    """`4,096`; what is not whole as it is."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def format_rate(value: float | None) -> str:
    """`1,234`, below a hundred `98.7`: per second."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}"
