"""A network whose probabilities are tempered in the graph."""

import keras
from keras import ops

from ..conventions import LEAST_DOUBT


def at_temperature(model: keras.Model, temperature: float, multilabel: bool = False) -> keras.Model:
    """The network, which shares its layers with `model`, with its probabilities tempered; at 1 `model` itself.

    Args:
        multilabel: each of its channels is a probability by itself.

    Example:
        >>> plain = segdrop.build_unet("resnet18", encoder_weights=None)
        >>> at_temperature(plain, 1.5).layers[-1].name
        'temperature'
    """
    if temperature == 1:
        return model
    layer = TemperedProbabilities(temperature, multilabel, name="temperature")
    return keras.Model(model.input, layer(model.output), name=model.name)


@keras.saving.register_keras_serializable("segdrop")
class TemperedProbabilities(keras.layers.Layer):
    """Probabilities with their logits divided by a temperature: `scoring.temperature.tempered` in the graph.

    Args:
        temperature: positive.
        multilabel: each channel is a probability by itself.

    Input: float (..., C), 0..1; C = 1 is the probability of the foreground. Output: the same, float32.

    Example:
        >>> np.asarray(TemperedProbabilities(2.0)(np.array([[0.9]], "float32"))).round(4).tolist()
        [[0.75]]
    """

    def __init__(self, temperature: float, multilabel: bool = False, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.temperature, self.multilabel = float(temperature), multilabel

    def call(self, probabilities):
        if self.multilabel or probabilities.shape[-1] == 1:
            p = ops.clip(probabilities, LEAST_DOUBT, 1 - LEAST_DOUBT)
            return ops.sigmoid((ops.log(p) - ops.log(1 - p)) / self.temperature)
        return ops.softmax(ops.log(ops.maximum(probabilities, LEAST_DOUBT)) / self.temperature, axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature, "multilabel": self.multilabel}
