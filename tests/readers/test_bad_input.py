"""Damaged files: each fault is one line, is counted and costs only its own case; flipped bits never end otherwise."""

import gzip
import io
import json
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from tests.fixtures import write_folder
from tests.readers.test_dicom import series
from universeg_jax.cli import main
from universeg_jax.data.dataset import open_dataset, read_report
from universeg_jax.errors import UserError
from universeg_jax.readers.dicom import read_dicom_image, read_label_stack
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.images import read_contour, read_image, read_label
from universeg_jax.readers.meta import read_meta
from universeg_jax.readers.volume_files import read_label_volume, read_volume

NOISE = np.random.default_rng(0).integers(0, 255, (12, 9)).astype(np.uint8)
VOXELS = np.random.default_rng(0).integers(0, 255, (4, 3, 3)).astype(np.int16)


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header announces so many pixels, with a few bytes of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 0, 0, 0, 0])) + chunk(b"IDAT", zlib.compress(b"0" * 99))
    )


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def test_unusable_images_are_dropped_one_by_one(tmp_path, capsys):
    folder = write_folder(tmp_path / "scans", count=19)
    (folder / "meta.json").write_text('{"labels": {"1": "a"}}')
    good = (folder / "images" / "p15_0.png").read_bytes()
    floats = np.full((20, 30), 0.5, np.float32)
    faults = {
        "p0_0": ("images", good[: len(good) // 2], "truncated"),
        "p1_0": ("images", b"", "empty"),
        "p2_0": ("images", b"GIF87a is no image", "damaged"),
        "p3_0": ("images", png_header(12_000, 12_000), "too many pixels"),
        "p4_0": ("images", encoded(np.zeros((20, 30), np.uint8)), "every pixel is the same"),
        "p5_0": ("labels", encoded(floats, "TIFF"), "not class ids"),
        "p6_0": ("labels", encoded(np.ones((20, 31), np.uint8)), "differ in size"),
        "p7_0": ("labels", encoded(np.full((20, 30, 3), [1, 2, 3], np.uint8)), "a label in colours"),
        "p8_0": ("images", tmp_path / "outside.png", "link out of its folder"),
        "p9_0": ("images", encoded(np.full((20, 30), np.nan, np.float32), "TIFF"), "NaN"),
        "p10_0": ("labels", encoded(np.ones((20, 30), np.uint8), "JPEG"), "a label in JPEG"),
        "p16_0": ("labels", None, "has no label"),
        "p17_0": ("images", None, "has no image"),
        "p18_0": ("images", good, "two files of one name"),
    }
    (folder / "images" / "p18_0.bmp").write_bytes(good)
    (tmp_path / "outside.png").write_bytes(good)
    for name, (part, what, _) in faults.items():
        path = folder / part / f"{name}.png"
        path.unlink()
        if isinstance(what, bytes):
            path.write_bytes(what)
        elif what:
            path.symlink_to(what)
    for part in ("images", "labels"):  # names of other alphabets are names
        (folder / part / "p11_0.png").rename(folder / part / "Łukasz 病人_0.png")
    arguments = ["--folder", str(folder), "--name", "d", "--data_dir", str(tmp_path / "data"), "--size", "16"]
    assert main(["build", *arguments]) == 0
    report = read_report(tmp_path / "data", "d")
    assert set(report.dropped) == set(faults)
    for name, (*_, problem) in faults.items():
        assert problem in report.dropped[name], report.dropped[name]
        assert "\n" not in report.dropped[name]
    assert set(open_dataset(tmp_path / "data", "d").index.subjects) == {"Łukasz 病人", "p12", "p13", "p14", "p15"}
    lines = [line for line in capsys.readouterr().err.splitlines() if "dropped" in line]
    assert sum(int(line.split("dropped ")[1].split(":")[0]) for line in lines) == len(faults)


def stack_folder(path: Path) -> Path:
    series(path / "scan", 2)
    (path / "stack").mkdir()
    for k in range(2):
        Image.new("L", (128, 128), k).save(path / "stack" / f"{k}.png")
    return path


def read_stack(file: Path) -> object:
    (file.parent / "stack" / "1.png").write_bytes(file.read_bytes())
    return read_label_stack(file.parent / "stack", file.parent / "scan")


def read_json_beside(file: Path) -> object:
    """Reads meta.json alone, then with its folder."""
    folder = file.parent / "folder"
    (folder / "meta.json").write_bytes(file.read_bytes())
    read_meta(folder)
    return read_folder(folder)


def read_dataset_json_beside(file: Path) -> object:
    (file.parent / "nnunet" / "dataset.json").write_bytes(file.read_bytes())
    return read_folder(file.parent / "nnunet")


def read_table_beside(file: Path) -> object:
    (file.parent / "table" / "who.csv").write_bytes(file.read_bytes())
    return read_folder(file.parent / "table")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """(folder that they need, file name → (its bytes, its reader)), all small."""
    path = stack_folder(tmp_path_factory.mktemp("samples"))
    labels = json.dumps({"labels": {"1": "a"}, "subjects": "^(p[0-9])", "axes": ["axial"], "window": [0, 9]}).encode()
    table = b"case,subject\n" + b"".join(b"p%d_0,s%d\n" % (i, i) for i in range(2))
    for name in ("folder", "table"):
        write_folder(path / name, count=2)
    (path / "table" / "meta.json").write_text('{"subjects": "who.csv", "labels": {"1": "a"}}')
    nnunet = write_folder(path / "nnunet", count=2)
    (nnunet / "images").rename(nnunet / "imagesTr")
    (nnunet / "labels").rename(nnunet / "labelsTr")
    for i in range(2):
        (nnunet / "imagesTr" / f"p{i}_0.png").rename(nnunet / "imagesTr" / f"p{i}_0_0000.png")
    spec = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "training": []}
    for kind in ("nrrd", "nhdr", "mha", "mhd"):
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS), path / f"v.{kind}")
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path / "v.nii")
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path / "v.nii.gz")
    nib.save(nib.MGHImage(VOXELS.astype(np.float32), np.eye(4)), path / "v.mgz")
    for pair in ("v", "damaged.v"):
        nib.save(nib.AnalyzeImage(VOXELS.astype(np.int16), np.eye(4)), path / f"{pair}.hdr")
    tifffile.imwrite(path / "v.tif", VOXELS.astype(np.uint16), photometric="minisblack")
    volumes = {f"v.{kind}": read_volume for kind in VOLUMES}
    kinds = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "gif": "GIF", "ppm": "PPM"}
    kinds |= {"webp": "WEBP", "jp2": "JPEG2000"}
    files = {name: ((path / name).read_bytes(), read) for name, read in volumes.items()}
    files["label.nii"] = (files["v.nii"][0], read_label_volume)
    files |= {f"a.{end}": (encoded(NOISE, kind), read_image) for end, kind in kinds.items()}
    files |= {f"label.{end}": (encoded(NOISE, kind), read_label) for end, kind in kinds.items()}
    files["a.ppm.gz"] = (gzip.compress(encoded(NOISE, "PPM"), mtime=0), read_image)
    files["contour.txt"] = (b"1.5 2.5\n7.25 3\n5 8.75\n", lambda file: read_contour(file, (12, 9)))
    files["x.dcm"] = ((path / "scan" / "0.dcm").read_bytes(), read_dicom_image)
    files["series.dcm"] = (files["x.dcm"][0], read_volume)
    files["stack.png"] = ((path / "stack" / "1.png").read_bytes(), read_stack)
    files["meta.json"] = (labels, read_json_beside)
    files["dataset.json"] = (json.dumps(spec).encode(), read_dataset_json_beside)
    files["who.csv"] = (table, read_table_beside)
    return path, files


