"""Labels as polygons, folders of masks per class, colours, and names that label files state."""

import base64
import io
import json

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from tests.fixtures import block_volume, write_folder, write_nifti
from universeg_jax.cli import main
from universeg_jax.data.dataset import open_dataset
from universeg_jax.prediction.files import find_queries
from universeg_jax.readers.cases import ids_of, mask_of, read_pair, read_volume_pair
from universeg_jax.readers.errors import FolderError, ImageError
from universeg_jax.readers.folder import read_folder, read_support
from universeg_jax.readers.polygons import draw
from universeg_jax.readers.volume_files import read_volume

SHAPE = (20, 30)


def box(left, top, right, bottom):
    """A rectangle, as corners, and its pixels."""
    mask = np.zeros(SHAPE, bool)
    mask[top:bottom, left:right] = True
    return [[left, top], [right, top], [right, bottom], [left, bottom]], mask


LIVER, LIVER_MASK = box(2, 3, 12, 15)
HOLE, HOLE_MASK = box(5, 6, 8, 9)
TUMOUR, TUMOUR_MASK = box(15, 4, 25, 10)


def unlabelled(path, count=3):
    """A folder of images p0_0.png, … without labels."""
    write_folder(path, count, SHAPE)
    for file in (path / "labels").iterdir():
        file.unlink()
    return path


def flat(points):
    return [float(x) for point in points for x in point]


def coco(path, place="annotations.json", **changes):
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [flat(LIVER)]},
        {"id": 2, "image_id": 7, "category_id": 5, "segmentation": [flat(TUMOUR)]},
        {"id": 3, "image_id": 8, "category_id": 3, "segmentation": {"size": list(SHAPE), "counts": runs(HOLE_MASK)}},
    ]
    contents = {
        "images": [
            {"id": 7, "file_name": "train/p0_0.png", "height": SHAPE[0], "width": SHAPE[1]},
            {"id": 8, "file_name": "p1_0.png", "height": SHAPE[0], "width": SHAPE[1]},
            {"id": 9, "file_name": "p2_0.png", "height": SHAPE[0], "width": SHAPE[1]},
        ],
        "categories": [{"id": 3, "name": "liver"}, {"id": 5, "name": "tumour"}],
        "annotations": annotations,
    }
    (path / place).parent.mkdir(exist_ok=True)
    (path / place).write_text(json.dumps(contents | changes))
    return path


def runs(mask):
    """Lengths of runs, column by column, beginning with zeros."""
    values = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], values, [1 - values[-1]]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


@pytest.mark.parametrize("place", ["annotations.json", "labels/all.json", "annotations/x.json", "images/_coco.json"])
def test_coco_polygons_and_runs(tmp_path, place):
    folder = read_folder(coco(unlabelled(tmp_path), place))
    assert folder.labels == {3: "liver", 5: "tumour"}
    assert folder.taken == "COCO polygons"
    first, second, third = (read_pair(case)[1] for case in folder.cases)
    np.testing.assert_array_equal(first, 3 * LIVER_MASK + 5 * TUMOUR_MASK)
    np.testing.assert_array_equal(second, 3 * HOLE_MASK)
    assert not third.any()


def test_compressed_runs_of_coco(tmp_path):
    """The text is that of the format: 5 bits a character, 48 added, differences from the third number on."""

    def encode(numbers):
        text = ""
        for i, number in enumerate(numbers):
            value = number - (numbers[i - 2] if i > 2 else 0)
            while True:
                bits, value = value & 31, value >> 5
                more = value != (-1 if bits & 16 else 0)
                text += chr(48 + bits + 32 * more)
                if not more:
                    break
        return text

    mask = LIVER_MASK & ~HOLE_MASK
    text = encode(runs(mask))
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": {"size": list(SHAPE), "counts": text}}
    folder = coco(unlabelled(tmp_path), annotations=[annotation])
    np.testing.assert_array_equal(read_pair(read_folder(folder).cases[0])[1], 3 * mask)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": [{"id": 7, "file_name": "other.png"}]}, "belongs to no image of the file .image_id 8"),
        ({"annotations": [], "images": [{"id": 7, "file_name": "other.png"}]}, "names no image of"),
        (
            {"annotations": [{"id": 4, "image_id": 7, "category_id": 3, "bbox": [0, 0, 3, 3]}]},
            "a box without a polygon",
        ),
        ({"annotations": [{"id": 4, "image_id": 7}]}, "its shapes cannot be read .KeyError 'category_id'"),
        ({"annotations": [], "categories": []}, "names a class"),
    ],
)
def test_mistakes_in_coco_are_named(tmp_path, changes, word):
    with pytest.raises((FolderError, ImageError), match=word):
        read_folder(coco(unlabelled(tmp_path), **changes))


