"""The project behind the page: uploads, what is shown, and that nothing accepted is lost."""

import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.annotation.fixtures import volume_project
from tests.fixtures import write_folder, write_nifti
from universeg_jax.annotation.workspace import Workspace
from universeg_jax.errors import UserError
from universeg_jax.readers.folder import read_support
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.readers.slices import plane
from universeg_jax.reports.files import read_json, write_json

SHAPE = (40, 60)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "discs", count=5, shape=SHAPE)


@pytest.fixture
def workspace(tmp_path, predictor):
    workspace = Workspace(tmp_path / "project", predictor)
    yield workspace
    workspace.close()


def _sent(folder, part, names):
    """Files that a browser sent: copies, since they are moved away."""
    copies = folder / "sent" / part
    copies.mkdir(parents=True, exist_ok=True)
    return [shutil.copy(folder / part / f"{name}.png", copies / f"{name}.png") for name in names]


def _add(workspace, folder, images, masks=(), labels=""):
    paths = (map(type(folder), _sent(folder, p, n)) for p, n in (("images", images), ("labels", masks)))
    return workspace.add(*map(list, paths), labels)


def test_uploads_make_a_project_and_their_masks_are_accepted(workspace, folder, predictor):
    assert workspace.first() == ""
    with pytest.raises(UserError, match="no image yet"):
        workspace.opened()
    assert _add(workspace, folder, ["p0_0", "p1_0", "p2_0"], ["p0_0", "p1_0"], "disc") == "p2_0"
    assert [label.name for label in workspace.labels.values()] == ["disc"]
    assert not any((folder / "sent").rglob("*.png"))
    images, labels, names = read_support(workspace.path)
    assert names == ["p0_0", "p1_0"]
    for image, label, name in zip(images, labels, names, strict=True):
        np.testing.assert_array_equal(image, read_image(folder / f"images/{name}.png"))
        np.testing.assert_array_equal(label, read_label(folder / f"labels/{name}.png"))
    shown = workspace.show("p2_0")
    expected = predictor.segment(read_image(folder / "images/p2_0.png"), images, labels)
    np.testing.assert_array_equal(shown.mask, expected.mask)
    assert shown.source == "predicted from 2 examples"
    assert _add(workspace, folder, ["p3_0"], ["p3_0", "p2_0"]) == "p3_0"  # a mask of an image that is there already
    np.testing.assert_array_equal(workspace.show("p2_0").mask, read_label(folder / "labels/p2_0.png"))


def test_a_page_that_is_loaded_again_shows_what_was_accepted(workspace, folder, predictor):
    _add(workspace, folder, ["p0_0", "p1_0", "p2_0"], ["p0_0"])
    mask = np.zeros(SHAPE, np.int32)
    mask[3:9] = 1
    workspace.accept("p1_0", mask)
    workspace.close()
    again = Workspace(workspace.path, predictor)
    try:
        assert again.first() == "p2_0"
        shown = again.show("p1_0")
        np.testing.assert_array_equal(shown.mask, mask)
        assert shown.source == "the mask that you accepted"
        again.opened()[0].undo()
        assert again.show("p1_0").source == "predicted from 1 example"
    finally:
        again.close()


@pytest.mark.parametrize(("values", "named", "ids"), [((0, 255), {1: "structure"}, {0, 1}), ((0, 2), None, {0, 2})])
def test_ids_of_masks_make_labels(workspace, folder, values, named, ids):
    file = folder / "labels/p0_0.png"
    Image.fromarray(np.where(read_label(file) > 0, values[1], 0).astype(np.uint8)).save(file)
    _add(workspace, folder, ["p0_0"], ["p0_0"])
    assert {i: label.name for i, label in workspace.labels.items()} == (named or {2: "label 2"})
    assert set(np.unique(workspace.show("p0_0").mask)) == ids


