"""Numbers as people read them."""


def format_size(n_bytes: int) -> str:
    """A size in decimal units, with three digits.

    >>> format_size(950), format_size(273_400), format_size(1_093_456)
    ('950 B', '273 kB', '1.09 MB')
    """
    value, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def format_milliseconds(value: float) -> str:
    """A latency, without its unit: two decimals, and two digits below a tenth.

    >>> format_milliseconds(12.3456), format_milliseconds(0.04), format_milliseconds(0.0)
    ('12.35', '0.040', '0.00')
    """
    return f"{value:#.2g}" if 0 < value < 0.1 else f"{value:.2f}"


def format_count(number: int, noun: str) -> str:
    """A number of things.

    >>> format_count(1, "thread"), format_count(12_000, "step")
    ('1 thread', '12,000 steps')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
