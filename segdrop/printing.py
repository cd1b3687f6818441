"""What is printed: as lines that a terminal shows and does not obey."""

import re
import sys
import unicodedata

# Letters are joined by the first two, in emoji and in Persian, and by nothing else.
_KEPT = "\u200d\u200c"
_TOLD = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidirectional overrides), surrogates, separators of lines


def printable(text: str, keep: str = "") -> str:
    """A text with each character that a terminal would obey, or that turns lines round, as an escape of JSON's.

    Bytes of file names that are not UTF-8, which Python takes for surrogates, are among them.

    Args:
        keep: what stays as it is all the same, such as a line's end.

    Example:
        >>> print(printable("a\\x1b[31m\\nb"))
        a\\u001b[31m\\u000ab
    """
    if text.isprintable():
        return text
    return re.sub(r"[^ -~]", lambda found: _told(found[0]) if found[0] not in keep else found[0], text)


def _told(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _TOLD:
        return character
    pair = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{pair[i] << 8 | pair[i + 1]:04x}" for i in range(0, len(pair), 2))


def without_passwords(text: str) -> str:
    """A text with stars for the passwords in addresses of databases, well-formed or not.

    Example:
        >>> without_passwords("no server at postgresql://me:secret@host/sweeps?sslpassword=secret")
        'no server at postgresql://me:***@host/sweeps?sslpassword=***'
    """
    text = re.sub(r"(://[^\s:/@]*:)\S*@", r"\1***@", text)
    return re.sub(r"(password=)[^&\s'\"]*", r"\1***", text)


def say(*lines: str, to_stderr: bool = False) -> None:
    """Print lines, each as one whatever is in it."""
    stream = sys.stderr if to_stderr else sys.stdout
    text = "".join(f"{printable(line)}\n" for line in lines)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
