"""What check understood, and mistakes that all labels share; arrays pass the checks of files."""

import io
import re

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.fixtures import block_volume, write_folder, write_nifti
from universeg_jax.errors import UserError
from universeg_jax.prediction.examples import as_grey
from universeg_jax.prediction.files import mask_files, volume_size, write_image_mask
from universeg_jax.prediction.support import make_support, read_support_folder
from universeg_jax.prediction.understood import describe, find_shared_mistakes
from universeg_jax.readers import notes
from universeg_jax.readers.cases import Case, make_examples, read_pair
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.folder import read_folder
from universeg_jax.readers.labels import LabelFile
from universeg_jax.readers.slices import volume_slices
from universeg_jax.readers.volume_files import read_volume
from universeg_jax.readers.volumes import check_same_grid, make_volume


def ellipses(count=6, turn=lambda mask: mask, shape=(96, 128)):
    """(images, masks) of a bright ellipse off the centre, whose masks are turned."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    images, masks = [], []
    for _ in range(count):
        y, x = rng.uniform(25, 40), rng.uniform(25, 45)
        mask = ((rows - y) / 15) ** 2 + ((columns - x) / 22) ** 2 < 1
        images.append(20 * rng.random(shape) + 100 * mask)
        masks.append(np.ascontiguousarray(turn(mask)).astype(np.uint8))
    return images, masks


def test_a_right_set_has_no_shared_mistake():
    assert find_shared_mistakes(make_support(*ellipses())) == []
    assert find_shared_mistakes(make_support(*ellipses(shape=(96, 96)))) == []


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda mask: mask[:, ::-1], "left to right"),
        (lambda mask: mask[::-1], "top to bottom"),
        (lambda mask: mask[::-1, ::-1], "180 degrees"),
        (lambda mask: mask.T, "rows and columns exchanged"),
        (lambda mask: np.rot90(mask, -1), "90 degrees to the left"),
    ],
)
def test_labels_that_fit_their_images_turned_are_named(turn, words):
    ((kind, message),) = find_shared_mistakes(make_support(*ellipses(turn=turn, shape=(96, 96))))
    assert kind == "turned"
    assert words in message


def test_inverted_labels_and_instances_are_named():
    for shape in ((96, 128), (128, 60), (96, 96)):
        ((kind, message),) = find_shared_mistakes(make_support(*ellipses(turn=lambda mask: ~mask, shape=shape)))
        assert kind == "inverted"
        assert "of every image: is it the background" in message
    images, masks = ellipses()
    some = [~mask.astype(bool) if i in (1, 4) else mask for i, mask in enumerate(masks)]
    ((kind, message),) = find_shared_mistakes(make_support(images, [m.astype(np.uint8) for m in some]))
    assert kind == "inverted"
    assert "covers the border of support 1, support 4, but not of the others" in message
    whole = [np.ones_like(mask) if i == 1 else mask for i, mask in enumerate(masks)]  # a close view of the structure
    assert find_shared_mistakes(make_support(images, whole)) == []
    bands = [np.arange(96)[:, None] // 4 + 1 + 0 * mask for mask in masks]
    found = [[k for k, _ in find_shared_mistakes(make_support(images, bands), named=n)] for n in (False, True)]
    assert ["instances" in kinds for kinds in found] == [True, False]


def test_the_description_counts_what_was_read(tmp_path):
    folder = write_folder(tmp_path / "s", count=3, ids=(1, 2))
    (folder / "meta.json").write_text('{"labels": {"1": "liver", "2": "spleen"}}')
    pixels = [sum((np.asarray(Image.open(f)) == i).sum() for f in (folder / "labels").iterdir()) for i in (1, 2)]
    lines = describe(read_support_folder(folder), read_folder(folder).labels, "s")
    assert lines == [
        "s: 3 images with a label each",
        "size: 30x20 pixels (width x height)",
        f"id 1 (liver): {pixels[0]} pixels, in 3 of 3 images",
        f"id 2 (spleen): {pixels[1]} pixels, in 3 of 3 images",
        "subjects: 3: p0, p1, p2",
    ]
    for i in range(2):
        image, label = block_volume((12, 10, 8), (1,), seed=i)
        write_nifti(tmp_path / "v" / "images" / f"p{i}.nii", image)
        write_nifti(tmp_path / "v" / "labels" / f"p{i}.nii", label)
    support = read_support_folder(tmp_path / "v", window=(0.0, 300.0))
    lines = describe(support, {1: "block"}, "v")
    assert lines[:2] == ["v: 2 volumes with a label each, 16 slices of them", "size: 12x10x8 voxels"]
    assert lines[2].startswith(f"id 1 (block): {2 * int(label.sum())} voxels")
    assert lines[3] == "window: (0.0, 300.0)"
    lines = describe(read_support_folder(tmp_path / "v"), {1: "block"}, "v")
    assert lines[3] == "window: chosen by the intensities of each"
    with pytest.raises(UserError, match="a window is for volumes: leave out --window"):
        read_support_folder(folder, window="ct")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1, "-1"),
        (np.nan, "NaN"),
        (0.999, "0.999"),
        (1.5, "1.5"),
        (2**40, "above"),
        (2.0**70, "above"),
        (2**70, "object"),
    ],
)
def test_labels_in_arrays_are_refused_in_the_words_of_files(value, words):
    images, masks = ellipses(2)
    labels = [np.where(mask > 0, np.array(value), 0) for mask in masks]
    with pytest.raises(ImageError, match=f"support 0: values are not class ids .*{words}"):
        make_support(images, labels)


def test_images_in_arrays_are_refused_in_the_words_of_files():
    images, masks = ellipses(2)
    for value, words in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (1e35, "missing data")):
        spoilt = [np.where(mask > 0, value, image) for image, mask in zip(images, masks, strict=True)]
        with pytest.raises(ImageError, match=f"support 0: .*{words}"):
            make_support(spoilt, masks)
        with pytest.raises(ImageError, match=f"an image: .*{words}"):
            as_grey(spoilt[0])
    with pytest.raises(ImageError, match="every pixel is the same"):
        as_grey(np.zeros((9, 9)))


def test_masks_of_1_and_255_in_arrays_are_one_class():
    images, masks = ellipses(4)
    support = make_support(images, [mask * (255 if i % 2 else 1) for i, mask in enumerate(masks)])
    assert support.labels == (1,)
    assert "both mean one class" in support.notes[0]


def exif_pair(path, orientation, label, shape):
    raw = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for part in ("images", "labels"):
        (path / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(raw).save(path / "images" / "a.png", exif=exif)
    Image.fromarray(label).save(path / "labels" / "a.png")
    return raw, Case(str(path / "images" / "a.png"), (LabelFile(str(path / "labels" / "a.png")),), "a", "a", 16)


def test_an_orientation_that_image_and_label_do_not_share_is_resolved_by_the_sides_or_said(tmp_path):
    for name, shape, label_shape, raw_fits, words in (
        ("raw", (40, 60), (40, 60), True, "drawn before the EXIF orientation"),
        ("upright", (40, 60), (60, 40), False, ""),
        ("square", (40, 40), (40, 40), False, "its label has none"),
    ):
        label = np.zeros(label_shape, np.uint8)
        label[3:9, 5:20] = 1
        raw, case = exif_pair(tmp_path / name, 6, label, shape)
        expected = raw if raw_fits else np.rot90(raw, -1)
        with notes.collect() as said:
            image, ids = read_pair(case)
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(ids, label)
        assert words in "".join(said.lines())
        assert bool(said) == bool(words)
        data = [(tmp_path / name / part / "a.png").read_bytes() for part in ("images", "labels")]
        opened = [Image.open(io.BytesIO(each)) for each in data]
        paths = [tmp_path / name / part / "a.png" for part in ("images", "labels")]
        digests = {make_support([a], [b]).digest() for a, b in (data, opened, paths)}
        assert len(digests) == 1
        assert make_support(*([each] for each in data)).sizes == (expected.shape,)


def test_a_fine_volume_keeps_its_detail():
    data = np.random.default_rng(0).random((120, 100, 80)).astype(np.float32)
    fine, coarse = (make_volume(data, np.diag([side] * 3 + [1.0])) for side in (0.0005, 1))
    with notes.collect():
        slices = [volume_slices(volume, 64, axis=2)[0] for volume in (fine, coarse)]
    assert slices[0].shape == (64 * 80 // 120 + 1, 64, 64)  # one per pixel of the slices: 43 of 80
    assert slices[1].shape == (80, 64, 64)
    assert make_volume(data, np.diag([0.5, 0.5, 0.5, 1])).fine_spacing(32) == 1  # 60 mm show enough at 1 mm
    assert fine.fine_spacing(128) == pytest.approx(0.0005)
    assert coarse.fine_spacing(512) == 1


def test_a_fine_volume_is_built_like_the_same_at_1_mm(tmp_path):
    for name, side in (("fine", 0.05), ("coarse", 1.0)):
        image, label = block_volume((60, 50, 40))
        write_nifti(tmp_path / f"{name}.nii", image, (side,) * 3)
        write_nifti(tmp_path / f"{name}_label.nii", label, (side,) * 3)
    masks = []
    for name in ("fine", "coarse"):
        labels = (LabelFile(str(tmp_path / f"{name}_label.nii")),)
        case = Case(str(tmp_path / f"{name}.nii"), labels, "s", "c", 64, volume=True, axes=(2,), window="none")
        masks.append(make_examples(case)[0].masks)
    np.testing.assert_array_equal(*masks)


def test_units_of_nifti_are_used_unless_they_cannot_be(tmp_path):
    data = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    volumes = {}
    for unit, side in (("micron", 50.0), ("meter", 0.05), ("mm", 50.0), ("unknown", 50.0)):
        image = nib.Nifti1Image(data, np.diag([side] * 3 + [1]))
        image.header.set_xyzt_units(unit if unit != "unknown" else 0)
        nib.save(image, tmp_path / f"{unit}.nii")
        volumes[unit] = read_volume(tmp_path / f"{unit}.nii")
    sides = {unit: round(volume.spacing[0], 5) for unit, volume in volumes.items()}
    assert sides == {"micron": 0.05, "meter": 50, "mm": 50, "unknown": 50}
    check_same_grid(volumes["micron"], volumes["unknown"])  # a label of the same numbers without its unit
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    with notes.collect() as said:
        assert read_volume(tmp_path / "a.nii").spacing == (1, 1, 1)
    assert "cannot be: they are taken as mm" in said.lines()[0]


def test_ct_is_told_by_a_share_of_voxels_and_said():
    rng = np.random.default_rng(0)
    mr = rng.random((40, 40, 20)).astype(np.float32) * 900
    mr[0, :5, 0] = -800  # overshoot of interpolation
    ct = np.where(rng.random(mr.shape) < 0.3, -1000, mr).astype(np.float32)
    for data, words in ((mr, "not taken for CT.*window mr; --window"), (ct, "taken for CT.*window ct; --window")):
        with notes.collect() as said:
            volume_slices(make_volume(data, np.eye(4), "scan.nii"), 16)
        assert len(said.lines()) == 1
        assert re.search(words, said.lines()[0])
        with notes.collect() as said:
            volume_slices(make_volume(data, np.eye(4), "scan.nii"), 16, window="ct")
        assert not said


def test_volumes_have_three_significant_digits_in_a_unit_that_fits():
    assert volume_size(1_234_567.8) == (1235, "ml")
    assert volume_size(2_134.0) == (2.13, "ml")
    assert volume_size(2.134) == (2.13, "mm3")
    assert volume_size(0.0021344) == (0.00213, "mm3")
    assert volume_size(0.0000021344) == (2134, "um3")
    assert volume_size(0.0) == (0, "ml")


def test_ids_that_no_png_holds_are_written_as_tiff(tmp_path):
    query = tmp_path / "q.png"
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(query)
    assert [mask_files(query, tmp_path, (1, i), False)[0].name for i in (65535, 100000)] == ["q.png", "q.tif"]
    mask = np.array([[0, 100000], [7, 0]], np.int32)
    write_image_mask(tmp_path / "m.tif", mask)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "m.tif"), mask)


def test_a_dict_of_masks_and_a_map_of_255_are_one_class():
    images, masks = ellipses(3)
    expected = make_support(images, masks)
    labels = [masks[0], {255: masks[1] > 0}, (masks[2] * 255).astype(np.uint8)]
    with notes.collect() as said:
        support = make_support(images, labels)
    assert support.labels == (1,)
    assert "both mean one class" in said.lines()[0]
    np.testing.assert_array_equal(support.masks, expected.masks)
    assert support.pixels == expected.pixels


def test_the_description_says_what_labels_were_taken_for_and_that_classes_overlap(tmp_path):
    folder = write_folder(tmp_path / "s", count=2, ids=(1,))
    for file in list((folder / "labels").iterdir()):
        whole = np.asarray(Image.open(file))
        file.unlink()
        for name, mask in (("cell", whole), ("nucleus", whole * (np.arange(whole.shape[1]) < 15))):
            (folder / "labels" / name).mkdir(exist_ok=True)
            Image.fromarray((mask * 255).astype(np.uint8)).save(folder / "labels" / name / file.name)
    read = read_folder(folder)
    lines = describe(read_support_folder(folder), read.labels, "s", read.taken)
    assert lines[2:4] == [
        "labels: taken for a folder of masks for each class",
        "classes overlap, so each is predicted by itself, with a mask of its own",
    ]
    assert [line.partition(":")[0] for line in lines[4:6]] == ["id 1 (cell)", "id 2 (nucleus)"]
