"""The command line as a user meets it; where processes end, are killed or start without TensorFlow, in their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
import tifffile
from conftest import brightness_model, read_csv, write_pairs, write_run
from optuna.trial import TrialState

from segdrop import build_unet, load
from segdrop.cli.main import main, read_options
from segdrop.config.arms import arms_of, name_of
from segdrop.folders.sweep import chosen_config, fold_runs
from segdrop.sweeps.state import open_state

ROOT = Path(__file__).parents[1]
TINY = ["--encoder", "resnet18", "--encoder-weights", "none", "--batch-size", "2", "--crop-size", "32"]


def command(*arguments):
    return [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, **options)


WITH_SMALL_NETWORKS = f"""
import sys
import segdrop.cli.main as cli

def start(original=cli._import_tensorflow):
    original()
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import segdrop.training.building
    from standin import build_small_unet
    segdrop.training.building.build_unet = build_small_unet

cli._import_tensorflow = start
sys.exit(cli.main(sys.argv[1:]))
"""


def with_small_networks(*arguments):
    """The command in a process that trains the small network, whatever its encoder."""
    return [sys.executable, "-c", WITH_SMALL_NETWORKS, *map(str, arguments)]


def test_a_killed_run_resumes_to_the_same_history_and_weights(cells, tmp_path):
    """Two uninterrupted runs are equal, and so is one that was killed; with a frozen phase, a changing rate, and an
    encoder that learns at a rate of its own, and gradients that are gathered over the end of an epoch."""
    epochs = 12  # they are short; one must be caught

    def training(*arguments):
        return with_small_networks("train", *arguments)

    def run(*arguments):
        return subprocess.run(training(*arguments), capture_output=True, text=True)

    options = [*TINY, "--data", cells, "--epochs", epochs, "--freeze-epochs", "1", "--encoder-dropout", "0.3"]
    options += ["--spatial", "--dropout-schedule", "ramp", "--dropout-schedule-epochs", "3", "--encoder-lr", "0.1"]
    options += ["--accumulate", "3"]  # of two steps an epoch
    whole = run(*options, "--run-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    history = tmp_path / "killed" / "history.csv"
    process = subprocess.Popen(
        training(*options, "--run-dir", tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if history.exists() and len(history.read_text().splitlines()) >= 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(history.read_text().splitlines()) - 1
    assert 2 <= done < epochs and not (tmp_path / "killed" / "metrics.json").exists()
    # The run's own split counts, whatever the data set says by now.
    given = cells / "splits.csv"
    kept = given.read_text()
    given.write_text(kept.replace("cell_7,test", "cell_7,train"))
    resumed = run("--resume", "--run-dir", tmp_path / "killed")
    given.write_text(kept)
    assert resumed.returncode == 0, resumed.stderr
    assert "dropout_rate" in history.read_text()
    for name in ("history.csv", "split.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    first, second = (keras.saving.load_model(tmp_path / name / "model.keras") for name in ("whole", "killed"))
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "Device:" in resumed.stdout and "Weights: random" in resumed.stdout and "4 train" in resumed.stdout

    evaluated = subprocess.run(
        [sys.executable, "-m", "segdrop.cli", "evaluate", str(tmp_path / "whole")], capture_output=True, text=True
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "foreground mean" in evaluated.stdout


def small_set(folder):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    return write_pairs(folder, {f"p{i}": (np.roll(noise, i), np.eye(40, dtype=np.uint8)) for i in range(10)})


def without_a_mask(folder):
    (small_set(folder) / "masks" / "p3.png").unlink()


def undecodable(folder):
    (small_set(folder) / "images" / "p3.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, [], "`data` does not exist: "),
        (without_a_mask, [], "1 image(s) have no mask in masks/; first: p3.png"),
        (undecodable, [], "images/p3.png: cannot be decoded"),
        (
            small_set,
            ["--dropout-blocks", "stage5", "--encoder-dropout", "0.1"],
            "names no unit of this encoder: 'stage5",
        ),
        (small_set, ["--encoder-dropout", "1.3"], "`encoder_dropout` must be a number in [0, 1), got encoder_dropout="),
    ],
)
def test_bad_input_is_one_line_on_stderr_exit_code_2_and_no_folder(tmp_path, capfd, prepare, arguments, message):
    if prepare:
        prepare(tmp_path / "data")
    words = [*TINY, "--data", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run"), *arguments]
    assert main(["train", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("segdrop: ") and message in line
    assert not (tmp_path / "run").exists()


def test_a_process_ends_with_that_line_and_code(tmp_path):
    """After TensorFlow has started, which has things to say of its own."""
    small_set(tmp_path / "data")
    bad = ("--dropout-blocks", "stage5", "--encoder-dropout", "0.1")
    done = run(*TINY, "--data", tmp_path / "data", "--run-dir", tmp_path / "run", *bad)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("segdrop: ") and "names no unit of this encoder: 'stage5" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--encoder-dropout", "lots"], "--encoder-dropout"),
        (["train", "--encoder-dropout", "stage3=0.1,stage3=0.2"], "a block is named twice"),
        (["train", "--encoder-dropout", "stage3=1.5"], "`encoder_dropout` must be a number in [0, 1)"),
        (["train", "--encoder", "vgg17"], "`encoder` must be one of resnet18"),
        (["train", "--dropout-kind", "gauss"], "'gauss'"),
        (["train", "--epochs", "many"], "'many'"),
        (["train", "--epochz", "3"], "--epochz"),
        (["train", "--resume"], "`resume` needs run_dir"),
        (["train", "--resume", "--run-dir", "nowhere"], "`run_dir`: The run does not exist: nowhere"),
        (["evaluate"], "PATH"),
        (["evaluate", "nowhere"], "The run does not exist: nowhere"),
        (["dance"], "no such command: 'dance'; there are data, train, sweep, evaluate, predict, rank, view, report, "),
        (["trian"], "no such command: 'trian'; did you mean train? There are data, train, sweep, evaluate, predict"),
        (["train", "--epoch", "3"], "Unrecognized options: --epoch, 3; did you mean --epochs?"),
        (["train", "--encoder-droput=0.2"], "; did you mean --encoder-dropout?"),
        (["sweep", "F", "--rate", "0.1"], "Unrecognized options: --rate, 0.1; did you mean --rates?"),
        (["train", "--xyzzy", "1"], "Unrecognized options: --xyzzy, 1"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("segdrop: ") and message in line


def test_a_proposal_is_an_option_of_this_command(capsys):
    """`--rates` is like `--rate`, too, but one of `sweep`."""
    assert main(["train", "--rate", "0.1"]) == 2
    assert "--rates" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train"], ["sweep", "new"]])
def test_data_that_are_not_there_are_told_before_tensorflow_is_imported(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segdrop.cli.main._import_tensorflow", lambda: pytest.fail("imports TensorFlow"))
    assert main([*command, "--data", "/no/such"]) == 2
    assert capsys.readouterr().err == "segdrop: `data` does not exist: /no/such.\n"


def test_a_reader_that_has_gone_ends_the_help_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "segdrop.cli", "sweep", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_is_told_in_one_line_with_the_code_of_one(capsys, monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("segdrop.cli.main._dispatch", interrupt)
    assert main(["train"]) == 130
    assert capsys.readouterr().err.startswith("segdrop: interrupted; ")


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--stop-after none", "stop_after", None),
        ("--stop-after 7", "stop_after", 7),
        ("--intensity window --intensity-window 1 2", "intensity_window", (1.0, 2.0)),
        ("--intensity window --intensity-window none", "intensity_window", None),
        ("--dropout-kind none", "dropout_kind", None),
        ("--dropout-kind None", "dropout_kind", None),
        ("--dropout-blocks none", "dropout_blocks", None),
        ("--dropout-blocks stage3,stage4", "dropout_blocks", ("stage3", "stage4")),
    ],
)
def test_an_option_that_may_be_left_out_takes_its_value_or_none(words, field, value):
    assert getattr(read_options(["train", *words.split()]), field) == value


def test_the_help_names_what_an_option_takes_and_no_python(capsys):
    for command in ("train", "sweep", "evaluate", "predict", "view", "report", "export", "inspect"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    text = capsys.readouterr().out
    assert "--run-dir STR " in text and "--dropout-kind {element,spatial,block,path}" in text
    assert "--intensity-window FLOAT FLOAT" in text and "(default: none)" in text
    assert "None" not in text


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_wrong_option_is_one_line_whatever_the_terminal_s_encoding(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = run("--loss", "hinge", env=environment)
    assert done.stderr.startswith("segdrop: invalid choice 'hinge' for argument '--loss'. Expected one of")
    assert len(done.stderr.splitlines()) == 1 and "helptext" not in done.stderr


def test_an_existing_run_and_a_foreign_one_are_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main(["train", "--run-dir", str(tmp_path)]) == 2
    assert "choose another name, or continue that run with --resume" in capsys.readouterr().err
    assert main(["train", "--resume", "--run-dir", str(tmp_path)]) == 2
    assert "is not a run of segdrop" in capsys.readouterr().err


def test_no_permission_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    data = small_set(tmp_path / "data")
    arguments = [*TINY, "--data", str(data), "--run-dir", str(tmp_path / "run")]
    assert main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no permission to write in" in line


def test_a_full_disk_is_one_line_with_advice(capsys, monkeypatch):
    import errno

    from segdrop.cli.main import main

    def full(arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/state.npz")

    monkeypatch.setattr("segdrop.cli.main._dispatch", full)
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "segdrop: No space left on device: runs/x/state.npz; free some space, then go on: with the same command, a "
        "run or prediction that has begun with --resume besides.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["train", "evaluate", "--version"]),
        (
            ["train", "--help"],
            ["--encoder-dropout", "--mixed-precision", "--freeze-epochs", "--ignore-value", "--encoder-lr"],
        ),
        (["evaluate", "--help"], ["--split", "--data"]),
        (["sweep", "--help"], ["--rates", "--grid", "--folds", "--storage", "--workers", "--dry-run", "--epochs"]),
        (["inspect", "--help"], ["--svg", "--csv", "--json", "--verify", "--image-size", "--sensitivity", "--mc-rate"]),
    ],
)
def test_help_needs_no_tensorflow(arguments, words):
    code = f"import sys; from segdrop.cli.main import main; main({arguments}); sys.exit('tensorflow' in sys.modules)"
    code = code.replace("main([", "\ntry: main([").replace("; sys.exit", "\nexcept SystemExit: pass\nsys.exit")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


def test_importing_the_package_imports_no_tensorflow():
    code = "import segdrop, sys; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_interface_has_every_promised_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    promised = """--data --run-dir --epochs --batch-size --crop-size --lr --loss --augment --seed --encoder
        --encoder-weights --encoder-dropout --spatial --dropout-kind --dropout-blocks --dropout-placement --skips
        --dropout-block-size --dropout-shared --dropout-schedule --dropout-schedule-epochs --recalibrate-batchnorm
        --freeze-epochs --classes --ignore-value --stratify --mixed-precision --resume --from-sweep
        --encoder-lr --init-from --init-parts""".split()
    assert [option for option in promised if f"{option} " not in text and f"{option}," not in text] == []


def test_inspect_shows_proves_and_draws(tmp_path, capsys):
    model = build_unet("resnet18", encoder_weights=None, encoder_dropout=(0.1, 0.2), kind="block", adjustable=True)
    model.save(tmp_path / "m.keras")
    files = {name: tmp_path / f"t.{name}" for name in ("svg", "csv", "json")}
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    assert main(["inspect", str(tmp_path / "m.keras"), "--verify", "--image-size", "64", *options]) == 0
    text = capsys.readouterr().out
    assert "stage3_unit2_relu2" in text and "between_convs" in text and "0.15" in text
    assert "inference is the same" in text
    assert [row["rate"] for row in json.loads(files["json"].read_text())] == [0.1, 0.15, 0.2]
    assert files["csv"].read_text().count("\n") == 4
    assert files["svg"].read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("inspect RUN --csv NEW/t.csv --json nowhere/t.json", "`json` has no folder: nowhere; make it first."),
        ("inspect RUN --csv NEW/t.csv --json RUN/config.json", "`json` exists: "),
        ("inspect RUN --csv NEW/t --json NEW/t", "`csv`, `json` and `svg` must be different files, got "),
        ("inspect RUN --csv NEW/a --json NEW/b --svg NEW/b", "/b twice."),
        ("rank NEW/nothing RUN", "The run does not exist: "),
        ("inspect RUN --csv NEW/t.csv --mc-rate 0.5", "`mc_rate` needs sensitivity"),
        ("inspect RUN --csv NEW/t.csv --image-size 0", "`image_size` must be a whole number of at least 1"),
        ("inspect RUN --verify", "`model`: dropout was added: "),
        ("report RUN --out RUN/config.json", "`out` exists and is no page: "),
        ("report RUN RUN --mc-samples 3", "`mc_samples` is for the report of one run; leave it out."),
        ("export RUN --out NEW/net.saved", "`out` must end in .onnx for format='onnx', got "),
        ("export RUN --out NEW/net.onnx --format saved_model", "`out` must not end in .onnx for format='saved_model'"),
    ],
)
def test_outputs_replace_nothing_and_a_refused_command_writes_none(bright, tmp_path, capsys, words, message):
    before = {path: path.read_bytes() for path in bright.rglob("*") if path.is_file()}
    words = [word.replace("RUN", str(bright)).replace("NEW", str(tmp_path)) for word in words.split()]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []
    assert {path: path.read_bytes() for path in bright.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.keras", None, "There is no model: "),
        ("text.keras", "no model", "is not a Keras model that can be loaded"),
        ("folder", None, "is not a run of segdrop"),
    ],
)
def test_inspecting_what_is_no_model_is_one_line(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content:
        path.write_text(content)
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_warning_is_one_line_without_a_place_in_the_code():
    code = (
        "import warnings; import segdrop.cli.main as cli; cli._dispatch = lambda _: warnings.warn('Odd.'); cli.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "segdrop: warning: Odd.\n"


def test_a_ramp_of_rates_is_given_with_two_dots(capsys):
    assert read_options(["train", "--encoder-dropout", "0.05..0.3"]).encoder_dropout == (0.05, 0.3)


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """A run whose network calls pixels foreground where they are brighter than 128."""
    return write_run(tmp_path_factory.mktemp("runs") / "bright", brightness_model())


def start(command, **options):
    def heed_interrupts():  # a shell has its background jobs ignore them, and these tests may run in one
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, preexec_fn=heed_interrupts, **options)


def segdrop(*arguments, **options):
    return start([sys.executable, "-m", "segdrop.cli", *map(str, arguments)], **options)


def test_one_bad_file_is_one_line_and_exit_code_1_and_the_others_are_written(bright, tmp_path, capsys):
    data = small_set(tmp_path / "data") / "images"
    (data / "p3.png").write_bytes((data / "p3.png").read_bytes()[:99])
    assert main(["predict", str(bright), str(data), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "p3.png: cannot be decoded" in shown.err
    assert f"9 of 10 files predicted, in {tmp_path / 'out'}" in shown.out and "tiles/s" in shown.out
    assert len(list((tmp_path / "out").glob("*.png"))) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "RUN", "--out", "OUT"], "`inputs` is empty"),
        (["predict", "RUN", "nowhere.png", "--out", "OUT"], "`inputs` names no file: nowhere.png"),
        (["predict", "nowhere", "a.png", "--out", "OUT"], "`inputs` names no file: a.png"),
        (["predict", "RUN", "RUN/config.json", "--out", "OUT", "--tile", "7"], "`tile` must be a whole number"),
        (["evaluate", "RUN", "--tolerance", "-1"], "`tolerance` must be a number of at least 0"),
        (["report", "nowhere"], "The run does not exist: nowhere"),
        (["export", "nowhere"], "The run does not exist: nowhere"),
        (["export", "RUN", "--format", "jpeg"], "invalid choice"),
    ],
)
def test_wrong_arguments_of_other_commands_are_one_line_too(bright, tmp_path, capsys, arguments, message):
    words = [word.replace("RUN", str(bright)).replace("OUT", str(tmp_path / "out")) for word in arguments]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_killed_prediction_of_a_huge_image_resumes_to_the_same_mask(bright, tmp_path):
    side = 8256
    image = np.add.outer(np.arange(side), np.arange(side)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", image, tile=(256, 256), compression="zlib", compressionargs={"level": 1})
    arguments = ("predict", bright, tmp_path / "big.tif", "--out", tmp_path / "out")
    progress = tmp_path / "out" / ".big.progress.json"
    process = segdrop(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if progress.exists() and json.loads(progress.read_text())["row"] >= 2:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= json.loads(progress.read_text())["row"] < 11
    assert not (tmp_path / "out" / "big.tif").exists()
    resumed = segdrop(*arguments, "--resume", stdout=subprocess.PIPE, text=True)
    assert "1 of 1 files predicted" in resumed.communicate()[0] and resumed.returncode == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "big.tif"), image > 128)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"big.tif", "predict.json", "predictions.csv"}


SWEEP = [*TINY, "--mixed-precision", "off", "--epochs", "2", "--folds", "2", "--rates", "0.2"]


def sweeping(folder, cells):
    return with_small_networks("sweep", folder, "--data", cells, *SWEEP)


def finished_trainings(folder):
    return {path.parent for path in folder.glob("trainings/*/metrics.json")}


@pytest.fixture(scope="module")
def interrupted(cells, tmp_path_factory):
    """A sweep of two arms in two folds, interrupted in its second training: its folder, and the process's end."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    process = start(sweeping(folder, cells), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "trainings" / "00001" / "config.json").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    return folder, process.returncode, stdout, stderr, finished_trainings(folder)


