"""DICOM."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .faults import Fault, no_warnings, shielded, without_log
from .picture import MAX_UNPACKED, Picture, as_plain, channels_of, check_size, millimetres

DICOM_SUFFIXES = (".dcm", ".dicom")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def open_dicom(path: Path) -> Picture:
    with shielded("DICOM"):
        import pydicom

        with _lenient():
            _check_unpacked(path)
            return _dicom_picture(path, pydicom.dcmread(path))


def _check_unpacked(path: Path) -> None:
    """Refuse what is deflated as a whole, which pydicom unpacks however large it becomes."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacked, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(144 + meta.FileMetaInformationGroupLength)
        while part := unpacked.unconsumed_tail or file.read(2**16):
            total += len(unpacked.decompress(part, 2**20))
            if total > MAX_UNPACKED:
                raise Fault(f"unpacks to more than {MAX_UNPACKED / 2**30:g} GiB; save it uncompressed")


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """pydicom neither warns of nor logs what breaks the standard: it may quote it."""
    from pydicom import config

    with without_log("pydicom"), no_warnings():
        before = config.settings.reading_validation_mode
        config.settings.reading_validation_mode = config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode = before


def _dicom_picture(path: Path, data) -> Picture:
    _check_dicom_pixels(data)
    height, width, frames = int(data.Rows), int(data.Columns), int(data.get("NumberOfFrames") or 1)
    check_size(height, width, frames)
    _check_frames(data, frames)
    finish, value_range, mirror = _dicom_values(data, frames)

    def frame(index: int) -> np.ndarray:
        with shielded("DICOM"), _lenient():
            return finish(_decoded(data, index), index)

    def first(index: int) -> np.ndarray:
        return array

    array = finish(_decoded(data, 0), 0)
    if frames == 1:
        for name in set(PIXELS) & set(data.dir()):
            del data[name]  # decoded already
    window = _dicom_window(data) if array.ndim == 2 else None
    if window and mirror is not None:
        window = mirror - window[1], mirror - window[0]
    patient = str(data.get("PatientID") or "").strip()
    return Picture(
        path,
        height,
        width,
        frames if frames > 1 else None,
        channels_of(array),
        array.dtype,
        spacing=_dicom_spacing(data),
        patient=patient or None,
        value_range=value_range,
        window=window,
        _slice=frame if frames > 1 else first,
    )


