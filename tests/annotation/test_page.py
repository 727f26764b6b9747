"""The annotation page, as an HTTP server and in a real browser."""

import io
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from tests.annotation.fixtures import volume_project
from tests.fixtures import tiny_config, write_folder
from tools.browser import Tab
from universeg_jax import Predictor
from universeg_jax.annotation import canvas
from universeg_jax.annotation import page as demo_page
from universeg_jax.annotation.workspace import Workspace
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.readers.folder import read_support
from universeg_jax.readers.images import read_image, read_label

SHAPE = (40, 60)
PARTS = ("images", "labels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "discs", count=5, shape=SHAPE)


@pytest.fixture(scope="module")
def marking(folder):
    """A predictor of random weights, shifted so that it marks about half of the last image."""
    config = tiny_config()
    params = init_params(build_model(config.model), 0)
    images, labels, _ = read_support(folder)
    first = Predictor(params, config).segment(images[-1], images[:3], labels[:3]).probabilities
    params["out"]["bias"] = params["out"]["bias"] - np.median(np.log(first / (1 - first)))
    return Predictor(params, config)


@pytest.fixture
def workspace(marking, tmp_path):
    workspace = Workspace(tmp_path / "project", marking)
    yield workspace
    workspace.close()


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder


def test_only_uploaded_files_are_taken(tmp_path):
    (tmp_path / "up").mkdir()
    secret = tmp_path / "secret.png"
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(secret)
    (tmp_path / "up" / "link.png").symlink_to(secret)
    for path in (secret, tmp_path / "up" / ".." / "secret.png", tmp_path / "up" / "link.png"):
        with pytest.raises(UserError, match=r"secret.png was not uploaded here"):
            demo_page._uploaded([str(path)], tmp_path / "up")
    assert demo_page._uploaded(None, tmp_path) == []


def test_a_drawing_is_never_accepted_for_another_image(workspace):
    """Skip and then Accept, pressed before the page shows the next image: the drawing is of the earlier one."""
    tab = {"unit": "p1_0", "skipped": [], "sent": np.zeros(SHAPE, np.int32), "drawn_on": "second"}
    with pytest.raises(UserError, match="nothing was done: the image changed"):
        demo_page._accept(workspace, tab, {"layers": []}, "first")


def test_what_was_drawn_guides_the_next_prediction_and_only_that(marking, folder, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed (extra `demo`)")
    workspace = Workspace(tmp_path / "project", marking)
    names = [f"p{i}_0.png" for i in range(4)]
    images, masks = ([shutil.copy(folder / part / n, _made(tmp_path / part)) for n in names] for part in PARTS)
    workspace.add([Path(f) for f in images], [Path(f) for f in masks[:3]])
    tab = {"unit": "p3_0", "skipped": [], "sent": None, "drawn_on": "", "said": None}
    tab = demo_page._values(workspace, tab)[0]
    first = tab["sent"]

    def again(tab, row, value):
        """Draws `value` into a row of the editor, and predicts again."""
        drawn = tab["sent"].copy()
        drawn[row] = value
        editor = canvas.editor_value(workspace.grey("p3_0")[0], drawn, workspace.colours())
        unit = demo_page._again(workspace, tab, editor, tab["drawn_on"])
        return demo_page._values(workspace, {**tab, "unit": unit})[0]

    second = again(tab, 2, 1 - first[2])
    np.testing.assert_array_equal(second["said"][2], 1 - first[2])
    assert (np.delete(second["said"], 2, 0) == -1).all()
    np.testing.assert_array_equal(second["sent"][2], 1 - first[2])
    expected = workspace.opened()[1].predict("p3_0", corrections=second["said"])
    np.testing.assert_array_equal(second["sent"], expected.mask)
    third = again(second, 30, 1 - second["sent"][30])
    np.testing.assert_array_equal(third["said"][2], 1 - first[2])  # the first ones still count
    assert (third["said"][30] >= 0).all()
    fresh = demo_page._values(workspace, third)[0]  # the image chosen again
    assert fresh["said"] is None
    np.testing.assert_array_equal(fresh["sent"], first)
    workspace.accept("p3_0", first)
    with pytest.raises(UserError, match="p3_0 is accepted, and a prediction would cover it"):
        again(fresh, 2, 1)
    workspace.close()


def test_a_prediction_that_fails_leaves_no_corrections_for_the_next_image(workspace, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="gradio is not installed (extra `demo`)")
    monkeypatch.setattr(gradio, "Warning", lambda text: None)
    monkeypatch.setattr(demo_page, "_drawn", lambda *_: np.ones(SHAPE, np.int32))
    monkeypatch.setattr(Workspace, "check_predicted", lambda *_: None)
    asked = []

    def values(_, tab):
        asked.append((tab["unit"], tab.pop("corrections", None)))
        if len(asked) == 1:
            raise UserError("it failed")
        return (tab,)

    monkeypatch.setattr(demo_page, "_values", values)
    pressed = {}
    view = SimpleNamespace(editor=None, effects=None)
    on = demo_page._changes(workspace, [None], view)
    for name, change in (("again", lambda tab: demo_page._again(workspace, tab, {}, "")), ("skip", lambda tab: "b")):
        on(lambda changed, *_, name=name, **__: pressed.update({name: changed}) or MagicMock(), change)
    tab = {"unit": "a", "skipped": [], "sent": np.zeros(SHAPE, np.int32), "drawn_on": "", "said": None}
    pressed["again"](tab)
    assert "corrections" not in tab
    pressed["skip"](tab)
    assert [(unit, said is None) for unit, said in asked] == [("a", False), ("b", True)]


def test_without_gradio_the_error_names_the_package(tmp_path, workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with pytest.raises(UserError, match=r"pip install 'universeg_jax\[demo\]'"):
        demo_page.launch(workspace, tmp_path)


@pytest.fixture
def page(workspace, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed (extra `demo`)")
    monkeypatch.setattr(demo_page, "MAX_FILE_SIZE", 4_000_000)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):  # the page sets them
        monkeypatch.setenv(name, "")
    (tmp_path / "kept").mkdir()
    page = demo_page.launch(workspace, tmp_path / "kept")
    yield page, f"http://{demo_page.HOST}:{page.server_port}", tmp_path / "kept"
    page.close()


def test_a_port_that_is_taken_is_named(page, workspace, tmp_path):
    blocks, _, _ = page
    with pytest.raises(UserError, match=f"port {blocks.server_port} of 127.0.0.1 is taken; choose another with --port"):
        demo_page.launch(workspace, tmp_path, blocks.server_port)


def _status(url, data=None, headers=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_reads_no_file_of_the_host_and_takes_no_large_one(page, tmp_path):
    blocks, url, folder = page
    assert blocks.server_name == "127.0.0.1"
    (tmp_path / "secret.txt").write_text("secret")
    for path in (tmp_path / "secret.txt", Path(__file__), Path("setup.cfg").resolve(), folder / ".." / "secret.txt"):
        assert _status(f"{url}/gradio_api/file={path}") == 403

    def upload(size):
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n' % (
            b"0" * size
        )
        return _status(f"{url}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})

    assert upload(1000) == 200
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["a.png"]
    assert upload(4_000_001) == 413


@pytest.fixture
def tab(page, tmp_path):
    try:
        tab = Tab(page[1])
    except UserError as error:
        pytest.skip(str(error))
    yield tab
    tab.browser.save_screenshot(str(tmp_path / "end.png"))
    assert tab.close() == []


@pytest.mark.browser
def test_in_a_browser_examples_give_a_mask_that_can_be_corrected_accepted_undone_and_loaded_again(
    tab, page, marking, folder, workspace, tmp_path
):
    tab.upload("images", [folder / f"images/p{i}_0.png" for i in range(4)])
    tab.upload("masks", [folder / f"labels/p{i}_0.png" for i in range(3)])
    tab.type("labels", "disc")
    tab.click("#add")
    tab.says("predicted from 3 examples. 3 labelled, 1 left")
    images, labels, _ = read_support(workspace.path)
    query = read_image(folder / "images/p3_0.png")
    expected = marking.segment(query, images, labels)
    assert expected.mask.any()
    shown = workspace.show("p3_0")
    np.testing.assert_array_equal(
        tab.picture("#result"), canvas.overlay(shown.grey, expected.mask, workspace.colours())
    )
    tab.wait(lambda: len(tab.find("#support img")) == 3)
    tab.wait(lambda: len(tab.find("#effects img")) == 3)
    tab.browser.save_screenshot(str(tmp_path / "page.png"))

    tab.draw()
    tab.click("#again")
    tab.says("predicted from 3 examples and", "pixels that you corrected. 3 labelled, 1 left")
    tab.click("#accept")
    tab.says("the mask that you accepted. 4 labelled, 0 left")
    accepted = read_label(workspace.path / "labels/p3_0.png")
    drawn = slice(29, 31), slice(26, 34)  # the middle of the editor, a square of which the image is the upper part
    assert (accepted[drawn] == 1).all()
    assert (expected.mask[drawn] != 1).any()

    tab.browser.refresh()  # another session of the page
    tab.says("4 labelled, 0 left")
    tab.click("#undo")
    tab.says("predicted from 3 examples. 3 labelled, 1 left")
    assert not (workspace.path / "labels/p3_0.png").exists()
    tab.click("#redo")
    tab.says("4 labelled, 0 left")
    np.testing.assert_array_equal(read_label(workspace.path / "labels/p3_0.png"), accepted)
    tab.click("#rest")
    link = tab.wait(lambda: tab.find("#files a[href*='project.zip']"))[0].get_attribute("href")
    with urllib.request.urlopen(link) as answer, zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
        np.testing.assert_array_equal(np.asarray(Image.open(archive.open("labels/p3_0.png"))), accepted)
    uploaded = {f"p{i}_0.png" for i in range(4)}
    assert not uploaded & {p.name for p in page[2].rglob("*")}


@pytest.mark.browser
def test_in_a_browser_a_volume_is_drawn_slice_by_slice(tab, workspace, tmp_path):
    path, _ = volume_project(tmp_path / "other", shape=(48, 56, 5))
    tab.upload("images", [path.parent / "source/scan0.nii.gz"])
    tab.click("#add")
    tab.says("no examples yet")
    slider = tab.wait(lambda: tab.find("#slice input[type=number]"))[0]
    tab.into_view(slider)
    slider.send_keys("\ue009a\ue000", "2", "\t")  # all of it selected, 2 typed, then left
    tab.says("no examples yet", "scan0/2")
    tab.draw()
    tab.click("#accept")
    tab.says("1 labelled, 4 left")
    drawn = workspace.show("scan0/2").mask
    assert 0 < (drawn == 1).sum() < drawn.size / 4
    tab.click("#complete")
    tab.says("the mask of the completed volume")
    assert (workspace.path / "predictions/scan0.nii.gz").exists()
    tab.browser.refresh()
    tab.says("1 labelled, 4 left")
    np.testing.assert_array_equal(workspace.opened()[0].mask("scan0/2"), drawn)
