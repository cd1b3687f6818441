#!/usr/bin/env python3
"""The tests on every Python that pyproject.toml names, on the oldest with the lowest versions of all requirements.

    python .ci/pythons.py                     # everything; hours
    python .ci/pythons.py 3.10 3.13 -- tests/test_unet.py -x

Needs `uv` (pip install uv), which finds the interpreters: of the system, of pyenv, or those that it can download. What
could not be had was not run, and is said so. Exits with 1 where tests failed, or nothing was run.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
LOWEST = "3.10"


def uv(*words: str) -> str:
    """What uv prints; raises RuntimeError with its last line where it fails."""
    done = subprocess.run(["uv", *words], capture_output=True, text=True, cwd=HOME)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it says nothing"])[-1].strip())
    return done.stdout.strip()


def interpreter(version: str) -> str:
    """An interpreter of that version, also pyenv's that are not on the path."""
    own = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(own[-1]) if own else uv("python", "find", version)


def environment(version: str, folder: Path) -> Path:
    """A new environment with the package's requirements; compiled, since warnings of old packages are errors later."""
    python = folder / "bin" / "python"
    uv("venv", "--python", interpreter(version), str(folder))
    wanted = ["--python", str(python), "--compile-bytecode"]
    if version == LOWEST:
        listed = folder / "lowest.txt"
        lowest = ["--resolution", "lowest-direct", "--python", str(python), "--output-file", str(listed)]
        uv("pip", "compile", "--extra", "test", "pyproject.toml", *lowest)
        uv("pip", "install", *wanted, "-r", str(listed))
        uv("pip", "install", *wanted, "--no-deps", ".")
    else:
        uv("pip", "install", *wanted, ".[test]")
    return python


def run(version: str, words: list[str]) -> str:
    """How the tests went, in a line."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            python = environment(version, Path(folder, "environment"))
        except (RuntimeError, FileNotFoundError) as error:
            return f"NOT RUN: {error}"
        done = subprocess.run([python, "-m", "pytest", *words], cwd=HOME, capture_output=True, text=True)
        failed = re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE)
        end = (done.stdout.strip().splitlines() or [""])[-1]
        return "\n  ".join([f"exit code {done.returncode}; {end}", *failed])


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    told = {}
    for version in words[:cut] or VERSIONS:
        told[version] = run(version, words[cut + 1 :] or ["-n", "2", "-p", "no:cacheprovider"])
        print(f"Python {version}{' (lowest versions)' * (version == LOWEST)}: {told[version]}", flush=True)
    ran = [line for line in told.values() if not line.startswith("NOT RUN")]
    return 0 if ran and all(line.startswith("exit code 0;") for line in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
