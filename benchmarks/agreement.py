"""How far segdrop's scores are from those of MONAI, torchmetrics and DeepMind's surface-distance.

    python -m venv OTHER && OTHER/bin/pip install torch monai torchmetrics scipy surface-distance
    python benchmarks/agreement.py --other OTHER/bin/python [--cases 1000]

The cases are those of tests/test_numbers.py, degenerate ones, ignored pixels and anisotropic spacings included. The
others compute in an environment of their own. The table has the largest difference where both are defined, relative for
scores above 1 since MONAI computes in float32, and how often only one of them is.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# What is compared with what; and where another definition is why the numbers differ.
NOTES = {
    "MONAI dice": "both masks empty: MONAI 1, segdrop undefined",
    "MONAI iou": "both masks empty: MONAI 1, segdrop undefined",
    "MONAI hd95": "one mask empty: MONAI infinite, segdrop undefined",
    "torchmetrics dice": "both masks empty: given 0 by zero_division, segdrop undefined",
    "torchmetrics iou": "both masks empty: given 0 by zero_division, segdrop undefined",
    "torchmetrics precision": "nothing predicted: given 0 by zero_division, segdrop undefined",
    "torchmetrics recall": "nothing true: given 0 by zero_division, segdrop undefined",
    "torchmetrics auroc": "no error, or nothing but errors: 0, segdrop undefined",
    "DeepMind hd95": "surface elements between pixels, weighed by length, where segdrop counts boundary pixels",
    "DeepMind surface_dice": "surface elements between pixels, weighed by length, where segdrop counts boundary pixels",
}


def compute(file: str) -> None:
    """In the other environment: the others' scores of the cases in a file, by case and name."""
    import torch
    from monai.metrics import (
        compute_confusion_matrix_metric,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
        compute_surface_dice,
        get_confusion_matrix,
    )
    from torchmetrics.functional import classification as tm
    from torchmetrics.functional import mean_squared_error

    try:
        import surface_distance
    except ImportError:
        surface_distance = None
    cases = np.load(file)
    rows = []
    for i in range(int(cases["count"])):
        truth, probability = cases[f"truth{i}"], cases[f"probability{i}"]
        spacing, tolerance = tuple(cases["spacing"][i]), float(cases["tolerance"][i])
        valid = truth != 255
        masks = [(truth == 1) & valid, (probability >= 0.5) & valid]
        true, pred = (torch.tensor(mask[None, None].astype(np.float32)) for mask in masks)
        found = {
            "MONAI dice": compute_dice(pred, true, ignore_empty=False),
            "MONAI iou": compute_iou(pred, true, ignore_empty=False),
            "MONAI hd95": compute_hausdorff_distance(pred, true, True, percentile=95, spacing=spacing),
            "MONAI surface_dice": compute_surface_dice(
                pred, true, [tolerance * (1 + 1e-6)], include_background=True, spacing=spacing
            ),
        }
        # Ignored pixels are neither true nor predicted: only true negatives, which neither score knows, grow by them.
        confusion = get_confusion_matrix(pred, true)
        for ours, theirs in (("precision", "precision"), ("recall", "sensitivity")):
            found[f"MONAI {ours}"] = compute_confusion_matrix_metric(theirs, confusion)
        p, y, label = (torch.tensor(a[valid]) for a in (probability, truth.astype(int), masks[1].astype(int)))
        if len(y):
            found |= {
                "torchmetrics dice": tm.binary_f1_score(label, y, zero_division=0),
                "torchmetrics iou": tm.binary_jaccard_index(label, y, zero_division=0),
                "torchmetrics precision": tm.binary_precision(label, y, zero_division=0),
                "torchmetrics recall": tm.binary_recall(label, y, zero_division=0),
                "torchmetrics ece": tm.multiclass_calibration_error(torch.stack([1 - p, p], 1), y, 2, n_bins=15),
                "torchmetrics brier": mean_squared_error(p.double(), y.double()),
                "torchmetrics auroc": tm.binary_auroc(0.5 - (p - 0.5).abs(), (label != y).int()),
            }
        if surface_distance and masks[0].any() and masks[1].any():
            measured = surface_distance.compute_surface_distances(*masks, spacing)
            found["DeepMind hd95"] = surface_distance.compute_robust_hausdorff(measured, 95)
            found["DeepMind surface_dice"] = surface_distance.compute_surface_dice_at_tolerance(measured, tolerance)
        rows.append({name: float(np.asarray(value).ravel()[0]) for name, value in found.items()})
    names = sorted({name for row in rows for name in row})
    table = np.array([[row.get(name, np.nan) for name in names] for row in rows])
    np.savez(file, names=names, table=table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--other", help="the Python that has MONAI and torchmetrics")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--compute", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compute:
        compute(arguments.compute)
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from test_numbers import draw, scores

    cases = [draw(seed) for seed in range(arguments.cases)]
    own = [scores(*case) for case in cases]
    stored = {
        "count": len(cases),
        "spacing": [case[2] or (1.0, 1.0) for case in cases],
        "tolerance": [c[3] for c in cases],
    }
    for i, (truth, probability, *_) in enumerate(cases):
        stored |= {f"truth{i}": truth, f"probability{i}": probability}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "cases.npz"))
        np.savez(file, **stored)
        subprocess.run([arguments.other, "-W", "ignore", __file__, "--compute", file], check=True)
        found = np.load(file)
    print(f"{'score':24} {'both':>5} {'largest difference':>18} {'segdrop alone':>14} {'other alone':>12}")
    for name, others in zip(found["names"], found["table"].T, strict=True):
        ours = np.array([row[name.split()[1]] for row in own])
        known, theirs = ~np.isnan(ours), np.isfinite(others)
        both = known & theirs
        largest = (np.abs(ours - others) / np.maximum(1, ours))[both].max()
        alone = (np.count_nonzero(known & ~theirs), np.count_nonzero(theirs & ~known))
        note = f"  {NOTES[name]}" if name in NOTES else ""
        print(f"{name:24} {both.sum():5} {largest:18.2g} {alone[0]:14} {alone[1]:12}{note}")


if __name__ == "__main__":
    main()
