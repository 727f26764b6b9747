"""`universeg tasks`: the page of thumbnails and the table of tasks."""

import base64
import csv
import io
import re

import numpy as np
from PIL import Image

from tests.fixtures import build_discs, disc_examples, itself
from universeg_jax.cli import main
from universeg_jax.data.builder import build
from universeg_jax.data.dataset import DatasetMeta
from universeg_jax.reports.overlay import COLOURS, outline


def test_the_page_shows_three_examples_of_every_task(tmp_path, capsys):
    build_discs(tmp_path / "data", "discs", "val", count=9)
    meta = DatasetMeta("odd", "test", {1: "<b>&", 2: "x"}, 16, licence="C<C", subjects_identifiable=False)
    build(meta, disc_examples(2), itself, tmp_path / "data")
    arguments = ["tasks", "--data_dir", str(tmp_path / "data")]
    assert main([*arguments, "--html", str(tmp_path / "a.html"), "--csv", str(tmp_path / "a.csv")]) == 0
    page = (tmp_path / "a.html").read_text()
    sections = page.split("<section")[1:]
    assert [section.count("<figure>") for section in sections] == [1, 1]
    assert [section.count("<img") for section in sections] == [3, 2]
    assert "&lt;b&gt;&amp;" in sections[1]
    assert "<b>" not in page
    assert "unusable: 2 subjects, 3 needed" in sections[1]
    assert "image-level split, interval optimistic" in sections[1]
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(p))) for p in re.findall(r"base64,([^\"]+)", sections[0])]
    examples = disc_examples(9)
    for thumbnail, example in zip(thumbnails, [examples[0], examples[4], examples[8]], strict=True):
        rim = (np.asarray(thumbnail.convert("RGB")) == COLOURS[0]).all(-1)
        np.testing.assert_array_equal(rim, outline(example.masks[0] > 0))
        np.testing.assert_array_equal(np.asarray(thumbnail)[~rim], np.minimum(example.image, 254)[~rim])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["unusable"]) for row in rows] == [
        ("discs/axis0/image/label1", ""),
        ("odd/axis0/image/label1", "2 subjects, 3 needed"),
    ]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
