"""Ways to break a file, whatever it holds."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .attack import replace_bytes

Damage = Callable[[Path, np.random.Generator], None]


def _of_bytes(change: Callable[[bytes, np.random.Generator], bytes]) -> Damage:
    return lambda path, rng: replace_bytes(path, change(path.read_bytes(), rng))


def _flip(content: bytes, rng: np.random.Generator, where: slice = slice(None)) -> bytes:
    values = np.frombuffer(content, np.uint8).copy()
    part = values[where]
    part[rng.integers(0, len(part), rng.integers(1, 9))] ^= rng.integers(1, 256, dtype=np.uint8)
    return values.tobytes()


def _overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    """A field of the header holds an extreme number."""
    start = int(rng.integers(0, max(1, min(len(content), 400) - 4)))
    extreme = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x80\0\0\0")
    return content[:start] + extreme[rng.integers(len(extreme))] + content[start + 4 :]


def _into_folder(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


def _into_link(target: str) -> Damage:
    def damage(path: Path, rng: np.random.Generator) -> None:
        path.unlink()
        path.symlink_to(target if target != "itself" else path.name)

    return damage


def _into_pipe(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    os.mkfifo(path)


def _missing(path: Path, rng: np.random.Generator) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


CUTS: dict[str, Damage] = {
    "empty": _of_bytes(lambda content, rng: b""),
    "one byte long": _of_bytes(lambda content, rng: content[:1]),
    "cut in half": _of_bytes(lambda content, rng: content[: len(content) // 2]),
    "cut somewhere": _of_bytes(lambda content, rng: content[: rng.integers(2, max(3, len(content)))]),
    "cut by the last byte": _of_bytes(lambda content, rng: content[:-1]),
    "without its first byte": _of_bytes(lambda content, rng: content[1:]),
}
MORE: dict[str, Damage] = {
    "twice": _of_bytes(lambda content, rng: content * 2),
    "with rubbish behind": _of_bytes(lambda content, rng: content + rng.bytes(64)),
}
FLIPS: dict[str, Damage] = {
    "with flipped bytes": _of_bytes(_flip),
    "with flipped bytes in its header": _of_bytes(lambda content, rng: _flip(content, rng, slice(0, 200))),
    "with flipped bytes at its end": _of_bytes(lambda content, rng: _flip(content, rng, slice(-100, None))),
    "with an extreme number in its header": _of_bytes(_overwrite),
}
OTHERS: dict[str, Damage] = {
    "of rubbish": _of_bytes(lambda content, rng: rng.bytes(max(64, min(len(content), 4096)))),
    "of zeros": _of_bytes(lambda content, rng: bytes(max(64, min(len(content), 4096)))),
    "that begins right and is rubbish": _of_bytes(lambda content, rng: content[:32] + rng.bytes(500)),
    "that is a text": _of_bytes(lambda content, rng: b"<!DOCTYPE html><html>404 Not Found</html>\n"),
    "that is a Git LFS pointer": _of_bytes(
        lambda content, rng: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    "that is a folder": _into_folder,
    "that is a dangling link": _into_link("nowhere"),
    "that is a link to itself": _into_link("itself"),
    "that is an endless device": _into_link("/dev/zero"),
    "that is a pipe": _into_pipe,
    "missing": _missing,
}
BYTES = {**CUTS, **MORE, **FLIPS, **OTHERS}
TEXTS: dict[str, Damage] = {
    "with a byte order mark": _of_bytes(lambda content, rng: b"\xef\xbb\xbf" + content),
    "in UTF-16": _of_bytes(lambda content, rng: content.decode().encode("utf-16")),
    "in UTF-32": _of_bytes(lambda content, rng: content.decode().encode("utf-32")),
    "that is not UTF-8": _of_bytes(lambda content, rng: _put(content, rng, b"\xff\xe9\xc3")),
    "with NUL bytes": _of_bytes(lambda content, rng: _put(content, rng, b"\0\0")),
    "with line ends of DOS": _of_bytes(lambda content, rng: content.replace(b"\n", b"\r\n")),
    "with line ends of old Macs": _of_bytes(lambda content, rng: content.replace(b"\n", b"\r")),
    "with an escape sequence": _of_bytes(lambda content, rng: _put(content, rng, b"\x1b[31m")),
    "of blanks": _of_bytes(lambda content, rng: b" \n" * 50),
}


def _put(content: bytes, rng: np.random.Generator, what: bytes) -> bytes:
    at = int(rng.integers(1, max(2, len(content))))
    return content[:at] + what + content[at:]