def test_polygons_of_another_size_are_refused(tmp_path):
    folder = unlabelled(tmp_path)
    images = [{"id": i, "file_name": f"p{i - 7}_0.png", "height": 20, "width": 31} for i in (7, 8, 9)]
    with pytest.raises(ImageError, match="differ in size .the image is 30x20, .* says 31x20"):
        read_pair(read_folder(coco(folder, images=images)).cases[0])


@pytest.mark.parametrize("part", ["labels", "images"])
def test_labelme_polygons_beside_labels_or_images(tmp_path, part):
    folder = unlabelled(tmp_path, 2)
    for i, shapes in enumerate(([("liver", "polygon", LIVER)], [("tumour", "rectangle", [TUMOUR[0], TUMOUR[2]])])):
        contents = {
            "shapes": [{"label": name, "shape_type": kind, "points": points} for name, kind, points in shapes],
            "imagePath": f"..\\images\\p{i}_0.png", "imageHeight": SHAPE[0], "imageWidth": SHAPE[1],
        }  # fmt: skip
        (folder / part / f"p{i}_0.json").write_text(json.dumps(contents), encoding="utf-8-sig")
    read = read_folder(folder)
    assert (read.labels, read.taken) == ({1: "liver", 2: "tumour"}, "LabelMe polygons")
    images, labels, _ = read_support(folder)
    np.testing.assert_array_equal(labels[0], LIVER_MASK)
    np.testing.assert_array_equal(labels[1], 2 * TUMOUR_MASK)
    (folder / "meta.json").write_text('{"labels": {"4": "Tumour", "1": "spleen"}}')
    assert read_folder(folder).labels == {1: "spleen", 2: "liver", 4: "tumour"}
    assert len(images) == 2


def test_a_line_of_labelme_is_no_area(tmp_path):
    folder = unlabelled(tmp_path, 1)
    shapes = [{"label": "liver", "shape_type": "linestrip", "points": LIVER}]
    (folder / "labels" / "p0_0.json").write_text(json.dumps({"shapes": shapes}))
    with pytest.raises(ImageError, match="a shape is no area .linestrip of 'liver'; draw polygons"):
        read_folder(folder)


def test_qupath_geojson_with_a_hole_and_two_parts(tmp_path):
    folder = unlabelled(tmp_path, 1)
    geometry = {"type": "MultiPolygon", "coordinates": [[LIVER, HOLE], [TUMOUR]]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "gland"}}}
    for contents in ({"type": "FeatureCollection", "features": [feature]}, [feature], feature):
        (folder / "labels" / "p0_0.geojson").write_text(json.dumps(contents))
        read = read_folder(folder)
        assert (read.labels, read.taken) == ({1: "gland"}, "QuPath GeoJSON polygons")
        np.testing.assert_array_equal(read_pair(read.cases[0])[1], (LIVER_MASK & ~HOLE_MASK) | TUMOUR_MASK)


def test_a_polygon_beyond_the_image_is_cut_at_its_edge(tmp_path):
    file = tmp_path / "x.json"
    shapes = [{"label": "a", "points": [[-5, -5], [4, -5], [4, 400], [-5, 400]]}]
    file.write_text(json.dumps({"shapes": [*shapes, {"label": "b", "points": [[50, 50], [60, 50], [60, 60]]}]}))
    np.testing.assert_array_equal(draw(file, "", "a", SHAPE), box(0, 0, 4, 20)[1])
    assert not draw(file, "", "b", SHAPE).any()


def test_a_folder_of_masks_for_each_class(tmp_path):
    folder = unlabelled(tmp_path, 2)
    inner = LIVER_MASK & box(2, 3, 7, 15)[1]
    for name, masks in {"liver": {0: LIVER_MASK, 1: TUMOUR_MASK}, "lesion": {0: inner}}.items():
        (folder / "labels" / name).mkdir()
        for i, mask in masks.items():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "labels" / name / f"p{i}_0.png")
    read = read_folder(folder)
    assert (read.labels, read.taken) == ({1: "lesion", 2: "liver"}, "a folder of masks for each class")
    first, second = (read_pair(case)[1] for case in read.cases)
    np.testing.assert_array_equal(mask_of(first, 2, SHAPE), LIVER_MASK)  # classes may overlap
    np.testing.assert_array_equal(mask_of(first, 1, SHAPE), inner)
    np.testing.assert_array_equal(second, 2 * TUMOUR_MASK)
    arguments = ["--name", "d", "--data_dir", str(tmp_path / "data"), "--size", "16"]
    assert main(["build", "--folder", str(folder), *arguments]) == 0
    assert open_dataset(tmp_path / "data", "d").meta.labels == {1: "lesion", 2: "liver"}


