"""MetaImage: every header is read and written as SimpleITK reads it."""

import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from tests.readers.test_nrrd import DATA, TURN, of_itk
from universeg_jax.readers import metaimage
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.volume_files import read_label_volume, read_volume, stored_type, write_like

MATRIX = " ".join(f"{x:.17g}" for x in TURN.ravel())
PLACES = {
    "as ITK writes": f"TransformMatrix = {MATRIX}\nOffset = 10.25 -20.5 0.1\nCenterOfRotation = 0 0 0\n"
    "AnatomicalOrientation = RAI\nElementSpacing = 0.7 1.3 2.5\n",
    "other names": f"Rotation = {MATRIX}\nPosition = 10.25 -20.5 0.1\nElementSpacing = 0.7 1.3 2.5\n",
    "oldest names": f"Orientation = {MATRIX}\nOrigin = 10.25 -20.5 0.1\nElementSpacing = 0.7 1.3 2.5\n",
    "sizes for spacing": "ElementSize = 0.7 1.3 2.5\n",
    "sizes and spacing": "ElementSpacing = 0.7 1.3 2.5\nElementSize = 0.5 1 2\n",
    "centre of rotation": f"TransformMatrix = {MATRIX}\nOffset = 1 2 3\nCenterOfRotation = 4 5 6\n",
    "micrometres": "DistanceUnits = um\nElementSpacing = 700 1300 2500\nOffset = 1000 2000 3000\n",
    "centimetres": "DistanceUnits = cm\nElementSpacing = 0.07 0.13 0.25\nOffset = 1 2 3\n",
    "millimetres": "DistanceUnits = mm\nElementSpacing = 0.7 1.3 2.5\n",
    "nothing": "",
}


def write(path, fields, data=DATA, kind="SHORT", size="3 4 5", packed=False, order="<", form="BinaryData = True\n"):
    held = np.asarray(data, order + metaimage.TYPES[kind]).tobytes(order="F")
    if "BinaryData = False" in form:
        held = b" ".join(str(x).encode() for x in np.asarray(data, metaimage.TYPES[kind]).ravel(order="F").tolist())
        held += b"\n"  # SimpleITK needs an end of the last line
    held = zlib.compress(held) if packed else held
    fields += f"CompressedData = True\nCompressedDataSize = {len(held)}\n" if packed else ""
    head = (
        f"ObjectType = Image\nNDims = {len(size.split())}\n{form}{fields}DimSize = {size}\nElementType = MET_{kind}\n"
    )
    path.write_bytes(f"{head}ElementDataFile = LOCAL\n".encode() + held)
    return path


@pytest.mark.parametrize("name", PLACES)
def test_a_volume_lies_where_simpleitk_sees_it(tmp_path, name):
    path = write(tmp_path / "a.mha", PLACES[name])
    data, affine = of_itk(path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.file_data(), data)
    np.testing.assert_allclose(volume.file_affine(), affine, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("name", PLACES)
def test_a_mask_lies_where_its_image_does(tmp_path, name):
    source, target = write(tmp_path / "a.mha", PLACES[name]), tmp_path / "b.mha"
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


@pytest.mark.parametrize("kind", metaimage.TYPES)
@pytest.mark.parametrize("form", ["raw", "big", "packed", "text"])
def test_types_forms_and_byte_orders(tmp_path, kind, form):
    values = np.clip(DATA, 0, 100) - (50 if metaimage.TYPES[kind][0] in "if" else 0)
    line = "BinaryData = False\n" if form == "text" else "BinaryData = True\n"
    big = "BinaryDataByteOrderMSB = True\n" if form == "big" else ""
    order = ">" if form == "big" else "<"
    path = write(tmp_path / "a.mha", big, values, kind, packed=form == "packed", order=order, form=line)
    np.testing.assert_array_equal(read_volume(path).file_data(), values)
    np.testing.assert_array_equal(of_itk(path)[0], values)
    assert stored_type(path) == np.dtype(metaimage.TYPES[kind])


@pytest.mark.parametrize(("size", "filling"), [("-1", b"nothing"), ("7", b"nothing"), ("0", b"")])
def test_the_voxels_of_a_mhd_may_follow_another_header(tmp_path, size, filling):
    text = write(tmp_path / "a.mha", f"HeaderSize = {size}\n").read_bytes().partition(b"LOCAL\n")[0] + b"a.raw\n"
    (tmp_path / "a.mhd").write_bytes(text)
    (tmp_path / "a.raw").write_bytes(filling + np.asarray(DATA, "<i2").tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mhd").file_data(), DATA)
    np.testing.assert_array_equal(of_itk(tmp_path / "a.mhd")[0], DATA)


def test_channels_and_one_slice(tmp_path):
    path = write(tmp_path / "a.mha", "ElementNumberOfChannels = 2\n", np.stack([DATA, DATA + 1]))
    np.testing.assert_array_equal(read_volume(path, channel=1).file_data(), DATA + 1)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[..., 1].T, DATA + 1)
    with pytest.raises(ImageError, match="several channels or times .2"):
        read_volume(path)
    path = write(tmp_path / "b.mha", "ElementSpacing = 0.5 2\n", DATA[..., 0], size="3 4")
    volume = read_volume(path)
    write_like(tmp_path / "c.mha", (volume.data > 90).astype(np.uint8), path, volume)
    mask = sitk.ReadImage(str(tmp_path / "c.mha"))
    assert (mask.GetSize(), mask.GetSpacing()) == ((3, 4), (0.5, 2))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, DATA[..., 0] > 90)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"MET_SHORT", b"MET_STRING"), "MET_STRING of .3, 4, 5."),
        ((b"DimSize = 3 4 5", b"DimSize = 3 4"), "MET_SHORT of .3, 4."),
        ((b"DimSize = 3 4 5", b"DimSize = 3 4 6"), "cut short: it holds 60 of 72 values"),
        ((b"ObjectType = Image", b"ObjectType = Tube"), "holds no image: ObjectType = Tube"),
        ((b"NDims = 3", b"NDims = 3\nElementSpacing = 1 1 0"), "affine cannot be inverted"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(tmp_path, change, words):
    path = write(tmp_path / "a.mha", "")
    path.write_bytes(path.read_bytes().replace(*change))
    with pytest.raises(ImageError, match=f"a.mha: .*{words}"):
        read_volume(path)
