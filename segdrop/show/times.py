"""Times as people read them."""


def in_words(seconds: float) -> str:
    """A time to read: "40 s", "12 min", "5.2 h".

    Example:
        >>> in_words(40), in_words(720), in_words(18720)
        ('40 s', '12 min', '5.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