@pytest.fixture(scope="module")
def answered(interrupted, cells):
    """The sweep, after the same command once more; what the process said; and what was reported in between."""
    folder = interrupted[0]
    code = f"import sys; from segdrop.cli.main import main; code = main(['sweep', {str(folder)!r}, '--report'])"
    code += "; sys.exit(code or bool({'tensorflow', 'keras'} & set(sys.modules)))"
    between = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    process = start(sweeping(folder, cells), stdout=subprocess.PIPE, text=True)
    stdout, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return folder, stdout, between


def test_an_interrupted_sweep_says_how_it_goes_on_and_exits_with_130(interrupted):
    _, code, stdout, stderr, finished = interrupted
    assert code == 130 and len(finished) == 1
    assert stderr == (
        "segdrop: interrupted; a sweep goes on with the same command, train and predict with --resume besides.\n"
    )
    assert "1 of 4  none, fold 1 of 2: Dice 0." in stdout


@pytest.mark.slow
def test_a_scheduler_ends_a_sweep_with_its_workers_and_the_trainings_wait_for_the_next_call(cells, tmp_path):
    folder = tmp_path / "sweep"
    process = segdrop(
        *("sweep", folder, "--data", cells, *SWEEP, "--workers", "2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if len(list(folder.glob("trainings/*/config.json"))) == 2:
            break
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=30)[1]  # after which schedulers kill
    assert process.returncode == 143 and "terminated; a sweep goes on with the same command" in stderr
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)
    # All that nobody has finished wait, at once and not when a heartbeat is too old.
    trials = open_state(folder, None).trials
    states = Counter(trial.state for trial in trials.all())
    assert states[TrialState.RUNNING] == 0 and states[TrialState.WAITING] + states[TrialState.COMPLETE] == 4


def test_a_report_in_between_says_what_is_known_and_imports_no_tensorflow(answered):
    _, _, between = answered
    assert between.returncode == 0, between.stderr
    assert "So far, with 1 of 4 trainings done" in between.stdout


def test_the_same_command_goes_on_and_trains_nothing_twice(interrupted, answered):
    (*_, before), (folder, stdout, _) = interrupted, answered
    assert stdout.startswith("1 of 4 trainings were done before.\n") and "   4 of 4  " in stdout
    assert before < finished_trainings(folder) and len(finished_trainings(folder)) == 4
    configs = [json.loads((path / "config.json").read_text())["config"] for path in finished_trainings(folder)]
    assert sorted(config["encoder_dropout"] for config in configs) == [0.0, 0.0, 0.2, 0.2]
    assert len({config["seed"] for config in configs}) == 2  # one for each fold
    assert "All of it: " in stdout and (folder / "answer.md").is_file()


def test_the_folder_alone_stands_for_the_command(answered, capsys):
    folder, *_ = answered
    assert main(["sweep", str(folder)]) == 0
    assert "4 of 4 trainings were done before." in capsys.readouterr().out


def test_another_grid_in_a_sweep_s_folder_is_one_line(answered, cells, capsys):
    folder, *_ = answered
    assert main(["sweep", str(folder), "--data", str(cells), *SWEEP[:-1], "0.3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("segdrop: `grid` is {") and error.count("\n") == 1
    assert "'encoder_dropout': [0.3]}, but" in error and "'encoder_dropout': [0.2]}; choose another" in error


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["--folds", "5"], "`folds` is 5, but "),  # the default, of which the sweep has 2
        (["--lr", "0.5", "--report"], "`lr` is 0.5, but "),
        (["--reference", "spatial 0.2"], "`reference` is 'spatial 0.2', but "),
        (["--rates", "0.2", "--encoder-dropout", "0.3"], "`encoder_dropout` is given beside values of it to compare"),
        (["--kinds", "spatial", "--dropout-kind", "block"], "`dropout_kind` is given beside values of it to compare"),
        (["--report", "--dry-run"], "`report` contradicts dry_run; give one of them."),
        (["--spread", "0.02"], "`spread` needs dry_run"),
        (["--dry-run", "--hours", "3"], "`hours` needs detect"),
        (["--dry-run", "--spread", "0.02", "--pilot", "F"], "`spread` contradicts pilot"),
        (["--report", "--test", "--data", "nowhere"], "does not exist: nowhere"),
    ],
)
def test_what_is_said_beside_a_sweep_s_folder_counts_or_is_refused(answered, capsys, said, message):
    folder, *_ = answered
    assert main(["sweep", str(folder), *(word.replace("F", str(folder)) for word in said)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_margin_is_a_question_to_the_same_trainings_also_the_default_one(answered, tmp_path, monkeypatch):
    from segdrop.sweeps import sweep

    folder = shutil.copytree(answered[0], tmp_path / "sweep")
    record = json.loads((folder / "sweep.json").read_text())
    record["config"]["margin"] = 0.05
    (folder / "sweep.json").write_text(json.dumps(record))
    answers, original = [], sweep.answer
    monkeypatch.setattr(sweep, "answer", lambda results: answers.append(original(results)) or answers[-1])
    for said in ([], ["--margin", "0.03"], ["--margin", "0.01"]):
        assert main(["sweep", str(folder), "--report", *said]) == 0
    assert [answer.results.margin for answer in answers] == [0.05, 0.03, 0.01]


@pytest.mark.parametrize("option", ["--from_sweep", "--from-sweep"])
def test_an_option_is_written_with_lines_or_underscores(answered, option):
    folder, *_ = answered
    assert read_options(["train", option, str(folder)]) == chosen_config(folder)


def test_a_finished_sweep_predicts_with_the_mean_of_its_folds_models(answered, cells, tmp_path, capsys):
    folder, *_ = answered
    assert main(["predict", str(folder), str(cells / "images"), "--out", str(tmp_path / "out")]) == 0
    assert "8 of 8 files predicted" in capsys.readouterr().out
    image = read_image(cells / "images" / "cell_6.png")
    networks = [load(run) for run in fold_runs(folder)]
    mean = np.mean([network.predict(image) for network in networks], axis=0)
    assert len(networks) == 2
    np.testing.assert_array_equal(read_image(tmp_path / "out" / "cell_6.png"), networks[0].labels(mean))


def read_image(path):
    from PIL import Image

    return np.asarray(Image.open(path))


def test_a_sweep_s_test_images_are_scored_on_request(answered, capsys):
    folder, *_ = answered
    assert not (folder / "test.json").exists()
    assert main(["sweep", str(folder), "--report", "--test"]) == 0
    assert json.loads((folder / "test.json").read_text())["images"] == 2
    assert "On the test images (2 images) it has a Dice of" in (folder / "answer.md").read_text()


def test_the_chosen_arm_is_trained_on_all_folds_and_scored_on_request(answered, tmp_path, capsys, small_unet):
    folder, *_ = answered
    chosen, run_dir = chosen_config(folder), tmp_path / "run"
    assert main(["train", f"--from-sweep={folder}", "--run-dir", str(run_dir), "--stop-after", "1"]) == 0
    assert "Images:  6 train, 0 val, 2 test" in capsys.readouterr().out
    stored = json.loads((run_dir / "config.json").read_text())["config"]
    given = {"run_dir": str(run_dir), "stop_after": 1, "intensity": "dtype"}  # by auto
    assert stored == {**json.loads(json.dumps(chosen.to_json())), **given}
    assert [row["split"] for row in read_csv(run_dir / "split.csv")] == ["train"] * 6 + ["test"] * 2
    assert len(read_csv(run_dir / "history.csv")) == 1 and json.loads((run_dir / "metrics.json").read_text()) == {}


def test_a_dry_run_tells_arms_trainings_and_time_and_makes_nothing(cells, tmp_path, capsys):
    arguments = ["--kinds", "spatial", "element", "--seeds", "0", "1", "--dry-run"]
    assert main(["sweep", str(tmp_path / "sweep"), "--data", str(cells), *SWEEP, *arguments]) == 0
    plan, *arms, time, last = capsys.readouterr().out.rstrip().split("\n")[-6:]
    assert plan.strip() == ""
    assert arms == ["none", "spatial 0.2", "element 0.2"]
    # Two folds and seeds of each, and a third seed of what both others are compared with.
    assert time.startswith("14 trainings, about ") and time.endswith(" one after the other on this machine.")
    assert last.startswith("What it could tell depends on how much trainings vary: --spread 0.02")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_what_the_sweep_could_tell_and_which_one_tells_what_is_asked(cells, tmp_path, capsys):
    words = ["sweep", str(tmp_path / "sweep"), "--data", str(cells), *SWEEP, "--dry-run"]
    assert main([*words, "--spread", "0.01", "--detect", "0.05"]) == 0
    told = capsys.readouterr().out
    assert "With a spread of 0.010 (as stated), a difference of Dice of" in told
    assert "Sweeps that tell a difference of 0.05 in four of five times" in told and "seeds of the reference" in told
    assert main([*words, "--detect", "0.05"]) == 2
    assert "`detect` needs the spread of a training" in capsys.readouterr().err


def test_the_reference_may_be_the_arm_called_none():
    assert read_options("sweep F --reference none".split()).reference == "none"


def test_alternatives_are_arms_beside_those_of_dropout():
    from segdrop.cli.commands import _sweep_config

    config = _sweep_config(read_options("sweep F --rates 0.1 --alternatives --loss dice".split()))
    names = [name_of(arm) for arm in arms_of(config)]
    assert names[:3] == ["none", "spatial 0.1", "weight averaging 0.99"]
    assert "augmentation x2" in names and not any("smoothing" in name for name in names)  # Dice has no cross-entropy


def test_options_of_a_sweep_become_its_grid():
    from segdrop.cli.commands import _sweep_config

    words = "F --rates 0.1 0.3 --kinds spatial block --placements block_end --blocks stage4 stage3,stage4"
    words += " --schedules constant ramp --seeds 1 2 --folds 4 --repeats 3 --no-hold-out --lr 0.01"
    config = _sweep_config(read_options(["sweep", *words.split()]))
    assert config.grid == {
        "encoder_dropout": [0.1, 0.3],
        "dropout_kind": ["spatial", "block"],
        "dropout_placement": ["block_end"],
        "dropout_blocks": [["stage4"], ["stage3", "stage4"]],
        "dropout_schedule": ["constant", "ramp"],
    }
    assert (config.seeds, config.folds, config.repeats, config.hold_out, config.train.lr) == ((1, 2), 4, 3, False, 0.01)
    plain = _sweep_config(read_options(["sweep", "F"]))
    assert plain.grid == {"encoder_dropout": [0.1, 0.2, 0.3, 0.5], "dropout_kind": ["spatial"]}
    own = _sweep_config(read_options(["sweep", "F", "--grid", '{"lr": [0.1]}', "--search", "3"]))
    assert own.grid == {"lr": [0.1]} and own.search == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "PATH"),
        (["sweep", "NEW", "--rates", "lots"], "--rates"),
        (["sweep", "NEW", "--rates", "0.1", "1.5"], "`rates` must be a number in [0, 1), got rates=1.5."),
        (["sweep", "NEW", "--kinds", "gauss"], "'gauss'"),
        (["sweep", "NEW", "--folds", "1"], "`folds` must be a whole number of at least 2"),
        (["sweep", "NEW", "--folds", "9"], "has 6 different image(s) to divide into folds=9; use fewer folds."),
        (["sweep", "NEW", "--grid", "{"], "`grid` is not JSON: "),
        (["sweep", "NEW", "--grid", "nowhere.json"], "`grid` is neither JSON nor a file: nowhere.json."),
        (["sweep", "NEW", "--grid", '{"colour": [1]}'], "`grid` has an unknown field: 'colour'"),
        (["sweep", "NEW", "--grid", '{"lr": [1]}', "--rates", "0.1"], "`grid` is given beside encoder_dropout"),
        (["sweep", "NEW", "--blocks", "stage9"], "names no unit of this encoder: 'stage9"),
        (["sweep", "NEW", "--prune"], "`prune` belongs to a search"),
        (
            ["sweep", "NEW", "--grid", '{"train_fraction": [0.5]}', "--stop-when-told"],
            "`stop_when_told` needs arms of which one is compared with another, got ",
        ),
        (["sweep", "NEW", "--workers", "0"], "`workers` must be a whole number of at least 1"),
        (["sweep", "NEW", "--storage", "nonsense"], "`storage` must look like postgresql://"),
        (["sweep", "NEW", "--run-dir", "x"], "`run_dir` is not for a sweep"),
        (["sweep", "NEW", "--report"], "The sweep does not exist: "),
        (["sweep", "NEW", "--report", "--test"], "The sweep does not exist: "),
        (["sweep", "RUN", "--report"], "is not the folder of a sweep: it has no sweep.json."),
        (["sweep", "RUN"], "`folder` exists and is not a sweep's: "),
        (["train", "--from-sweep", "NEW"], "`from_sweep`: The sweep does not exist: "),
        (["train", "--from-sweep", "RUN"], "is not the folder of a sweep: it has no sweep.json."),
    ],
)
def test_bad_input_of_a_sweep_is_one_line_and_makes_no_folder(bright, cells, tmp_path, capsys, arguments, message):
    words = [word.replace("NEW", str(tmp_path / "new")).replace("RUN", str(bright)) for word in arguments]
    if words[1:]:
        words += ["--data", str(cells), *TINY]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("segdrop: ") and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