def test_masks_of_volumes_for_each_class(tmp_path):
    image, label = block_volume((10, 12, 8), (1, 2))
    write_nifti(tmp_path / "images" / "a.nii.gz", image)
    for i, name in ((1, "liver"), (2, "spleen")):
        write_nifti(tmp_path / "labels" / name / "a.nii.gz", (label == i).astype(np.uint8))
    np.testing.assert_array_equal(read_volume_pair(read_folder(tmp_path).cases[0])[1], label)


def test_masks_in_colours(tmp_path):
    folder = write_folder(tmp_path, 1, SHAPE)
    colours = np.zeros((*SHAPE, 3), np.uint8)
    colours[LIVER_MASK], colours[TUMOUR_MASK] = (255, 0, 0), (0, 128, 64)
    Image.fromarray(colours).save(folder / "labels" / "p0_0.png")
    for table in ('"colours": {"3": [255, 0, 0], "1": "#008040"}', '"colors": {"3": "ff0000", "1": [0, 128, 64]}'):
        (folder / "meta.json").write_text(f'{{{table}, "labels": {{"3": "liver"}}}}')
        read = read_folder(folder)
        assert (read.labels, read.taken) == ({3: "liver", 1: "label 1"}, "colours of meta.json")
        np.testing.assert_array_equal(read_pair(read.cases[0])[1], 3 * LIVER_MASK + TUMOUR_MASK)
    (folder / "meta.json").write_text('{"colours": {"3": [255, 0, 0]}}')
    with pytest.raises(ImageError, match=r"colours that are not in .colours. of meta.json .#008040 and 0 others, 10 %"):
        read_pair(read_folder(folder).cases[0])
    for table in (
        {"1": [255, 0]},
        {"1": [0, 0, 300]},
        {"1": "red"},
        {"1": "#ff0000", "2": "#ff0000"},
        {"1": "#000000"},
    ):
        (folder / "meta.json").write_text(json.dumps({"colours": table}))
        with pytest.raises(FolderError, match='"colours" is .*; map ids to colours'):
            read_folder(folder)


def seg_nrrd(path, label, names):
    """A segmentation as 3D Slicer saves it: a label map with the names of its values."""
    image = sitk.GetImageFromArray(label.T)
    for k, (value, name) in enumerate(names.items()):
        for field, text in (("Name", name), ("LabelValue", str(value)), ("Layer", "0"), ("ID", f"Segment_{k}")):
            image.SetMetaData(f"Segment{k}_{field}", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def test_segment_names_of_slicer_decide_where_their_values_differ(tmp_path):
    """Slicer numbers segments in the order in which they were drawn."""
    image, label = block_volume((10, 12, 8), (1, 2))
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(image.T), str(tmp_path / "images" / f"{name}.nrrd"))
    seg_nrrd(tmp_path / "labels" / "a.seg.nrrd", label, {1: "liver", 2: "spleen"})
    seg_nrrd(tmp_path / "labels" / "b.seg.nrrd", np.array([0, 2, 1], np.uint8)[label], {1: "spleen", 2: "liver"})
    read = read_folder(tmp_path)
    assert read.labels == {1: "liver", 2: "spleen"}
    assert [case.fault for case in read.cases] == [("", "")] * 2
    first, second = (read_volume_pair(case)[1] for case in read.cases)
    np.testing.assert_array_equal(first, second)
    assert ids_of(first) == {1, 2}
    (tmp_path / "meta.json").write_text('{"labels": {"1": "spleen", "2": "liver"}}')
    swapped = read_volume_pair(read_folder(tmp_path).cases[0])[1]
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1])[first])


def test_a_label_that_slicer_cropped_lies_on_the_grid_of_its_image(tmp_path):
    image, label = block_volume((10, 12, 8), (1,))
    (tmp_path / "images").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(image.T), str(tmp_path / "images" / "a.nrrd"))
    seg_nrrd(tmp_path / "labels" / "a.seg.nrrd", label, {1: "liver"})
    whole = sitk.ReadImage(str(tmp_path / "labels" / "a.seg.nrrd"))
    expected = read_volume_pair(read_folder(tmp_path).cases[0])[1]
    cropped = sitk.RegionOfInterest(whole, [9, 8, 7], [1, 2, 0])
    for key in whole.GetMetaDataKeys():
        if key.startswith("Segment"):
            cropped.SetMetaData(key, whole.GetMetaData(key))
    sitk.WriteImage(cropped, str(tmp_path / "labels" / "a.seg.nrrd"))
    np.testing.assert_array_equal(read_volume_pair(read_folder(tmp_path).cases[0])[1], expected)


