"""A sample of the attacks, of which `python -m tests.attacks` runs all; and that the harness sees what it is to see."""

import ast
import functools
import os
import re
import signal
from pathlib import Path

import pytest
from attacks import fakes
from attacks.attack import Plan, in_rounds
from attacks.bench import make_base
from attacks.cases import CASES
from attacks.catalogue import KINDS, attacks
from attacks.fuzz import fault_of
from attacks.options import options
from attacks.pool import run_attacks
from attacks.verdict import Outcome, attempt, judge

import segdrop.training.building
from segdrop.cli.main import COMMANDS, main

TESTS = Path(__file__).parent
SAMPLE = attacks(26, 26, [kind for kind in KINDS if kind != "weights"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What attacks break; what they change in this process is put back."""
    kept = segdrop.training.building.build_unet, signal.getsignal(signal.SIGTERM)
    folder = tmp_path_factory.mktemp("attacks") / "base"
    make_base(folder)
    yield folder
    segdrop.training.building.build_unet = kept[0]
    signal.signal(signal.SIGTERM, kept[1])


@pytest.mark.parametrize(
    "attack",
    [pytest.param(one, id=re.sub(r"\W+", "_", f"{one.kind} {one.name}")) for one in SAMPLE],
)
def test_a_broken_input_is_refused_in_one_line_or_read_as_it_is(attack, base):
    verdict = attempt(attack, base, main)
    assert not verdict.failed, verdict


@pytest.mark.parametrize(
    "case",
    CASES,
)
def test_what_once_went_wrong_is_refused_or_read(case):
    error = fault_of(*CASES[case])
    assert error is None, repr(error)


def test_equal_seeds_give_equal_attacks_and_others_give_others():
    names = [[attack.name for attack in attacks(seed, 60)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2] and set(names[0]) != set(names[2])


def test_everything_is_attacked_once_before_anything_is_attacked_again():
    cases = [(target, f"{how}", None) for target in "abc" for how in range(3)]
    chosen = in_rounds("kind", cases, 0, 21)
    assert [sorted(one.name[0] for one in chosen[i : i + 3]) for i in (0, 3, 6)] == [["a", "b", "c"]] * 3
    assert len({one.name for one in chosen[:9]}) == 9 and {one.seed for one in chosen} == {(0, 0), (0, 1), (0, 2)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_the_help_shows_is_attacked(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = set(re.findall(r"^[│ ]*(--[a-z][a-z-]*)", capsys.readouterr().out, re.MULTILINE)) - {"--help"}
    known = {f"--{option.name}" for option in options() if option.command == command}
    assert shown == known


# The harness: commands that do what segdrop must not do


@pytest.mark.parametrize(
    ("command", "verdict", "detail"),
    [
        (fakes.say("broken.png: cannot be decoded."), "refused", "broken.png"),
        (fakes.fail, "traceback", "KeyError: 'Rows'"),
        (fakes.shout, "noise", "libpng warning"),
        (fakes.warn, "noise", "RuntimeWarning"),
        (fakes.say("one.\nsegdrop: two."), "noise", "2 lines"),
        (lambda words: 2, "noise", "0 lines"),
        (lambda words: 3, "noise", "exit code 3"),
        (fakes.say("\x1b[31mbroken.png\x1b[0m is not read."), "noise", "x1b"),
        (fakes.say("an image cannot be decoded."), "unnamed", "an image"),
        (fakes.leave("out.png", 2), "half-written", "left out.png"),
        (fakes.leave(".mask.partial.png", 0), "half-written", "left .mask.partial.png"),
        (fakes.lose, "half-written", "removed broken.png"),
        (lambda words: 0, "incomplete", "no out/*.png"),
        (fakes.say("broken.png: cannot be decoded.", code=1), "refused", "broken.png"),
    ],
)
def test_the_harness_sees_what_a_command_must_not_do(command, verdict, detail, tmp_path):
    seen = attempt(fakes.attack_with(fakes.USUAL), tmp_path / "base", command)
    assert seen.verdict == verdict and detail in seen.detail, seen


def test_a_refusal_may_leave_new_files_in_a_folder_that_it_goes_on_in_but_none_in_part():
    plan = Plan(("train", "--resume"), ("broken",), own="broken")
    refused = functools.partial(Outcome, 2, stderr="segdrop: broken is damaged.")
    names = ("broken/events", "broken/.model.partial.keras", "out")
    verdicts = [judge(plan, refused(appeared=(name,)))[0] for name in names]
    assert verdicts == ["refused", "half-written", "half-written"]


def test_a_traceback_is_told_with_its_place_in_the_package(tmp_path):
    seen = attempt(fakes.attack_with(fakes.USUAL), tmp_path / "base", lambda words: segdrop.TrainConfig(crop_size=[]))
    assert (seen.verdict, seen.place.split(":")[0]) == ("traceback", "config/checks.py")


def test_values_that_are_not_those_of_the_file_are_misread(tmp_path):
    plan = Plan(("predict",), truth=lambda: "broken.png: values of another image")
    assert attempt(fakes.attack_with(plan), tmp_path / "base", lambda words: 0).verdict == "misread"


def test_an_attack_leaves_no_folder_and_the_process_where_it_was(tmp_path):
    before = os.getcwd()
    attempt(fakes.attack_with(fakes.USUAL), tmp_path / "base", fakes.say("broken.png is no image."))
    assert os.getcwd() == before and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("seconds", "grown", "verdict"), [(31.0, 0, "hang"), (1.0, 2 << 30, "memory")])
def test_what_takes_too_much_is_a_failure_though_it_ends_well(seconds, grown, verdict):
    assert judge(Plan(("data",)), Outcome(0, seconds=seconds, grown=grown))[0] == verdict


@pytest.mark.parametrize(
    ("command", "verdict", "detail"),
    [("hang", "hang", "more than"), ("grow", "memory", "more than 0.25 GiB"), ("die", "crash", "exit code -11")],
)
def test_a_process_that_hangs_grows_or_dies_is_ended_and_another_takes_over(command, verdict, detail, tmp_path):
    limits = {
        "seconds": 1.5 if verdict == "hang" else 60.0,
        "bytes_held": (1 << 28) if verdict == "memory" else 8 << 30,
    }
    listing, of = fakes.two_attacks, f"{fakes.__name__}:{command}"
    seen = dict(run_attacks(listing(), listing, tmp_path / "base", main=of, workers=1, **limits))
    assert {(one.verdict, detail in one.detail) for one in seen.values()} == {(verdict, True)} and len(seen) == 2


# What docs/reliability.md promises


def _tests_of(file):
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


PROMISED = re.findall(r"`(test_\w+\.py)::(\w+)`", (TESTS.parent / "docs" / "reliability.md").read_text())


@pytest.mark.parametrize(("file", "name"), PROMISED, ids=lambda part: part)
def test_every_test_that_a_promise_names_is_there(file, name):
    assert name in _tests_of(TESTS / file)


def test_every_promise_names_a_test():
    text = (TESTS.parent / "docs" / "reliability.md").read_text()
    tables = re.findall(r"\| promise \| held by \|\n\|---\|---\|\n((?:\|.*\n)+)", text)
    promises = [row for table in tables for row in table.splitlines()]
    assert len(promises) > 40
    assert not [row for row in promises if not re.search(r"`test_\w+\.py::\w+`|`tests/kills\.py`", row)]