def _decoded(data, index: int) -> np.ndarray:
    """A frame as it is stored."""
    from pydicom.pixels import pixel_array

    count = int(data.Rows) * int(data.Columns)
    if data.BitsAllocated != 1 or data.file_meta.TransferSyntaxUID.is_encapsulated or count % 8 == 0:
        return pixel_array(data, index=index)
    begin, end = index * count, (index + 1) * count  # in bits: pydicom takes too few bytes of such frames
    content = np.frombuffer(data.PixelData, np.uint8)[begin // 8 : -(-end // 8)]
    return np.unpackbits(content, bitorder="little")[begin % 8 :][:count].reshape(data.Rows, data.Columns)


def _check_frames(data, frames: int) -> None:
    """Refuse a file that holds more frames than it counts: pydicom leaves the others out."""
    from pydicom.encaps import parse_basic_offsets

    content = next(data[name].value for name in PIXELS if name in data)
    bits = int(data.Rows) * int(data.Columns) * int(data.SamplesPerPixel) * int(data.BitsAllocated)
    counted = -(-bits * frames // 8)
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        held = len(parse_basic_offsets(content))
    else:  # of an odd number of bytes one more stands behind them
        held = 8 * len(content) // bits if len(content) > counted + counted % 2 else 0
    if held > frames:
        raise Fault(f"holds {held} frames, but counts {frames}; correct its NumberOfFrames")


def _check_dicom_pixels(data) -> None:
    from pydicom.pixels import get_decoder

    if not any(name in data for name in PIXELS):
        raise Fault("has no pixel data")
    syntax = data.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        name = "in a way unknown here" if syntax.name == str(syntax) else f"as {syntax.name}"
        raise Fault(f'is compressed {name}; decompress it, or `pip install "pylibjpeg[all]"`')


def _dicom_values(data, frames: int):
    """What turns a decoded frame into the values to read, their range, and the sum that MONOCHROME1 is turned about."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    kind, samples = data.PhotometricInterpretation, int(data.SamplesPerPixel)
    stored = _stored_range(data)
    if kind == "PALETTE COLOR":
        top = 2 ** int(data.RedPaletteColorLookupTableDescriptor[2]) - 1
        return lambda array, index: as_plain(apply_color_lut(array, data)[..., :3]), (0.0, float(top)), None
    if samples == 3:
        if kind not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"):
            raise Fault("has colours that are neither RGB nor YBR; save it as RGB")
        return lambda array, index: as_plain(array), stored, None
    if samples != 1:
        raise Fault(f"has {samples} samples per pixel; save it as grey or RGB")

    if "ModalityLUTSequence" in data:
        top = 2 ** int(data.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
        low, high, whole = 0.0, float(top), True
        rescaled = lambda array, index: apply_modality_lut(array, data)  # noqa: E731
    else:
        steps = [_dicom_rescale(data, index) for index in range(frames)]
        ends = [slope * end + intercept for slope, intercept in steps for end in stored or (0.0, 0.0)]
        low, high = min(ends), max(ends)
        whole = stored is not None and all(number.is_integer() for step in steps for number in step)

        def rescaled(array, index):
            slope, intercept = steps[index]
            return array if steps[index] == (1.0, 0.0) else array * slope + intercept  # exact in float64

    integers = [np.iinfo(integer) for integer in (np.uint8, np.uint16, np.int16)]
    fitting = [integer.dtype for integer in integers if integer.min <= low and high <= integer.max]
    dtype = fitting[0] if whole and fitting else np.dtype(np.float32)
    mirror = None if kind != "MONOCHROME1" else low + high if stored else 0.0

    def finish(array: np.ndarray, index: int) -> np.ndarray:
        array = rescaled(array, index)
        if mirror is not None:
            array = mirror - array.astype(np.float64)
        return as_plain(array.astype(dtype))

    return finish, (low, high) if whole else None, mirror


def _stored_range(data) -> tuple[float, float] | None:
    if "PixelData" not in data:
        return None
    bits, high = int(data.BitsStored), int(data.get("HighBit") or 0)
    if high >= bits:  # pydicom takes the lowest bits wherever the values are
        raise Fault(f"has values of {bits} bits whose highest is bit {high}; save it with HighBit {bits - 1}")
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if data.PixelRepresentation else (0.0, 2.0**bits - 1)


def _functional(data, group: str, frame: int = 0):
    """The item of a functional group that holds for a frame, of multi-frame files that have them."""
    shared = data.get("SharedFunctionalGroupsSequence") or []
    own = (data.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    items = [item[group][0] for item in (*own, *shared) if group in item and item[group].value]
    return items[0] if items else {}


def _dicom_rescale(data, frame: int) -> tuple[float, float]:
    source = data if "RescaleSlope" in data else _functional(data, "PixelValueTransformationSequence", frame)
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _dicom_window(data) -> tuple[float, float] | None:
    source = data if "WindowCenter" in data else _functional(data, "FrameVOILUTSequence")
    center, width = (_first(source.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or not width >= 1:
        return None
    if source.get("VOILUTFunction") == "LINEAR_EXACT":
        return center - width / 2, center + width / 2
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2  # PS3.3 C.11.2.1.2.1


def _first(value) -> float | None:
    values = value if hasattr(value, "__getitem__") and not isinstance(value, str) else [value]
    first = values[0] if len(values) else None
    return None if first in (None, "") else float(first)


def _dicom_spacing(data) -> tuple[float, float] | None:
    measures = _functional(data, "PixelMeasuresSequence")
    for value in (data.get("PixelSpacing"), data.get("ImagerPixelSpacing"), measures.get("PixelSpacing")):
        if value:
            return millimetres(value)
    return None
