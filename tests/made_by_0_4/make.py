"""Made the files beside it, with segdrop 0.4.0: `python tests/made_by_0_4/make.py`, from the root at 0.4.0.

A run, a run that was killed after its second epoch, what that run ends with uninterrupted, a finished sweep, a sweep
with one of its four trainings left, an ONNX file, a .keras file with all of segdrop's layers; and what the networks
predict of one image. The network is `standin.build_small_unet`, the data are the sample set.
"""

import shutil
import sys
from pathlib import Path

import keras
import numpy as np

import segdrop
from segdrop import SweepConfig, TrainConfig

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from standin import build_small_unet  # noqa: E402

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


class Killed(Exception):
    pass


def config(**fields):
    fields = {"encoder_dropout": 0.2, "spatial": True, "epochs": 3, **fields}
    return TrainConfig(
        data="data/cells",
        encoder="resnet18",
        encoder_weights="none",
        mixed_precision="off",
        crop_size=64,
        train_fraction=0.25,
        **fields,
    )


def main():
    from segdrop import training, workers

    assert segdrop.__version__ == "0.4.0"
    training.build_unet = build_small_unet
    for name in ("run", "killed", "whole", "sweep", "started_sweep"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    run = f"{HERE.relative_to(Path.cwd())}/run"
    # An adjustable layer, segdrop's own.
    segdrop.train(config(run_dir=run, dropout_schedule="ramp"))
    (HERE / "model.onnx").unlink(missing_ok=True)
    segdrop.export(run, HERE / "model.onnx")

    segdrop.train(config(run_dir=f"{HERE}/whole"))
    kept, epochs = training._Session.record_epoch, []

    def killed(session, row):
        kept(session, row)
        epochs.append(row)
        if len(epochs) == 2:
            raise Killed

    training._Session.record_epoch = killed
    try:
        segdrop.train(config(run_dir=f"{HERE}/killed"))
    except Killed:
        training._Session.record_epoch = kept
    shutil.copy(HERE / "whole" / "history.csv", HERE / "killed.history.csv")
    shutil.rmtree(HERE / "whole")

    arms = SweepConfig(
        train=config(epochs=2, encoder_dropout=0.0, spatial=False),
        grid={"encoder_dropout": [0.2], "dropout_kind": ["spatial"]},
        folds=2,
    )
    segdrop.sweep(HERE / "sweep", arms)
    whole, trained = workers.Worker._train, []

    def stops(worker, job, number):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(number)
        return whole(worker, job, number)

    workers.Worker._train = stops
    try:
        segdrop.sweep(HERE / "started_sweep", arms)
    except KeyboardInterrupt:
        workers.Worker._train = whole

    keras.utils.set_random_seed(0)
    plain = build_small_unet()
    model = segdrop.insert_dropout(plain, ["relu0"], 0.2, adjustable=True, seed=1)
    model = segdrop.insert_dropout(model, ["conv0"], 0.2, kind="block", seed=2)
    model = segdrop.insert_dropout(model, ["relu1"], 0.2, kind="spatial", seed=3)
    segdrop.monte_carlo(model).save(HERE / "layers.keras")  # FixedMode around each
    model.save(HERE / "inside.keras")

    image = IMAGE[None].astype("float32")
    networks = {"run": segdrop.load(run), "onnx": segdrop.load(HERE / "model.onnx")}
    predicted = {name: network.predict(IMAGE).astype("float32") for name, network in networks.items()}
    predicted["inside"] = model.predict(image, verbose=0)[0]
    predicted["sweep"] = np.mean(
        [segdrop.load(fold).predict(IMAGE) for fold in sweep_runs(HERE / "sweep")], axis=0, dtype="float32"
    )
    np.savez_compressed(HERE / "predictions.npz", **predicted)
    for folder in HERE.rglob("tensorboard"):
        shutil.rmtree(folder)
    for picture in HERE.rglob("*.png"):
        picture.unlink()


def sweep_runs(folder):
    from segdrop.sweep_folder import fold_runs

    return fold_runs(folder)


if __name__ == "__main__":
    main()
