"""DICOM: what a screen would show, by hand and as pydicom; nobody's name; nothing hostile passes."""

import io
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from PIL import Image  # noqa: E402
from pydicom import Dataset  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless  # noqa: E402

from tests.data.published_medical import mimic_cxr  # noqa: E402
from tests.fuzzing import faults, in_children, mutate  # noqa: E402
from tuwen.data import images, jpeg  # noqa: E402
from tuwen.data.corpus import BrokenImage  # noqa: E402
from tuwen.data.open import open_corpus, splits_of  # noqa: E402

SECRET = "MUSTERMANN^ERIKA"


def dicom(values: np.ndarray, kind="MONOCHROME2", syntax=ExplicitVRLittleEndian, pixels=None, **more) -> bytes:
    """A file of [H, W] (or [frames, H, W], or [H, W, 3]) whole numbers, with a patient's name and birthday."""
    data = Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = "1.2", "1.2.3"
    data.PatientName, data.PatientID, data.PatientBirthDate = SECRET, "4711-SECRET", "19640812"
    data.ReferringPhysicianName, data.InstitutionName = SECRET, SECRET
    data.SamplesPerPixel = 3 if values.shape[-1] == 3 and kind not in ("MONOCHROME1", "MONOCHROME2") else 1
    data.Rows, data.Columns = values.shape[-2:] if data.SamplesPerPixel == 1 else values.shape[:2]
    data.BitsAllocated = data.BitsStored = values.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(values.dtype.kind == "i")
    data.PhotometricInterpretation, data.PlanarConfiguration = kind, 0
    if values.ndim == 3 and data.SamplesPerPixel == 1:
        data.NumberOfFrames = len(values)
    data.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2) if pixels is None else pixels
    data["PixelData"].VR = "OW" if pixels is None else "OB"
    for name, value in more.items():
        setattr(data, name, value)
    if "BitsStored" in more:
        data.HighBit = data.BitsStored - 1
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def greys(data: bytes) -> list:
    image = images.decode(data)
    assert (image[0] == image[1]).all()
    assert (image[0] == image[2]).all()
    assert images.probe(data) == tuple(image.shape[1:])
    return image[0].tolist()


U16 = np.array([[0, 100, 200], [300, 400, 65535]], dtype=np.uint16)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_windows_by_hand(syntax):
    """PS3.3 C.11.2.1.2 with centre 200, width 201: to 99.5 black, from 299.5 white, a line between."""
    made = greys(dicom(U16, syntax=syntax, WindowCenter="200", WindowWidth="201"))
    assert made == [[0, 1, 128], [255, 255, 255]]  # 255 * 0.0025 + 0.5 = 1.1; 255 * 0.5025 + 0.5 = 128.6
    exact = greys(dicom(U16, syntax=syntax, WindowCenter="200", WindowWidth="200", VOILUTFunction="LINEAR_EXACT"))
    assert exact == [[0, 0, 128], [255, 255, 255]]
    bent = greys(dicom(U16, syntax=syntax, WindowCenter="200", WindowWidth="200", VOILUTFunction="SIGMOID"))
    assert bent == [[5, 30, 128], [225, 250, 255]]  # 255 / (1 + e^4) = 4.6, 255 / (1 + e^2) = 30.4
    assert greys(dicom(U16, syntax=syntax, WindowCenter="200", WindowWidth="1")) == [[0, 0, 255], [255, 255, 255]]


def test_the_first_of_several_windows():
    assert greys(dicom(U16, WindowCenter=["200", "9"], WindowWidth=["201", "4"])) == [[0, 1, 128], [255, 255, 255]]


def test_inverted_greyscale():
    plain = greys(dicom(U16, WindowCenter="200", WindowWidth="201"))
    turned = greys(dicom(U16, kind="MONOCHROME1", WindowCenter="200", WindowWidth="201"))
    assert turned == [[255, 254, 127], [0, 0, 0]]
    assert (np.array(plain) + np.array(turned) == 255).all()


def test_rescale_slope_comes_before_the_window():
    """2 x - 200 of 100, 200, 300 are 0, 200, 400."""
    made = greys(dicom(U16, RescaleSlope="2", RescaleIntercept="-200", WindowCenter="200", WindowWidth="201"))
    assert made == [[0, 0, 128], [255, 255, 255]]
    down = greys(dicom(U16, RescaleSlope="-1", RescaleIntercept="0"))  # no window: least to largest
    assert [row[0] for row in down] == [255, 254]
    assert down[1][2] == 0


