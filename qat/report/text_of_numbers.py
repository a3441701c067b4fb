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
