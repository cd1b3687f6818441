"""segmentation_models, told to use Keras 3 before it is imported: the one place that imports it."""

import contextlib
import io
import os

if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
    raise ImportError("segdrop needs Keras 3; unset TF_USE_LEGACY_KERAS, which asks for the legacy Keras 2.")

os.environ["SM_FRAMEWORK"] = "tf.keras"

with contextlib.redirect_stdout(io.StringIO()):  # it prints the framework's name when imported
    import segmentation_models as sm
    from segmentation_models.backbones.backbones_factory import Backbones

__all__ = ["Backbones", "build_backbone", "sm"]


def build_backbone(name: str, input_shape, weights: str | None = None):
    """A network of the library's without its classifier; `weights` is "imagenet" or None."""
    build = sm.inject_global_submodules(Backbones.get_backbone)
    return build(name, input_shape=input_shape, weights=weights, include_top=False)
