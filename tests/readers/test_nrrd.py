"""NRRD: every header is read and written as SimpleITK reads it."""

import gzip
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from universeg_jax.readers import nrrd
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.raw_voxels import read_voxels
from universeg_jax.readers.volume_files import read_label_volume, read_volume, stored_type, write_like
from universeg_jax.readers.volumes import LPS_TO_RAS, make_affine

DATA = np.random.default_rng(0).integers(0, 200, (3, 4, 5))  # [I, J, K]
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
OBLIQUE = " ".join(f"({x:.17g},{y:.17g},{z:.17g})" for x, y, z in (TURN * (0.7, 1.3, 2.5)).T)
PLACE = f"space directions: {OBLIQUE}\nspace origin: (10.25,-20.5,0.1)\n"
HEADERS = {
    "LPS": f"space: left-posterior-superior\n{PLACE}kinds: domain domain domain\n",
    "RAS": f"space: right-anterior-superior\n{PLACE}kinds: space space space\n",
    "LAS": f"space: left-anterior-superior\n{PLACE}",
    "short name": f"space: RAS\n{PLACE}",
    "scanner": f"space: scanner-xyz\n{PLACE}",
    "no name": f"space dimension: 3\n{PLACE}",
    "units": f'space: left-posterior-superior\nspace units: "mm" "mm" "mm"\n{PLACE}',
    "spacings": "spacings: 0.5 2 3.25\n",
    "cells": "spacings: 0.5 2 3.25\naxis mins: 1 -2 3\n",
    "nodes": "spacings: 0.5 2 3.25\naxis mins: 1 -2 3\ncenterings: node node node\n",
    "some spacings": "spacings: 0.5 2 nan\n",
    "nothing": "",
    "comments": f"# of a program\nspace: left-posterior-superior\n{PLACE}key:=spacings: 9 9 9\n",
}


def write(path, fields, data=DATA, kind="short", encoding="raw", line="\n", sizes="3 4 5", skip=b""):
    code = nrrd.CODES[kind]
    endian = "big" if "endian: big" in fields else "little"
    held = np.asarray(data, (">" if endian == "big" else "<") + code).tobytes(order="F")
    if encoding == "ascii":
        held = b" ".join(str(x).encode() for x in np.asarray(data, code).ravel(order="F").tolist())
    held = gzip.compress(held) if encoding in ("gzip", "gz") else held
    fields = f"NRRD0004\ntype: {kind}\ndimension: {len(sizes.split())}\nsizes: {sizes}\nencoding: {encoding}\n{fields}"
    fields += "" if "endian" in fields else "endian: little\n"
    path.write_bytes((fields + "\n").replace("\n", line).encode() + skip + held)
    return path


def of_itk(path):
    """(data [I, J, K], affine in RAS+) as SimpleITK reads a file."""
    image = sitk.ReadImage(str(path))
    matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return sitk.GetArrayFromImage(image).T, LPS_TO_RAS @ make_affine(matrix, np.array(image.GetOrigin()))


@pytest.mark.parametrize("name", HEADERS)
def test_a_volume_lies_where_simpleitk_sees_it(tmp_path, name):
    path = write(tmp_path / "a.nrrd", HEADERS[name])
    data, affine = of_itk(path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.file_data(), data)
    np.testing.assert_allclose(volume.file_affine(), affine, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("name", HEADERS)
def test_a_mask_lies_where_its_image_does(tmp_path, name):
    source, target = write(tmp_path / "a.nrrd", HEADERS[name]), tmp_path / "b.nrrd"
    volume = read_volume(source)
    mask = (volume.data > 90).astype(np.uint8)
    write_like(target, mask, source, volume)
    first, second = sitk.ReadImage(str(source)), sitk.ReadImage(str(target))
    for what in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(first, what)() == getattr(second, what)(), what
    assert second.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(second).T, DATA > 90)
    np.testing.assert_array_equal(read_label_volume(target).data, mask)
    np.testing.assert_array_equal(read_label_volume(target).affine, volume.affine)


