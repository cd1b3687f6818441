"""A step of segmentation_models_pytorch whenever standard input says so; see side_by_side.py. It needs no segdrop.

The ways to be fast that PyTorch's documentation names are taken: channels last, autocast, the fused AdamW; on a GPU,
which is taken where there is one, cuDNN's search for the fastest kernels, too. Images come from the CPU's memory.
"""

import argparse
import contextlib
import functools

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
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = smp.Unet("resnet34", encoder_weights=None).to(device, memory_format=torch.channels_last)
    images = torch.rand(given.batch, 3, given.size, given.size).contiguous(memory_format=torch.channels_last)
    masks = (torch.rand(given.batch, 1, given.size, given.size) > 0.5).float()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=given.precision == "float16")
    dice = smp.losses.DiceLoss("binary")
    autocast = contextlib.nullcontext
    if given.precision != "float32":
        autocast = functools.partial(torch.autocast, device, getattr(torch, given.precision))
    model.train(given.what == "training")

    def training() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            logits = model(images.to(device))
        logits, truth = logits.float(), masks.to(device)
        loss = dice(logits, truth) + torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()  # waits for the device

    def inference() -> None:
        with torch.inference_mode(), autocast():
            model(images.to(device)).sigmoid().float().cpu()

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    version = f"smp {smp.__version__}, PyTorch {torch.__version__}, {name}"
    answer(version, training if given.what == "training" else inference)


if __name__ == "__main__":
    main()
