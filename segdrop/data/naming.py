"""What the names of folders and files say: image or mask, which split, whose annotation."""

import functools
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from ..images.opening import stem

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FOLDER_SPLITS = {**SPLITS, "tr": "train", "ts": "test"}  # imagesTr, labelsTs
_PERSON = "manual annotator expert observer rater reader".split()
_MASK = (
    "mask masks label labels lbl annotation annotations annot annots anno gt groundtruth truth seg segs segm "
    "segmentation segmentations target targets"
).split() + _PERSON
_IMAGE = "image images img imgs original originals orig input inputs photo photos picture pictures scan scans".split()
ROLES = {*_MASK, *_IMAGE, "ground"}  # words of a folder that say what is in it
_VOLUME = "volume vol".split()  # of files, not of folders
_BREAK = r"(?:[_\-. ]+|(?<=[a-z\d])(?=[A-Z]))"  # between words, also in imageMask
_SOME_MASK, _SOME_IMAGE = (rf"(?i:{'|'.join(words)})" for words in (_MASK, _IMAGE + _VOLUME))
_MASK_END = re.compile(rf"(.+?){_BREAK}(?:(\d+)(?:st|nd|rd|th)[A-Za-z]*|{_SOME_MASK}[_\-. ]?(\d*))")
_MASK_START = re.compile(rf"{_SOME_MASK}(?:[_\-. ]+|(?=\d))(.+)")
_IMAGE_END = re.compile(rf"(.+?){_BREAK}(?:\d{{4}}|{_SOME_IMAGE}|(?i:{'|'.join(SPLITS)}))")  # x_0000, x_training
_IMAGE_START = re.compile(rf"{_SOME_IMAGE}(?:[_\-. ]+|(?=\d))(.+)")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_GLUED = re.compile(rf"^({'|'.join(SPLITS)})({'|'.join(_MASK + _IMAGE)})$")  # trainannot


@dataclass(frozen=True)
class Named:
    """A file, and what its name says.

    Attributes:
        path: relative to the data set's folder, with slashes.
        role: what it is; "view" is the field of view, outside of which nothing was annotated.
        split: of its folders, or None.
        annotator: whose mask it is: a number or initials, or None.
        homes: its folders without what says role and split: word by word, by whole folders, and none at all.
        stems: its name: as it is, and with less and less of what says its role.
    """

    path: str
    role: Literal["image", "mask", "view"]
    split: str | None
    annotator: str | None
    homes: tuple[tuple, ...]
    stems: tuple[str, ...]

    @property
    def folder(self) -> str:
        return PurePosixPath(self.path).parent.as_posix()


def words_of(name: str) -> list[str]:
    """The words of a folder's or file's name, in small letters.

    Example:
        >>> words_of("ISIC2018_Training_GroundTruth"), words_of("trainannot")
        (['isic', '2018', 'training', 'ground', 'truth'], ['train', 'annot'])
    """
    return [part for word in _WORD.findall(name) for part in _GLUED.sub(r"\1 \2", word.lower()).split()]


@functools.lru_cache  # the files of a folder come one after the other
def role_of_folders(folders: tuple[str, ...]) -> tuple[str | None, str]:
    """Whether the innermost folder that says so holds images or masks, and which folder that is."""
    for folder in reversed(folders):
        words = set(words_of(folder))
        if words & set(_MASK):
            return "mask", folder
        if words & set(_IMAGE):
            return "image", folder
    return None, ""


def is_view(folder: str, manual: bool) -> bool:
    """Whether a folder of masks holds fields of view; `manual`: whether what was annotated by hand lies elsewhere."""
    words = set(words_of(folder)) - set(_FOLDER_SPLITS)
    return "fov" in words or (manual and words <= {"mask", "masks"})


def is_manual(folder: str) -> bool:
    return "manual" in words_of(folder)


@functools.lru_cache
def split_of(folders: tuple[str, ...]) -> str | None:
    """The split that the innermost folder names that names one."""
    named = [_FOLDER_SPLITS[word] for folder in folders for word in words_of(folder) if word in _FOLDER_SPLITS]
    return named[-1] if named else None


def without_mask_word(name: str) -> str | None:
    """The stem that a mask's file is named after; None where nothing in its name says that it is a mask.

    Example:
        >>> [without_mask_word(name) for name in ("21_manual1", "Image_01L_2ndHO", "mask_7", "benign (1)_mask_2", "a")]
        ['21', 'Image_01L', '7', 'benign (1)', None]
    """
    found = _MASK_END.fullmatch(name) or _MASK_START.fullmatch(name)
    return found[1] if found else None


def without_image_word(name: str) -> str:
    """The stem without what says that it is an image, a first channel, or of a split.

    Example:
        >>> [without_image_word(name) for name in ("21_training", "case0_0000", "image_7")]
        ['21', 'case0', '7']
    """
    found = _IMAGE_END.fullmatch(name) or _IMAGE_START.fullmatch(name)
    return found[1] if found else name


def name_file(path: str, folders: tuple[str, ...], role: Literal["image", "mask", "view"]) -> Named:
    """What a file's name says, once its role is known; `folders`: those that not all files have in common."""
    name = stem(path)
    bare = name if role == "image" else without_mask_word(name) or name
    parts = [word for word in words_of(name) if word not in (*_MASK, *_IMAGE, *_VOLUME, *SPLITS)]
    said = {*_MASK, *_IMAGE, *_FOLDER_SPLITS, "ground", "fov"}
    split = split_of(folders)
    by_word = tuple(rest for folder in folders if (rest := tuple(w for w in words_of(folder) if w not in said)))
    by_folder = tuple(folder for folder in folders if not said & set(words_of(folder)))
    return Named(
        path=path,
        role=role,
        split=split,
        annotator=_annotator(role_of_folders(folders)[1], name) if role == "mask" else None,
        homes=((split, by_word), (split, by_folder), ()),
        stems=(name, bare, without_image_word(bare), "_".join(parts)),
    )


def _annotator(folder: str, name: str) -> str | None:
    words = words_of(folder)
    ordinal = re.search(r"(\d+)(?:st|nd|rd|th)", folder) or re.search(rf"(?:{'|'.join(_PERSON)})[_\- ]?(\d+)", folder)
    if ordinal:
        return ordinal[1]
    initials = [word for word in words if word not in (*_MASK, *_IMAGE, *_FOLDER_SPLITS, "ground")]
    if len(initials) == 1 and len(initials[0]) <= 3:
        return initials[0]
    found = _MASK_END.fullmatch(name)
    return (found[2] or (None if may_be_object(name) else found[3]) or None) if found else None


def may_be_object(name: str) -> bool:
    """Whether the number at the end of a mask's name, if any, is an object's and not an annotator's."""
    return re.search(r"masks?[_\-. ]?\d*$", name, re.IGNORECASE) is not None