VOLUMES = ("nrrd", "nhdr", "mha", "mhd", "nii", "nii.gz", "mgz", "hdr", "tif")
READERS = (
    *(f"v.{kind}" for kind in VOLUMES), "a.webp", "a.jp2", "label.webp", "label.jp2",
    "label.nii", "a.png", "a.jpg", "a.tif", "a.bmp", "a.gif",
    "a.ppm", "a.ppm.gz", "label.png", "label.jpg", "label.tif", "label.bmp", "label.gif", "label.ppm", "contour.txt",
    "x.dcm", "series.dcm", "stack.png", "meta.json", "dataset.json", "who.csv",
)  # fmt: skip


INDIRECT = ("stack.png", "meta.json", "dataset.json", "who.csv")  # read from a copy in another place


def flip(samples, name: str, seed: int) -> str:
    """Reads a file with three flipped bits: "" or the message of the error."""
    path, files = samples
    contents, read = files[name]
    data, rng = bytearray(contents), np.random.default_rng(seed)
    for position in [rng.integers(min(len(data), 64)), *rng.integers(0, min(len(data), 2000), 2)]:
        data[position] ^= 1 << rng.integers(8)
    damaged = path / f"damaged.{name}"
    damaged.write_bytes(bytes(data))
    if name == "v.mhd":
        (path / "v.raw").touch()
    start = time.perf_counter()
    try:
        read(damaged)
        outcome = ""
    except UserError as error:
        outcome = str(error)
        assert outcome
        if name not in INDIRECT:
            assert f"damaged.{name}" in outcome or "v.raw" in outcome  # the voxels of v.mhd
    assert time.perf_counter() - start < 20
    assert "\n" not in outcome
    return outcome


def check_flips(samples, name: str, count: int) -> None:
    assert set(samples[1]) == set(READERS)
    outcomes = [flip(samples, name, seed) for seed in range(count)]
    good, read = samples[1][name]
    (samples[0] / f"damaged.{name}").write_bytes(good)
    assert any(outcomes)  # some damage was seen
    if name not in ("label.jpg", "label.webp", "label.jp2"):  # which are refused
        assert read(samples[0] / f"damaged.{name}") is not None  # the flips left the reader as it was


@pytest.mark.parametrize("name", READERS)
def test_flipped_bits_end_in_one_line_or_nothing(samples, name):
    check_flips(samples, name, 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_thousand_flips_through_each_reader(samples, name):
    check_flips(samples, name, 1000)
