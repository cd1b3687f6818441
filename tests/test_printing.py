"""What is printed: names do not move a terminal, and passwords are not in it."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import brightness_model, randomise, read_csv, write_pairs, write_run
from standin import build_small_unet
from test_data_command import two_squares
from test_security import sources

from segdrop.cli.main import main
from segdrop.files import write_csv, write_json
from segdrop.printing import printable, say, without_passwords
from segdrop.show.console import Console
from segdrop.show.tables import Table

TERMINAL = "a\x1b[2J\x1b]0;title\x07\nsegdrop: b\u202egnp.\x9b31m"


def obeyed(text):
    """What a terminal would obey in a text, or Python could not write."""
    return re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\u001b[31m"),
        ("a\nb\tc\r", r"a\u000ab\u0009c\u000d"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m\x7f", r"\u009b31m\u007f"),
        ("caf\udce9", r"caf\udce9"),
        ("\U000e0041", r"\udb40\udc41"),
        ("café – 細胞 👩\u200d🔬 a\u00a0b", "café – 細胞 👩\u200d🔬 a\u00a0b"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text, shown):
    assert printable(text) == shown and not obeyed(shown)
    assert json.loads(f'"{shown}"') == text


def test_each_line_that_is_said_is_one_line(capsys):
    say("a\nsegdrop: b", "c")
    say(TERMINAL, to_stderr=True)
    out, err = capsys.readouterr()
    assert out == "a\\u000asegdrop: b\nc\n" and err.count("\n") == 1 and not obeyed(err.replace("\n", ""))


def test_a_terminal_of_few_letters_is_told_what_it_can_show(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("Dice – 細胞")
    assert stream.buffer.getvalue() == b"Dice \\u2013 \\u7d30\\u80de\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_and_lines_of_rich_obey_no_name(terminal):
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, width=200)
    console.print(Table([{"layer": TERMINAL, TERMINAL: 1.0}], TERMINAL).rich())
    console.print(TERMINAL, style="bold red")
    console.print("[bold]:bug:[/nothing]")
    styled = buffer.getvalue()
    assert ("\x1b[1;31m" in styled) is terminal
    assert not obeyed(re.sub("\x1b\\[[0-9;]*m", "", styled).replace("\n", "")) and "\x1b[2J" not in styled
    assert "[bold]:bug:[/nothing]" in styled


def test_nothing_is_printed_but_by_the_two_that_escape():
    """The others are in docstrings."""
    for path, tree in sources():
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "print"), path
            assert not (isinstance(node, ast.ImportFrom) and node.module == "rich.console"), path


@pytest.fixture
def odd(tmp_path):
    """A data set whose class and one of whose files are named to move a terminal."""
    data = write_pairs(tmp_path / "set", {"b": two_squares((10, 20)), TERMINAL: two_squares((12, 20))})
    write_json(data / "classes.json", {"0": "background", "1": TERMINAL})
    return data


@pytest.mark.parametrize(
    "command",
    [
        ["data", "SET"],
        ["data", "SET", "--json"],
        ["data", f"nowhere{TERMINAL}"],
        ["predict", "RUN", "SET/images", "--out", "OUT"],
        ["rank", "RUN", "SET/images", "--count", "1"],
        ["rank", "RUN", "SET/images", "--count", "1", "--json"],
        ["evaluate", "RUN", "--data", "SET", "--split", "all"],
        ["train", "--data", "SET", "--data-typo", TERMINAL],
        [TERMINAL],
    ],
)
def test_no_command_lets_a_name_move_the_terminal(odd, tmp_path, capfd, command):
    model = randomise(build_small_unet(encoder_dropout=0.3))
    run = write_run(tmp_path / "run", model, class_names=("background", TERMINAL), data=str(odd))
    (odd / "images" / f"broken{TERMINAL}.png").write_bytes(b"no image")
    (odd / "masks" / f"broken{TERMINAL}.png").write_bytes(b"no image")
    if command[0] != "predict":
        for part in ("images", "masks"):
            (odd / part / f"broken{TERMINAL}.png").unlink()
    places = {"SET": str(odd), "RUN": str(run), "OUT": str(tmp_path / "out")}
    main([re.sub("SET|RUN|OUT", lambda found: places[found[0]], word) for word in command])
    out, err = capfd.readouterr()
    assert out + err and not obeyed((out + err).replace("\n", ""))
    if "--json" in command:
        json.loads(out)


def test_warnings_and_tracebacks_obey_no_name():
    code = f"""import warnings, segdrop.cli.main as main
def run(options):
    warnings.warn({TERMINAL!r})
    raise RuntimeError({TERMINAL!r})
main.COMMANDS["report"] = (main.COMMANDS["report"][0], run)
main.main(["report", "x"])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert "segdrop: warning: a\\u001b[2J" in done.stderr and "RuntimeError: a\\u001b[2J" in done.stderr
    assert not obeyed(done.stderr.replace("\n", ""))


NOT_UTF_8 = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_file_of_a_data_set_whose_name_is_not_utf_8_is_one_line(tmp_path, capsys, part):
    data = write_pairs(tmp_path / "set", {"a": two_squares((10, 20))})
    shutil.copy(data / part / "a.png", data / part / f"{NOT_UTF_8}.png")
    assert main(["data", str(data)]) == 2
    assert capsys.readouterr().err == f"segdrop: the name of {data / part}/caf\\udce9.png is not UTF-8; rename it.\n"


def test_an_argument_that_is_not_utf_8_is_one_line(tmp_path, capsys):
    assert main(["train", "--data", str(tmp_path), "--run-dir", NOT_UTF_8]) == 2
    assert capsys.readouterr().err == "segdrop: the argument --run-dir caf\\udce9 is not UTF-8; rename what it names.\n"


def test_files_whose_names_are_not_utf_8_are_predicted_and_told_of(tmp_path, capsys):
    write_pairs(tmp_path / "set", {"a": two_squares((10, 20))})
    images = tmp_path / "set" / "images"
    (images / "a.png").rename(images / f"{NOT_UTF_8}.png")
    run = write_run(tmp_path / "run", brightness_model())
    assert main(["predict", str(run), str(images), "--out", str(tmp_path / "out")]) == 0
    assert [row["file"] for row in read_csv(tmp_path / "out" / "predictions.csv")] == ["caf\\udce9"]


def test_what_is_no_text_is_written_as_an_escape(tmp_path):
    write_json(tmp_path / "a.json", {"name": NOT_UTF_8})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": NOT_UTF_8}
    write_csv(tmp_path / "a.csv", [{"name": NOT_UTF_8}])
    assert read_csv(tmp_path / "a.csv") == [{"name": "caf\\udce9"}]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "no server at postgresql://me:se@cr:et@host/db (refused)",
            "no server at postgresql://me:***@host/db (refused)",
        ),
        ("postgresql://me@host/db?password=a&sslpassword=b", "postgresql://me@host/db?password=***&sslpassword=***"),
        ("https://example.org/a:b", "https://example.org/a:b"),
        ("mail me@host.org, or see a://b", "mail me@host.org, or see a://b"),
    ],
)
def test_passwords_in_addresses_are_stars(text, shown):
    assert without_passwords(text) == shown