def test_names_of_itk_snap(tmp_path):
    folder = write_folder(tmp_path, 2, SHAPE, ids=(1, 4))
    lines = ["# ITK-SnAP Label Description File", '0 0 0 0 0 0 0 "Clear Label"', '1 255 0 0 1 1 1 "liver, left"']
    (folder / "labels.txt").write_text("\n".join([*lines, '    4     0  255    0        1  1  1    "tumour"']))
    read = read_folder(folder)
    assert read.labels == {1: "liver, left", 4: "tumour"}
    assert read.taken == "ids with the names of labels.txt"
    for i in range(2):  # 1 and 255 are two classes where both have a name
        file = folder / "labels" / f"p{i}_0.png"
        Image.fromarray(np.where(np.asarray(Image.open(file)) == 1, (1, 255)[i], 0).astype(np.uint8)).save(file)
    (folder / "labels.txt").write_text("\n".join([*lines, '255 0 255 0 1 1 1 "tumour"']))
    assert read_folder(folder).labels == {1: "liver, left", 255: "tumour"}
    assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1}, {0, 255}]
    (folder / "labels.txt").unlink()
    assert [set(np.unique(label)) for label in read_support(folder)[1]] == [{0, 1}, {0, 1}]
    write_folder(tmp_path, 2, SHAPE, ids=(1, 4))
    (folder / "labels.txt").write_text("notes about my data")
    assert read_folder(folder).labels == {1: "label 1", 4: "label 4"}


@pytest.mark.parametrize(("version", "zarr_format"), [("0.4", 2), ("0.5", 3)])
def test_ome_zarr_volumes_and_labels(tmp_path, version, zarr_format):
    zarr = pytest.importorskip("zarr")
    image, label = block_volume((10, 12, 8), (1, 2))
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    for part, data in (("images", image), ("labels", label)):
        steps = [{"type": "scale", "scale": [1, 3000, 2000, 1000]}]
        scales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}]
        ome = {"multiscales": scales, "version": version}
        group = zarr.open_group(tmp_path / part / "a.ome.zarr", mode="w", zarr_format=zarr_format)
        group.attrs.update({"ome": ome} if version == "0.5" else ome)
        group.create_array("0", data=data.T[None], chunks=(1, 4, 4, 4))
    volume, read = read_volume_pair(read_folder(tmp_path).cases[0])
    np.testing.assert_allclose(volume.spacing, (1, 2, 3))
    np.testing.assert_array_equal(volume.file_data(), image)
    np.testing.assert_array_equal(read, label[::-1, ::-1])  # in canonical axes
    assert [file.name for file in find_queries([tmp_path / "images"])] == ["a.ome.zarr"]
    group = zarr.open_group(tmp_path / "images" / "a.ome.zarr", mode="a")
    del group["0"]
    group.create_array("0", data=np.stack([image.T, image.T]), chunks=(1, 4, 4, 4))
    with pytest.raises(ImageError, match="several channels or times .2 along c"):
        read_volume(tmp_path / "images" / "a.ome.zarr")


def test_a_coco_file_alone_needs_no_folder_of_labels(tmp_path):
    folder = coco(unlabelled(tmp_path))
    (folder / "labels").rmdir()
    read = read_folder(folder)
    assert read.labels == {3: "liver", 5: "tumour"}
    assert not read.ignored


def test_a_mask_of_labelme_is_drawn_where_it_lies(tmp_path):
    folder = unlabelled(tmp_path, count=2)
    png = io.BytesIO()
    Image.fromarray(HOLE_MASK[6:9, 5:8]).save(png, "PNG")
    shape = {"label": "cyst", "shape_type": "mask", "points": [[5, 6], [7, 8]]}
    shape["mask"] = base64.b64encode(png.getvalue()).decode()
    for i in range(2):
        contents = {"shapes": [shape], "imageHeight": SHAPE[0], "imageWidth": SHAPE[1]}
        (folder / "labels" / f"p{i}_0.json").write_text(json.dumps(contents))
    assert read_folder(folder).labels == {1: "cyst"}
    np.testing.assert_array_equal(read_support(folder)[1][0], HOLE_MASK)
    shape["points"] = [[28, 6], [30, 8]]
    (folder / "labels" / "p0_0.json").write_text(json.dumps(contents))
    with pytest.raises(ImageError, match=r"p0_0.json: a mask lies outside its image"):
        read_support(folder)
    shape["shape_type"] = "line"
    (folder / "labels" / "p0_0.json").write_text(json.dumps(contents))
    with pytest.raises(ImageError, match=r"^[^:]*p0_0.json: a shape is no area .line of 'cyst'"):
        read_support(folder)