@pytest.mark.parametrize("kind", nrrd.CODES)
@pytest.mark.parametrize(
    ("encoding", "endian"), [("raw", "little"), ("raw", "big"), ("gzip", "big"), ("ascii", "little")]
)
def test_types_encodings_and_byte_orders(tmp_path, kind, encoding, endian):
    values = np.clip(DATA, 0, 100) - (50 if nrrd.CODES[kind][0] in "if" else 0)
    path = write(tmp_path / "a.nrrd", f"endian: {endian}\n", values, kind, encoding)
    np.testing.assert_array_equal(read_volume(path).file_data(), values)
    np.testing.assert_array_equal(of_itk(path)[0], values)
    assert stored_type(path) == np.dtype(nrrd.CODES[kind])


def test_ends_of_lines_and_skipped_bytes(tmp_path):
    for path in (
        write(tmp_path / "a.nrrd", "", line="\r\n"),
        write(tmp_path / "b.nrrd", "byte skip: 7\n", skip=b"nothing"),
        write(tmp_path / "c.nrrd", "byte skip: -1\n", skip=b"nothing"),
    ):
        np.testing.assert_array_equal(read_volume(path).file_data(), DATA)
        np.testing.assert_array_equal(of_itk(path)[0], DATA)


@pytest.mark.parametrize("skip", ["", "byte skip: 7\n", "byte skip: -1\n"])
def test_a_header_with_its_voxels_in_a_file_beside_it(tmp_path, skip):
    whole = write(tmp_path / "a.nrrd", HEADERS["RAS"]).read_bytes()
    head, _, held = whole.partition(b"\n\n")
    (tmp_path / "b.raw").write_bytes((b"nothing" if skip else b"") + held)
    for name, end in (("b.nhdr", "\n"), ("c.nhdr", "\n\n")):  # with and without a blank line at the end
        (tmp_path / name).write_bytes(head + f"\n{skip}data file: b.raw{end}".encode())
        volume, expected = read_volume(tmp_path / name), read_volume(tmp_path / "a.nrrd")
        np.testing.assert_array_equal(volume.data, expected.data)
        np.testing.assert_array_equal(volume.affine, expected.affine)
        np.testing.assert_array_equal(of_itk(tmp_path / name)[0], DATA)
        write_like(tmp_path / "m.nrrd", (volume.data > 90).astype(np.uint8), tmp_path / name, volume)
        first, second = sitk.ReadImage(str(tmp_path / name)), sitk.ReadImage(str(tmp_path / "m.nrrd"))
        assert (first.GetOrigin(), first.GetDirection()) == (second.GetOrigin(), second.GetDirection())


@pytest.mark.parametrize("axis", [0, 3])
def test_channels_on_any_axis(tmp_path, axis):
    data = np.moveaxis(np.stack([DATA, DATA + 1]), 0, axis)
    kinds, directions = ["domain"] * 3, ["(1,0,0)", "(0,2,0)", "(0,0,3)"]
    kinds.insert(axis, "vector")
    directions.insert(axis, "none")
    fields = f"kinds: {' '.join(kinds)}\nspace: RAS\nspace directions: {' '.join(directions)}\n"
    path = write(tmp_path / "a.nrrd", fields, data, sizes=" ".join(map(str, data.shape)))
    volume = read_volume(path, channel=1)
    np.testing.assert_array_equal(volume.file_data(), DATA + 1)
    np.testing.assert_array_equal(np.abs(volume.file_affine()[:3, :3]), np.diag([1, 2, 3]))
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[..., 1].T, DATA + 1)
    with pytest.raises(ImageError, match="several channels or times .2"):
        read_volume(path)
    write_like(tmp_path / "b.nrrd", (volume.data > 90).astype(np.uint8), path, volume)
    mask = sitk.ReadImage(str(tmp_path / "b.nrrd"))
    assert (mask.GetSpacing(), mask.GetDirection()) == (image.GetSpacing(), image.GetDirection())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, DATA + 1 > 90)


