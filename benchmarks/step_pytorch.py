"""A step of segmentation_models_pytorch whenever standard input says so; see side_by_side.py. It needs no segdrop.

The ways to be fast that PyTorch's documentation names for a CPU are taken: channels last, autocast, the fused AdamW.
"""

import argparse
import contextlib

import segmentation_models_pytorch as smp
import torch
from answering import answer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["training", "inference"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = smp.Unet("resnet34", encoder_weights=None).to(memory_format=torch.channels_last)
    images = torch.rand(given.batch, 3, given.size, given.size).contiguous(memory_format=torch.channels_last)
    masks = (torch.rand(given.batch, 1, given.size, given.size) > 0.5).float()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    dice = smp.losses.DiceLoss("binary")
    half = given.precision == "bfloat16"
    autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if half else contextlib.nullcontext
    model.train(given.what == "training")

    def training() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            logits = model(images)
        logits = logits.float()
        loss = dice(logits, masks) + torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
        loss.backward()
        optimizer.step()
        loss.item()

    def inference() -> None:
        with torch.inference_mode(), autocast():
            model(images).sigmoid()

    answer(f"smp {smp.__version__}, PyTorch {torch.__version__}", training if given.what == "training" else inference)


if __name__ == "__main__":
    main()