def test_masks_of_several_ids_need_names_for_all(workspace, folder):
    file = folder / "labels/p0_0.png"
    mask = read_label(file).astype(np.uint8)
    mask[:3] = 2
    Image.fromarray(mask).save(file)
    with pytest.raises(UserError, match=r"masks hold 2, which has no name"):
        _add(workspace, folder, ["p0_0"], ["p0_0"], "1=disc,5=other")
    with pytest.raises(UserError, match=r"masks hold 2, which has no name"):
        _add(workspace, folder, ["p0_0"], ["p0_0"], "disc")
    assert not workspace.path.exists()
    with pytest.raises(UserError, match="at most 6 labels, and these are 7: use napari"):
        _add(workspace, folder, ["p0_0"], ["p0_0"], "a,b,c,d,e,f,g")
    _add(workspace, folder, ["p0_0"], ["p0_0"], "disc, bar")
    assert {i: label.name for i, label in workspace.labels.items()} == {1: "disc", 2: "bar"}


def _write(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ({}, {}, "no images yet"),
        ({}, {"b.png": np.eye(4)}, "the mask b.png has no image"),
        ({"a.png": np.eye(4)}, {"b.png": np.eye(4)}, "the mask b.png has no image"),
        ({"a.png": np.eye(4)}, {"a.png": np.ones((5, 4))}, "a: the image has 4x4 pixels, its mask 5x4"),
        ({"a.png": np.eye(4), "a.bmp": np.eye(4)}, {}, "two files are named a: rename"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(workspace, tmp_path, images, masks, message):
    given = [[_write(tmp_path / p, n, x) for n, x in each.items()] for p, each in (("i", images), ("m", masks))]
    with pytest.raises(UserError, match=message):
        workspace.add(*given)
    assert not workspace.path.exists()


def test_broken_and_other_files_are_named_as_the_user_named_them(workspace, tmp_path):
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^b\.png: cannot be read"):
        workspace.add([tmp_path / "b.png"], [])
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"^notes\.txt is no image"):
        workspace.add([tmp_path / "notes.txt"], [])
    good = _write(tmp_path / "g", "a.png", np.eye(4))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"^notes\.txt is no image"):
        workspace.add([good, tmp_path / "notes.txt"], [])
    assert not workspace.path.exists()


def test_names_of_uploads_are_never_paths_or_hidden(workspace, tmp_path):
    file = _write(tmp_path / "odd", ".. strange:name.png", np.eye(8))
    assert workspace.add([file], []) == "strange_name"
    assert [f.name for f in (workspace.path / "images").iterdir()] == ["strange_name.png"]


def test_an_empty_first_example_is_refused(workspace, folder):
    _add(workspace, folder, ["p0_0", "p1_0"])
    with pytest.raises(UserError, match="p0_0 is empty, and so are all examples"):
        workspace.accept("p0_0", np.zeros(SHAPE, np.int32))
    workspace.accept("p0_0", read_label(folder / "labels/p0_0.png"))
    workspace.accept("p1_0", np.zeros(SHAPE, np.int32))  # an image without the structure
    assert workspace.next() == ""


def test_effects_are_the_predictions_with_more_and_more_examples(workspace, folder, predictor):
    _add(workspace, folder, ["p0_0", "p1_0", "p2_0", "p3_0", "p4_0"], ["p0_0", "p1_0", "p2_0"])
    pool = workspace.opened()[1].pool()
    order = [pool.units[row] for row in workspace.examples("p4_0") if row >= 0]
    assert sorted(order) == ["p0_0", "p1_0", "p2_0"]
    image = read_image(folder / "images/p4_0.png")
    arrays = [[read(folder / part / f"{n}.png") for n in order] for part, read in
              (("images", read_image), ("labels", read_label))]  # fmt: skip
    masks = [predictor.segment(image, arrays[0][:n], arrays[1][:n]).mask for n in (1, 2, 3)]
    effects = workspace.effects("p4_0")
    assert [caption for _, caption in effects] == [f"{np.count_nonzero(masks[0])}: {order[0]}"] + [
        f"Δ {np.count_nonzero(masks[n] != masks[n - 1])}: + {order[n]}" for n in (1, 2)
    ]
    assert [caption for _, caption in workspace.example_overlays("p4_0")] == order
    assert workspace.effects("p0_0") == []  # it is labelled


