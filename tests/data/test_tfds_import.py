"""`universeg build --tfds`: somebody else's TFDS dataset is built like a folder."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from universeg_jax.cli import main
from universeg_jax.data.dataset import open_dataset, read_report
from universeg_jax.data.tfds_import import TfdsFeatures, make_tfds_examples, read_tfds
from universeg_jax.errors import UserError
from universeg_jax.readers.errors import ImageError
from universeg_jax.readers.preprocess import preprocess_image, preprocess_mask, quantize

COUNT = 5


def image_and_label(i):
    """Image uint8 [20, 30, 3] and ids uint8 [20, 30, 1] of case i; the fourth image is constant."""
    rng = np.random.default_rng(i)
    image = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8) if i != 3 else np.full((20, 30, 3), 7, np.uint8)
    label = np.zeros((20, 30, 1), np.uint8)
    label[5:15, 5 : 15 + i], label[2:4, :9] = 1, 2
    return image, label


class Scans(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "drawn": {
                "ids": tfds.features.Image(shape=(None, None, 1)),
                "lossy": tfds.features.Image(shape=(None, None, 1), encoding_format="jpeg"),
                "named": tfds.features.LabeledImage(labels=["background", "liver", "spleen"], shape=(None, None, 1)),
            },
            "patient": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), citation="nobody", disable_shuffling=True
        )

    def _split_generators(self, _):
        return {"test": self._generate_examples(range(3, COUNT)), "train": self._generate_examples(range(3))}

    def _generate_examples(self, cases):
        for i in cases:
            image, label = image_and_label(i)
            ids = Image.fromarray(label[..., 0])
            drawn = {"ids": ids, "lossy": ids, "named": ids}
            yield i, {"image": Image.fromarray(image), "drawn": drawn, "patient": f"p{i // 2}"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    Scans(data_dir=path).download_and_prepare(file_format="array_record")
    (info,) = path.rglob("dataset_info.json")
    other = path / "other" / "1.0.0"
    shutil.copytree(info.parent, other)
    (other / info.name).write_text(info.read_text().replace("array_record", "tfrecord"))
    return path


def arguments(scans, data_dir, *more):
    place = ("build", "--tfds", str(scans), "--image", "image", "--data_dir", str(data_dir), "--workers", "1")
    return [*place, "--size", "16", "--name", "mine", *more]


def test_records_become_the_examples_of_a_folder(scans, tmp_path, capsys):
    keys = ("--mask", "drawn/ids", "--subject", "patient", "--modality", "CT", "--licence", "CC0", "--role", "val")
    assert main(arguments(scans / "scans", tmp_path, *keys)) == 0
    assert "| mine | val | 4 | 3 | 2 | 1 | built |" in capsys.readouterr().out
    dataset = open_dataset(tmp_path, "mine")
    meta = dataset.meta
    assert (meta.labels, meta.licence, meta.citation) == ({1: "label 1", 2: "label 2"}, "CC0", "nobody")
    assert meta.subjects_identifiable
    assert read_report(tmp_path, "mine").dropped == {
        "test/0": "every pixel is the same (7; there is nothing to see in it)"
    }
    for row, i in enumerate((4, 0, 1, 2)):  # the splits in the order of their names
        image, label = image_and_label(i)
        grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        example = dataset[row]
        np.testing.assert_allclose(example["image"], quantize(preprocess_image(grey, 16)), atol=1)
        for mask, of in zip(example["masks"], (1, 2), strict=True):
            np.testing.assert_array_equal(mask, preprocess_mask(label[..., 0] == of, 16))
        assert example["subject"].decode() == f"p{i // 2}"
        assert example["modality"].decode() == "CT"
    assert main(arguments(scans / "scans", tmp_path, *keys)) == 0
    assert "as it was" in capsys.readouterr().out


def test_a_dataset_is_found_by_name_and_keeps_its_class_names(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ("--mask", "drawn/named")
    assert main([*arguments("scans", scans, *more)]) == 0
    meta = open_dataset(scans, "mine").meta
    assert meta.labels == {1: "liver", 2: "spleen"}
    assert not meta.subjects_identifiable
    assert len(open_dataset(scans, "mine").index.subjects) == 4


@pytest.mark.parametrize(
    ("place", "more", "word"),
    [
        ("scans", ("--mask", "masks"), "has no feature 'masks'; there are drawn, image, patient"),
        ("scans", ("--mask", "drawn/id"), "has no feature 'drawn/id'; there are ids, lossy, named"),
        ("scans", ("--mask", "image/ids"), "has no feature 'image/ids'; there are none within it"),
        ("scans", ("--mask", "drawn/lossy"), "drawn/lossy is stored in JPEG"),
        ("scans", (), "needs --image, --mask and --name"),
        ("absent", ("--mask", "drawn/ids"), "holds no TFDS dataset"),
        (".", ("--mask", "drawn/ids"), "holds several TFDS datasets"),
        ("other", ("--mask", "drawn/ids"), "is in tfrecord, which needs TensorFlow"),
        ("scans", ("--mask", "image"), "no example is left of 5 cases"),
    ],
)
def test_missing_and_unsuitable_features_are_named(scans, tmp_path, capsys, place, more, word):
    assert main(arguments(scans / place, tmp_path, *more)) == 1
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def flip(scans, path, seed):
    """Reads the dataset with three flipped bits in one of its files: the messages of all errors."""
    root = path / str(seed)
    shutil.copytree(scans / "scans" / "1.0.0", root)
    files = sorted(root.iterdir())
    file, rng = files[seed % len(files)], np.random.default_rng(seed)
    data = bytearray(file.read_bytes())
    for position in rng.integers(0, min(len(data), 4000), 3):
        data[position] ^= 1 << rng.integers(8)
    file.write_bytes(bytes(data))
    messages = []
    try:
        for case in read_tfds(str(root), path, TfdsFeatures("image", "drawn/ids", "patient"), 16).cases:
            try:
                make_tfds_examples(case)
            except ImageError as error:
                messages.append(str(error))
    except UserError as error:
        messages.append(str(error))
    shutil.rmtree(root)
    return messages


def check_flips(scans, path, count):
    outcomes = [flip(scans, path, seed) for seed in range(count)]
    messages = [message for outcome in outcomes for message in outcome]
    assert all(message and "\n" not in message for message in messages)
    for word in ("cannot be opened as a TFDS dataset", "cannot be read", "every pixel is the same"):
        assert any(word in message for message in messages)
    assert any(len(outcome) == 1 and "the same" in outcome[0] for outcome in outcomes)  # all the others were read


def test_flipped_bits_end_in_one_line_or_nothing(scans, tmp_path):
    check_flips(scans, tmp_path, 25)


@pytest.mark.slow
def test_a_thousand_flips(scans, tmp_path):
    check_flips(scans, tmp_path, 1000)


def test_more_records_than_its_files_can_hold_are_refused(scans, tmp_path):
    shutil.copytree(scans / "scans" / "1.0.0", tmp_path / "bomb")
    file = tmp_path / "bomb" / "dataset_info.json"
    file.write_text(file.read_text().replace('"2"', f'"{10**15}"'))
    with pytest.raises(UserError, match="promises 1,000,000,000,000,003 records in"):
        read_tfds(str(tmp_path / "bomb"), tmp_path, TfdsFeatures("image", "drawn/ids"), 16)