def test_sixteen_bits_without_a_window():
    """Least to largest; twelve stored bits; signed; padding is no value; eight bits are as they are."""
    assert greys(dicom(np.array([[1000, 1500, 2000]], dtype=np.uint16))) == [[0, 128, 255]]
    assert greys(dicom(np.array([[-1000, 0, 1000]], dtype=np.int16))) == [[0, 128, 255]]
    assert greys(dicom(np.array([[7, 7, 7]], dtype=np.uint16))) == [[0, 0, 0]]
    twelve = np.array([[0, 2048, 4095 + 4096]], dtype=np.uint16)  # an overlay in the unused bits
    assert greys(dicom(twelve, BitsStored=12)) == [[0, 128, 255]]
    padded = np.array([[-2000, 0, 500, 1000]], dtype=np.int16)
    assert greys(dicom(padded, PixelPaddingValue=-2000)) == [[0, 0, 128, 255]]
    assert greys(dicom(np.array([[0, 100, 200]], dtype=np.uint8))) == [[0, 100, 200]]
    assert greys(dicom(np.array([[0, 100, 255]], dtype=np.uint8), kind="MONOCHROME1")) == [[255, 155, 0]]


def test_of_several_frames_the_middle_one():
    frames = np.stack([np.full((2, 4), 40 * n, dtype=np.uint8) for n in range(5)])
    assert greys(dicom(frames)) == [[80] * 4] * 2
    assert greys(dicom(frames[:4])) == [[40] * 4] * 2
    assert greys(dicom(frames[:1])) == [[0] * 4] * 2


def test_rows_are_scaled_in_blocks_as_all_at_once(monkeypatch):
    values = np.random.default_rng(0).integers(0, 4000, (37, 11), dtype=np.uint16)
    whole = greys(dicom(values))
    monkeypatch.setattr("tuwen.data.dicom._BLOCK", 25)
    assert greys(dicom(values)) == whole


FILES = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm", "CT_small.dcm", "693_J2KI.dcm", "JPEG2000.dcm")
FILES = (*FILES, "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm", "MR_small_jp2klossless.dcm")


@pytest.mark.parametrize("name", FILES)
def test_grey_as_pydicom_shows_it(name):
    """The library's own files: uncompressed, RLE, JPEG 2000, signed and not."""
    path = get_testdata_file(name, download=False)
    data = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data).astype(np.float64)
    ours = np.array(greys(Path(path).read_bytes()), dtype=np.float64)
    if data.get("WindowWidth") is None:
        low, high = shown.min(), shown.max()
    else:  # what the library makes of black and white
        signed, bits = int(data.PixelRepresentation), int(data.BitsStored)
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        slope, intercept = float(data.get("RescaleSlope") or 1), float(data.get("RescaleIntercept") or 0)
        low, high = (end * slope + intercept for end in ends)
    assert np.abs(ours - 255 * (shown - low) / (high - low)).max() <= 0.51


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_colours_as_pydicom_shows_them(name):
    path = get_testdata_file(name, download=False)
    shown = pydicom.dcmread(path).pixel_array
    assert (
        images.decode(Path(path).read_bytes()).permute(1, 2, 0).numpy() == (shown[0] if shown.ndim > 3 else shown)
    ).all()


def test_a_table_in_place_of_a_window():
    values = np.array([[0, 1, 2, 3]], dtype=np.uint8)
    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.add_new("LUTData", "US", [250, 10, 20, 255])
    assert greys(dicom(values, VOILUTSequence=pydicom.Sequence([table]))) == [[250, 10, 20, 255]]
    rescaled = Dataset()
    rescaled.LUTDescriptor = [4, 0, 16]
    rescaled.add_new("LUTData", "US", [0, 1000, 3000, 4000])
    assert greys(dicom(values, ModalityLUTSequence=pydicom.Sequence([rescaled]))) == [[0, 64, 191, 255]]


def test_windows_of_all_frames():
    item, window = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = "200", "201"
    item.FrameVOILUTSequence = pydicom.Sequence([window])
    group = pydicom.Sequence([item])
    assert greys(dicom(U16, SharedFunctionalGroupsSequence=group)) == [[0, 1, 128], [255, 255, 255]]


class TestNobodysName:
    def test_personal_elements_are_not_read(self, monkeypatch):
        read = []
        whole = pydicom.dcmread
        monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: read.append(whole(*a, **k)) or read[-1])
        images.decode(dicom(U16))
        images.probe(dicom(U16))
        assert len(read) == 2
        for header in read:
            assert SECRET not in str(header)
            assert "SECRET" not in str(header)
            assert not {"PatientName", "PatientID", "PatientBirthDate", "InstitutionName"} & set(header.dir())

    def test_records_and_complaints_do_not_tell(self, tmp_path):
        mimic_cxr(tmp_path, ending="dcm")  # JPEGs by that ending
        pictures = sorted(tmp_path.rglob("*.dcm"))
        for n, path in enumerate(pictures):
            path.write_bytes(dicom(U16 + n, WindowCenter="200", WindowWidth="201"))
        pictures[0].write_bytes(pictures[0].read_bytes()[:-4])
        seen = ""
        for split in splits_of(f"mimic-cxr:{tmp_path}"):
            corpus = open_corpus(f"mimic-cxr:{tmp_path}", split, "skip")
            seen += str([(corpus.record(row), corpus.image(row).shape) for row in range(len(corpus))])
            seen += str([str(fault) for fault in corpus.faults])
        assert "truncated" in seen
        assert "MUSTERMANN" not in seen
        assert "4711" not in seen


