"""Which values images hold, and what a network gets of them: little, or other than in its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .dataset import Dataset

# Of 0..255: what the darkest and the brightest pixel of all images are apart at least. Dark images, too, have some
# bright pixels somewhere in the set; 12 bits in a type of 16 span 16, 14 bits 64, a CT in int16 about 16.
_NARROW = 64
_LOOKED_AT = 100  # training images whose means and deviations are taken
# Of 0..255, and as a factor: how far beyond the training images' an image's mean and its deviation may lie. Of those
# that were held out of five public sets a hundredth at most lay farther, with ten training images or more.
_MEAN_BEYOND, _DEVIATION_BEYOND = 32, 2
_NAMED = 5  # images that are named
_UNLIKE = 0.1  # share of the images from which it is said


@dataclass(frozen=True)
class Values:
    """The values of some images: each a lowest and a highest one.

    Attributes:
        stored: of all pixels, as the files hold them.
        mapped: of all pixels, in 0..255 by the intensity rule.
        means, deviations: of the images' means and standard deviations, in 0..255.
    """

    stored: tuple[float, float]
    mapped: tuple[float, float]
    means: tuple[float, float]
    deviations: tuple[float, float]

    @classmethod
    def from_json(cls, stored: Mapping) -> "Values":
        return cls(**{name: tuple(pair) for name, pair in stored.items()})

    @classmethod
    def of_all(cls, images: Sequence["Values"]) -> "Values":
        """Those of several images together."""
        pairs = np.array([(one.stored, one.mapped, one.means, one.deviations) for one in images])
        return cls(*zip(pairs[..., 0].min(axis=0).tolist(), pairs[..., 1].max(axis=0).tolist(), strict=True))

    def like(self, training: "Values") -> bool:
        """Whether an image's mean and deviation are such as those of training images."""
        (darkest, brightest), (flattest, strongest) = training.means, training.deviations
        beyond = max(_MEAN_BEYOND, (brightest - darkest) / 2)
        return (
            darkest - beyond <= self.means[0] <= brightest + beyond
            and flattest / _DEVIATION_BEYOND <= self.deviations[0] <= strongest * _DEVIATION_BEYOND
        )


@dataclass
class Reading:
    """The values of one image, which is read in parts."""

    count: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(2))
    extremes: list[float] = field(default_factory=list)
    mapped_extremes: list[float] = field(default_factory=list)

    def add(self, stored: np.ndarray, mapped: np.ndarray) -> None:
        self.count += mapped.size
        self.sums += mapped.sum(dtype=np.float64), np.square(mapped, dtype=np.float32).sum(dtype=np.float64)
        self.extremes += [float(stored.min()), float(stored.max())]
        self.mapped_extremes += [float(mapped.min()), float(mapped.max())]

    @property
    def values(self) -> Values:
        mean, square = self.sums / self.count
        deviation = float(np.sqrt(max(square - mean**2, 0)))
        pairs = ((min(pair), max(pair)) for pair in (self.extremes, self.mapped_extremes))
        return Values(*pairs, (float(mean), float(mean)), (deviation, deviation))


def values_of(dataset: Dataset, indices: np.ndarray) -> Values:
    """The values of a data set's images, their means and deviations from a hundred of them at most, evenly spread."""
    looked_at = np.linspace(0, len(indices) - 1, min(len(indices), _LOOKED_AT)).round().astype(int)
    images = []
    for index in indices[looked_at].tolist():
        reading, image = Reading(), dataset.read(index)[0]
        reading.add(image, image)
        images.append(reading.values)
    some = Values.of_all(images)
    return Values(*dataset.extremes_of(indices.tolist()), some.means, some.deviations)


def faint_images(values: Values, what: str, rule: str) -> tuple[str, ...]:
    """What the user has to know of images whose values hardly differ once the intensity rule has mapped them.

    Args:
        what: the images in words.
    """
    (low, high), (darkest, brightest) = values.stored, values.mapped
    if brightest - darkest >= _NARROW:
        return ()
    other = ", or another --intensity-window" if rule == "window" else ""
    return (
        f"The {what} hold values from {low:g} to {high:g}, of which --intensity {rule} makes {darkest:.4g} to "
        f"{brightest:.4g} of 0..255, which is little to see; train with --intensity percentiles{other}.",
    )


def constant_images(names: Sequence[str]) -> tuple[str, ...]:
    """What the user has to know of images, of these names, in which all pixels have one value.

    Example:
        >>> constant_images(["a", "b"])
        ('2 image(s) have one value in all pixels: a, b; look whether their files are whole.',)
    """
    if not names:
        return ()
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(names[:_NAMED]) + more
    return (f"{len(names)} image(s) have one value in all pixels: {listed}; look whether their files are whole.",)


def unlike_training(images: Sequence[Values], training: Values, rule: str) -> tuple[str, ...]:
    """What the user has to know of images to predict whose values are other than those of the training."""
    unlike = [image for image in images if not image.like(training)]
    if len(unlike) <= _UNLIKE * len(images):
        return ()
    return (
        f"{len(unlike)} of {len(images)} image(s) have other values than those of the training: "
        f"{_in_words(Values.of_all(unlike))}, in training {_in_words(training)} (--intensity {rule}); predict images "
        "such as the network was trained on, or train it on such as these.",
    )


def _in_words(values: Values) -> str:
    mean, deviation = (
        " to ".join(dict.fromkeys(f"{end:.3g}" for end in pair)) for pair in (values.means, values.deviations)
    )
    low, high = values.stored
    return f"{low:g} to {high:g}, which become a mean of {mean} and a deviation of {deviation} in 0..255"
