"""A U-Net of a few hundred weights with the names of the real one, for tests of everything around a network."""

import keras
from keras import layers

from segdrop import insert_dropout

UNIT = "stage3_unit1"


def build_small_unet(
    encoder="resnet18",
    *,
    input_shape=(None, None, 3),
    classes=1,
    encoder_weights=None,
    encoder_dropout=0.0,
    spatial=False,
    kind=None,
    placement="between_convs",
    blocks=None,
    skips=None,
    block_size=None,
    shared_across_batch=False,
    adjustable=False,
    dropout_layer=None,
    seed=None,
    bn_momentum=None,
    activation=None,
):
    """Stands in for `segdrop.build_unet`: one residual unit, one skip, dropout before the unit's second convolution.

    What says where dropout goes in a ResNet is taken and has no effect.
    """
    image = keras.Input(input_shape, name="data")
    x = layers.BatchNormalization(scale=False, name="bn_data")(image)
    skip = layers.Conv2D(4, 3, 2, "same", activation="relu", name="relu0")(x)
    x = layers.Conv2D(8, 3, 2, "same", name="conv0")(skip)
    branch = layers.BatchNormalization(name=f"{UNIT}_bn1")(x)
    branch = layers.ReLU(name=f"{UNIT}_relu1")(branch)
    branch = layers.Conv2D(8, 3, padding="same", name=f"{UNIT}_conv1")(branch)
    branch = layers.ReLU(name=f"{UNIT}_relu2")(branch)
    branch = layers.Conv2D(8, 3, padding="same", name=f"{UNIT}_conv2")(branch)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(name="bn1")(layers.Add()([x, branch])))
    x = layers.UpSampling2D(2, name="decoder_stage0_upsampling")(x)
    x = layers.Concatenate(name="decoder_stage0_concat")([x, skip])
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="decoder_stage0a_conv")(x)
    x = layers.UpSampling2D(2, name="decoder_stage1_upsampling")(x)
    x = layers.Conv2D(classes, 3, padding="same", name="final_conv", dtype="float32")(x)
    name = activation or ("sigmoid" if classes == 1 else "softmax")
    model = keras.Model(image, layers.Activation(name, name=name, dtype="float32")(x), name="small-unet")
    if bn_momentum is not None:
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = bn_momentum
    if not (max(encoder_dropout) if isinstance(encoder_dropout, tuple) else encoder_dropout):
        return model
    return insert_dropout(
        model,
        [f"{UNIT}_relu2"],
        encoder_dropout,
        kind="spatial" if spatial else kind,
        block_size=block_size,
        shared_across_batch=shared_across_batch,
        adjustable=adjustable,
        dropout_layer=dropout_layer,
        seed=seed,
    )
