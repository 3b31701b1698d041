"""Depth windows that double: tokens 1-50, 51-150, 151-350, and so on (Unmasking 2.5)."""


def depth_windows(length: int, first: int) -> list[range]:
    """The 0-based depths of each window; the last one ends at `length`.

    `depth_windows(200, 50)` is `[range(0, 50), range(50, 150), range(150, 200)]`.
    """
    found, begin, width = list[range](), 0, first
    while begin < length:
        found.append(range(begin, min(begin + width, length)))
        begin, width = begin + width, 2 * width
    return found