def test_one_slice_is_a_volume(tmp_path):
    path = write(tmp_path / "a.nrrd", "spacings: 0.5 2\n", DATA[..., 0], sizes="3 4")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.file_data()[..., 0], DATA[..., 0])
    assert volume.shape == (3, 4, 1)
    write_like(tmp_path / "b.nrrd", (volume.data > 90).astype(np.uint8), path, volume)
    mask = sitk.ReadImage(str(tmp_path / "b.nrrd"))
    assert (mask.GetSize(), mask.GetSpacing()) == ((3, 4), (0.5, 2))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, DATA[..., 0] > 90)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"NRRD0004", b"NOPE0004"), "does not begin with NRRD"),
        ((b"type: short", b"type: block"), "type block"),
        ((b"encoding: raw", b"encoding: bzip2"), "save it with encoding raw or gzip"),
        ((b"sizes: 3 4 5", b"sizes: 3 4"), "encoding raw of .3, 4."),
        ((b"sizes: 3 4 5", b"sizes: 3 4 6"), "cut short: it holds 60 of 72 values"),
        ((b"endian: little", b"spacings: 1 2\nendian: little"), "has not 3 values, one per axis"),
        ((b"endian: little", b"line skip: 1\nendian: little"), "asks to skip lines"),
        ((b"endian: little", b"kinds: vector list domain\nendian: little"), "more than one axis"),
        ((b"endian: little", b"space directions: (1,0) (0,1) (1,1)\nendian: little"), "no space of its 3 axes"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(tmp_path, change, words):
    path = write(tmp_path / "a.nrrd", "")
    path.write_bytes(path.read_bytes().replace(*change))
    with pytest.raises(ImageError, match=f"a.nrrd: .*{words}"):
        read_volume(path)


def test_no_more_is_unpacked_than_the_header_announces(tmp_path):
    path = write(tmp_path / "a.nrrd", "", encoding="gzip")
    head = path.read_bytes().partition(b"\n\n")[0] + b"\n\n"
    for packed in (gzip.compress(bytes(50_000_000)), zlib.compress(bytes(50_000_000))):
        path.write_bytes(head + packed)
        header = nrrd.read_header(path)
        assert read_voxels(path, header).nbytes == 120
    whole = np.asarray(DATA, "<i2").tobytes(order="F")
    path.write_bytes(head + gzip.compress(whole[:50]) + gzip.compress(whole[50:]))  # in two parts, as bgzip packs
    np.testing.assert_array_equal(read_volume(path).file_data(), DATA)
    path.write_bytes(head + gzip.compress(whole)[:30])
    with pytest.raises(ImageError, match="cut short"):
        read_volume(path)


@settings(deadline=None, max_examples=40)
@given(
    numbers=st.lists(st.floats(-1e3, 1e3), min_size=12, max_size=12),
    space=st.sampled_from(["left-posterior-superior", "right-anterior-superior", "left-anterior-superior"]),
)
def test_any_place_that_simpleitk_accepts(tmp_path_factory, numbers, space):
    matrix = np.reshape(numbers[:9], (3, 3))
    sides = np.linalg.norm(matrix, axis=0)
    if sides.min() < 1e-2 or abs(np.linalg.det(matrix / np.maximum(sides, 1e-9))) < 1e-2:
        return  # ITK refuses directions that are almost in one plane
    vectors = " ".join("(" + ",".join(map(repr, vector)) + ")" for vector in matrix.T.tolist())
    origin = ",".join(map(repr, numbers[9:]))
    fields = f"space: {space}\nspace directions: {vectors}\nspace origin: ({origin})\n"
    path = write(tmp_path_factory.mktemp("any") / "a.nrrd", fields)
    np.testing.assert_allclose(read_volume(path).file_affine(), of_itk(path)[1], rtol=1e-12, atol=1e-9)
