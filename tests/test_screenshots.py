"""The parts of tools/screenshots.py that need neither a network nor a browser, and the screenshots of docs/."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools import screenshots
from universeg_jax.errors import UserError
from universeg_jax.readers.folder import read_folder

DOCS = Path(__file__).parents[1] / "docs"


def test_scans_are_a_support_folder_with_one_shifted_label(tmp_path):
    screenshots.write_scans(tmp_path)
    assert len(read_folder(tmp_path / "my_scans").cases) == screenshots.EXAMPLES
    differs = {}
    for file in (tmp_path / "my_scans" / "images").iterdir():
        label = np.asarray(Image.open(tmp_path / "my_scans" / "labels" / file.name)) > 0
        image = np.asarray(Image.open(file)).astype(float)
        differs[file.name] = image[label].mean() - image[~label].mean()  # the structure is bright
    assert min(differs, key=differs.__getitem__) == screenshots.SHIFTED
    names = [{file.name for file in (tmp_path / part).iterdir()} for part in ("new_scans", "truth")]
    assert names[0] == names[1]
    assert len(names[0]) == screenshots.QUERIES


def test_a_command_that_fails_is_told(tmp_path):
    with pytest.raises(UserError, match=r"universeg chekc: exit code 2\n(?s:.*)did you mean check"):
        screenshots.run(tmp_path, "chekc")


def test_bars_and_waits_are_left_out():
    output = "two lines\n\rpredict:   0%|   | 0/4\rpredict: 100%|###| 4/4\r      \rcompiling the model\nstay: 4\n"
    assert screenshots.settled(output) == "two lines\nstay: 4"


def test_a_terminal_shows_commands_and_output_and_fetches_nothing():
    svg = screenshots.terminal([("universeg check", "<1> & 2\n"), ("universeg predict", "3 masks")], "x")
    lines = ["".join(element.itertext()).replace("\xa0", " ") for element in ET.fromstring(svg).iter() if element.text]
    for line in ("$ universeg check", "<1> & 2", "$ universeg predict", "3 masks"):
        assert any(line in text for text in lines), line
    assert "url(http" not in svg
    assert "src: " not in svg


def test_a_large_screenshot_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(screenshots, "LIMIT", 1000)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(UserError, match="more than 1000"):
        screenshots.save(noise, tmp_path / "noise.png")
    screenshots.save(Image.new("RGB", (64, 32)), tmp_path / "black.png")
    assert Image.open(tmp_path / "black.png").size == (64, 32)


def test_overlays_stand_side_by_side(tmp_path):
    for name, value in (("b", 200), ("a", 100)):
        Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(tmp_path / f"{name}_overlay.png")
    screenshots.overlays(tmp_path, tmp_path / "both.png")
    assert np.asarray(Image.open(tmp_path / "both.png").convert("L"))[0].tolist() == [100] * 5 + [200] * 5


def test_screenshots_are_small_and_shown_with_words_for_who_cannot_see_them():
    text = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    shown = dict(re.findall(r"!\[([^\]]*)\]\((screens/[\w.-]+)\)", text)[::-1])
    files = {f"screens/{file.name}" for file in (DOCS / "screens").iterdir()}
    assert files == set(shown.values())
    assert all(len(words) > 20 for words in shown)
    assert all((DOCS / file).stat().st_size <= screenshots.LIMIT for file in files)