def reason(data: bytes, **options) -> str:
    with pytest.raises(BrokenImage) as caught:
        images.decode(data, **options)
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "MUSTERMANN" not in str(caught.value)
    return caught.value.reason


class TestHostile:
    def test_what_is_not_read(self):
        assert reason(dicom(U16)[:-6]) == "truncated"
        assert reason(dicom(U16), max_pixels=5) == "too large"
        assert reason(dicom(U16, kind="PALETTE COLOR")) == "not a picture"
        assert reason(dicom(U16, BitsStored=17)) == "not a picture"
        assert reason(dicom(U16, NumberOfFrames=10**9)) == "damaged"
        assert reason(dicom(U16, NumberOfFrames=1000)) == "truncated"
        assert reason(dicom(U16, Rows=0)) == "damaged"
        assert reason(dicom(U16, RescaleSlope="1e308", RescaleIntercept="1e308")) == "damaged"
        assert reason(bytes(128) + b"DICM") == "damaged"
        assert reason(Path(get_testdata_file("image_dfl.dcm", download=False)).read_bytes()) == "not a picture"
        assert reason(Path(get_testdata_file("ExplVR_BigEnd.dcm", download=False)).read_bytes()) == "not a picture"
        with pytest.raises(BrokenImage, match="truncated"):
            images.probe(dicom(U16)[:-20])

    def test_without_pydicom(self, monkeypatch):
        data = dicom(U16)
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(BrokenImage, match=r"install tuwen\[medical\]"):
            images.decode(data)

    def test_frames_larger_than_the_header_says(self):
        """A bomb of JPEG under a small header is seen before it is decoded; so is one of RLE while it is unpacked."""
        out = io.BytesIO()
        Image.new("L", (5000, 4000)).save(out, "JPEG")
        small = np.zeros((4, 4), dtype=np.uint8)
        assert reason(dicom(small, syntax=JPEGBaseline8Bit, pixels=encapsulate([out.getvalue()]))) == "damaged"
        assert (
            reason(dicom(small, syntax=JPEGBaseline8Bit, pixels=encapsulate([out.getvalue()])), max_pixels=99)
            == "too large"
        )
        bomb = np.array([1, 64, *[0] * 14], dtype="<u4").tobytes() + b"\x81\x00" * 2_000_000  # 256 MB unpacked
        tracemalloc.start()
        began = time.monotonic()
        assert greys(dicom(small, syntax=RLELossless, pixels=encapsulate([bomb]))) == [[0] * 4] * 4
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 64 * 2**20
        assert time.monotonic() - began < 5
        short = np.array([1, 64, *[0] * 14], dtype="<u4").tobytes() + b"\x80" * 1000
        assert reason(dicom(small, syntax=RLELossless, pixels=encapsulate([short]))) == "truncated"
        assert reason(dicom(small, syntax=RLELossless, pixels=encapsulate([b"\x02" + bytes(80)]))) == "damaged"

    def test_slow_pixels_are_known_as_such(self):
        path = get_testdata_file("693_J2KI.dcm", download=False)
        assert jpeg.is_jpeg2000(Path(path).read_bytes())
        assert not jpeg.is_jpeg2000(dicom(U16))

    def test_mutations(self):
        """Each ends with a picture or a line, never otherwise, in a process of its own."""
        assert faults(in_children(range(150), mutated)) == {}


def mutated(number: int) -> str:
    import random

    dice = random.Random(number)
    small = np.arange(64, dtype=np.uint16).reshape(8, 8)
    kinds = [dicom(small, WindowCenter="20", WindowWidth="30"), dicom(small, syntax=ImplicitVRLittleEndian)]
    kinds += [Path(get_testdata_file("MR_small_RLE.dcm", download=False)).read_bytes()]
    data = mutate(kinds[number % 3], dice)
    if data[128:132] != b"DICM":
        return "line"
    try:
        images.probe(data)
        images.decode(data)
    except BrokenImage as error:
        return "line" if "\n" not in str(error) and len(str(error)) < 400 else "flood"
    return "read"
