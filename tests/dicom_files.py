"""DICOM files of pictures and stacks of them."""

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid


def write_dicom(path, array, *, frames=False, syntax=ExplicitVRLittleEndian, **attributes):
    """Write (H, W), (H, W, 3) or, with `frames`, (N, H, W) as DICOM of a patient who must not show anywhere."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=["1"])
    data.PatientName, data.PatientID = "Doe^Jane", "DOE-1970"
    colour = array.ndim == 3 and not frames
    data.Rows, data.Columns = array.shape[1:3] if frames else array.shape[:2]
    if frames:
        data.NumberOfFrames = len(array)
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = array.dtype.itemsize * 8
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    for name, value in attributes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.HighBit = attributes.get("HighBit", data.BitsStored - 1)
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax, array, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)
    return path