def test_a_volume_is_labelled_slice_by_slice_and_completed(tmp_path, workspace, predictor):
    path, truth = volume_project(tmp_path / "other")
    scan, label = path.parent / "source/scan0.nii.gz", truth["scan0"]
    assert workspace.add([scan], [], "block") == "scan0/0"
    item = workspace.opened()[0].project.items["scan0"]
    for k in (0, 2, 4):
        workspace.accept(f"scan0/{k}", plane(label[..., ::-1], 2, item.canonical(k)))
    shown = workspace.show("scan0/1")
    assert shown.mask.shape == shown.grey.shape == (14, 12)
    assert shown.source == "predicted from 3 examples"
    workspace.complete("scan0/1")
    assert workspace.show("scan0/1").source == "the mask of the completed volume"
    assert workspace.show("scan0/2").source == "the mask that you accepted"
    np.testing.assert_array_equal(workspace.show("scan0/2").mask, plane(label[..., ::-1], 2, item.canonical(2)))
    workspace.accept("scan0/3", workspace.show("scan0/3").mask)
    assert workspace.show("scan0/1").source.endswith("which you changed labels after")
    assert workspace.opened()[0].project.prediction_file("scan0").exists()


def test_a_mask_file_of_a_volume_is_accepted_as_a_whole(tmp_path, workspace):
    path, truth = volume_project(tmp_path / "other")
    (tmp_path / "masks").mkdir()
    mask = write_nifti(tmp_path / "masks/scan0.nii.gz", truth["scan0"].astype(np.uint8), (1.0, 1.0, -3.0))
    workspace.add([path.parent / "source/scan0.nii.gz"], [mask or tmp_path / "masks/scan0.nii.gz"])
    assert workspace.next() == ""
    assert workspace.show("scan0/2").mask.any()


def test_images_of_a_known_name_or_of_another_kind_are_refused(tmp_path, workspace):
    path, _ = volume_project(tmp_path / "other", count=2)
    scans = [path.parent / f"source/scan{i}.nii.gz" for i in range(2)]
    again = shutil.copy(scans[0], tmp_path / scans[0].name)
    workspace.add(scans[:1], [])
    with pytest.raises(UserError, match="scan0: the project has an image of this name"):
        workspace.add([scans[1], again], [])
    other = write_nifti(tmp_path / "scan2.nii.gz", np.zeros((4, 5, 6), np.int16))
    with pytest.raises(UserError, match="flat is an image, and the project holds volumes"):
        workspace.add([other, _write(tmp_path / "f", "flat.png", np.eye(4))], [])
    assert list(workspace.opened()[0].project.items) == ["scan0"]


def test_the_download_holds_labels_and_predictions(workspace, folder, tmp_path):
    _add(workspace, folder, ["p0_0", "p1_0", "p2_0"])
    with pytest.raises(UserError, match="nothing is labelled yet"):
        workspace.predict_rest(tmp_path)
    workspace.accept("p0_0", read_label(folder / "labels/p0_0.png"))
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(workspace.predict_rest(tmp_path / "out")) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names >= {"labels/p0_0.png", "predictions/p1_0.png", "predictions/p2_0.png", "meta.json"}
    assert [f.suffix for f in (tmp_path / "out").iterdir()] == [".zip"]


def test_labels_of_one_colour_are_refused(workspace, folder, predictor):
    _add(workspace, folder, ["p0_0"], labels="a,b")
    workspace.close()
    settings = read_json(workspace.path / "project.json")
    settings["labels"]["2"]["colour"] = settings["labels"]["1"]["colour"]
    write_json(workspace.path / "project.json", settings)
    again = Workspace(workspace.path, predictor)
    with pytest.raises(UserError, match="two labels have one colour"):
        again.colours()
    again.close()
