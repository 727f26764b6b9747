"""Support sets of images and of volumes, and the selection of examples."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import write_folder
from universeg_jax.errors import UserError
from universeg_jax.prediction.selection import CHOICES, k_centre, select_examples, thumbnails
from universeg_jax.prediction.support import Support, make_support, read_support_folder


def some_support(count, positions=None, seed=0):
    images = np.random.default_rng(seed).random((count, 128, 128), np.float32)
    masks = (images > 0.5).astype(np.uint8)[None]
    names = tuple(map(str, range(count)))
    return Support(images, masks, (1,), names, names, positions)


@given(
    count=st.integers(1, 20),
    size=st.integers(1, 12),
    samples=st.integers(1, 4),
    how=st.sampled_from(CHOICES),
    seed=st.integers(0, 99),
)
def test_a_sample_holds_each_example_once(count, size, samples, how, seed):
    support = some_support(count)
    rows = select_examples(support, support.images[0], None, size, samples, how, seed)
    assert rows.shape == ((1, count) if count <= size else (samples, size))
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    assert rows.min() >= 0
    assert rows.max() < count
    np.testing.assert_array_equal(rows, select_examples(support, support.images[0], None, size, samples, how, seed))


def test_nearest_takes_what_looks_like_the_query():
    support = some_support(10)
    query = np.clip(3 * support.images[7] - 1, 0, 1)  # another contrast
    assert 7 in select_examples(support, query, None, 1, 1, "nearest", 0)
    np.testing.assert_array_equal(np.diag(thumbnails(support.images) @ thumbnails(support.images).T).round(4), 1)


def test_diverse_takes_one_of_each_cluster():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 256))
    features = np.repeat(centres, 5, 0) + 0.01 * rng.normal(size=(20, 256))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert {row // 5 for row in k_centre(features, 4).tolist()} == {0, 1, 2, 3}


def test_slices_get_examples_from_about_their_height():
    support = some_support(40, positions=np.tile((np.arange(20) + 0.5) / 20, 2).astype(np.float32))
    for how in CHOICES:
        rows = select_examples(support, support.images[0], 0.1, 4, 3, how, 0)
        assert np.abs(support.positions[rows] - 0.1).max() < 0.2


def test_many_ids_are_accepted_in_an_image_of_more_values():
    image = np.arange(900).reshape(30, 30)
    cells = image // 30
    assert len(make_support([image], [cells]).labels) == 29
    with pytest.raises(UserError, match="the label has 30 different values, the image only 2"):
        make_support([image > 400], [cells])


def test_take_and_digest():
    support = some_support(5)
    part = support.take([3, 1])
    assert part.names == ("3", "1")
    np.testing.assert_array_equal(part.masks[0, 0], support.masks[0, 3])
    assert part.digest() != support.digest() == some_support(5).digest()


def test_files_and_arrays_give_the_same(tmp_path):
    folder = write_folder(tmp_path, count=3, ids=(1, 4))
    images, labels = ([folder / part / f"p{i}_0.png" for i in range(3)] for part in ("images", "labels"))
    by_files, by_folder = make_support(images, labels), read_support_folder(folder)
    np.testing.assert_array_equal(by_files.images, by_folder.images)
    np.testing.assert_array_equal(by_files.masks, by_folder.masks)
    assert by_folder.labels == (1, 4)
    assert by_folder.subjects == ("p0", "p1", "p2")
    one = read_support_folder(folder, label=4)
    assert one.labels == (4,)
    np.testing.assert_array_equal(one.masks[0], by_folder.masks[1])


def ball(radius, shape=(24, 24, 8)):
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return sum(g**2 for g in grid) < radius**2


def write_volumes(path, radii=(0.5, 0.7), affine=None):
    """images/ and labels/ of balls, 3 mm slices."""
    affine = np.diag([1, 1, 3, 1.0]) if affine is None else affine
    rng = np.random.default_rng(0)
    for i, radius in enumerate(radii):
        mask = ball(radius)
        for part, data in (("images", 50 * rng.random(mask.shape) + 100 * mask), ("labels", 2 * mask)):
            (path / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path / part / f"case{i}.nii.gz")
    return path


def test_labels_too_thin_for_the_network_are_refused_with_the_remedy():
    label = np.zeros((2000, 2000), np.uint8)
    label[::200] = 1  # a tenth of a pixel of 128, a fifth of one of 256
    image = np.random.default_rng(0).random(label.shape)
    with pytest.raises(UserError, match="too small or thin for 128x128 pixels.*--tiles 2"):
        make_support([image] * 2, [label] * 2)
    with pytest.raises(UserError, match="too small or thin for 256x256 pixels.*more than --tiles 2"):
        make_support([image] * 2, [label] * 2, tiles=2)


def test_an_id_may_be_missing_in_a_volume_and_meta_json_sets_its_axis_and_window(tmp_path):
    write_volumes(tmp_path, radii=(0.5, 0.6))
    path = tmp_path / "labels" / "case1.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(2.5 * label.get_fdata(dtype=np.float32), label.affine), path)  # 5 in place of 2
    support = read_support_folder(tmp_path)
    assert support.labels == (2, 5)
    assert support.masks.any((2, 3)).reshape(2, 2, 8).any(-1).tolist() == [[True, False], [False, True]]
    assert support.axis == 2
    (tmp_path / "meta.json").write_text('{"labels": {"2": "a", "5": "b"}, "axes": ["sagittal"], "window": [0, 90]}')
    support = read_support_folder(tmp_path)
    assert (support.axis, support.window) == (0, (0, 90))
    assert support.take([0]).axis == 0


def test_volumes_become_slices_with_positions(tmp_path):
    support = read_support_folder(write_volumes(tmp_path))
    assert support.images.shape == (16, 128, 128)
    assert support.labels == (2,)
    np.testing.assert_allclose(support.positions, np.tile((np.arange(8) + 0.5) / 8, 2))
    assert support.subjects == ("case0",) * 8 + ("case1",) * 8
    areas = support.masks[0].sum((1, 2)).reshape(2, 8)
    assert (areas[:, 0] == 0).all()
    assert (areas[:, 4] > 0).all()
    assert areas[1, 4] > areas[0, 4]
    assert read_support_folder(tmp_path, axis=0).images.shape == (48, 128, 128)
    with pytest.raises(UserError, match="label 7 never occurs; the ids are .2"):
        read_support_folder(tmp_path, label=7)
    (tmp_path / "labels" / "case1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case1.nii.gz: has no label"):
        read_support_folder(tmp_path)


def test_a_label_that_lies_elsewhere_is_refused(tmp_path):
    write_volumes(tmp_path)
    path = tmp_path / "labels" / "case1.nii.gz"
    moved = nib.load(path)
    nib.save(nib.Nifti1Image(moved.get_fdata(dtype=np.float32), moved.affine + np.eye(4, k=3) * 20), path)
    with pytest.raises(UserError, match="different places"):
        read_support_folder(tmp_path)
