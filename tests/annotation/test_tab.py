"""The annotation page, by its functions and in a real browser."""

import importlib
import io
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import tiny_config, write_folder
from universeg_jax import Predictor
from universeg_jax.annotation import page as demo_page
from universeg_jax.annotation import tab as sessions
from universeg_jax.annotation.tab import LabelledImage, Session
from universeg_jax.errors import UserError
from universeg_jax.model.factory import build_model, init_params
from universeg_jax.readers.folder import read_support
from universeg_jax.readers.images import read_image, read_label
from universeg_jax.reports.overlay import COLOURS

SHAPE = (40, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "discs", count=5, shape=SHAPE)


@pytest.fixture(scope="module")
def cases(folder):
    """The labelled images of the folder."""
    images, labels, names = read_support(folder)
    return [LabelledImage(*case) for case in zip(names, images, labels, strict=True)]


@pytest.fixture(scope="module")
def predictor(cases):
    """Random weights, shifted so that they mark about half of the last image."""
    config = tiny_config()
    params = init_params(build_model(config.model), 0)
    first = Predictor(params, config).segment(cases[-1].image, *_arrays(cases[:3])).probabilities
    odds = np.median(np.log(first / (1 - first)))
    params["out"]["bias"] = params["out"]["bias"] - odds
    return Predictor(params, config)


def _arrays(cases):
    return [e.image for e in cases], [e.label for e in cases]


def _session(cases, examples, queries):
    session = Session()
    for e in cases[:examples]:
        session = sessions.add_example(session, e)
    return sessions.add_queries(session, {e.name: e.image for e in cases[-queries:]})


def test_uploads_are_read_and_deleted(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60000, SHAPE).astype(np.uint16)
    (tmp_path / "up").mkdir()
    Image.fromarray(image).save(tmp_path / "up" / "a.png")
    arrays = sessions.read_uploads([str(tmp_path / "up" / "a.png")], tmp_path)
    np.testing.assert_array_equal(arrays["a"], image)
    (tmp_path / "up" / "b.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^b\.png: cannot be read"):
        sessions.read_uploads([str(tmp_path / "up" / "b.png")], tmp_path)
    assert list((tmp_path / "up").iterdir()) == []


def test_no_file_elsewhere_is_read_or_deleted(tmp_path):
    (tmp_path / "up").mkdir()
    secret = tmp_path / "secret.png"
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(secret)
    (tmp_path / "up" / "link.png").symlink_to(secret)
    for path in (secret, tmp_path / "up" / ".." / "secret.png", tmp_path / "up" / "link.png"):
        with pytest.raises(UserError, match="secret.png was not uploaded here"):
            sessions.read_uploads([str(path)], tmp_path / "up")
    assert secret.exists()


def test_masks_of_0_and_255_mean_the_same_as_0_and_1(cases):
    images = {e.name: e.image for e in cases}
    session = sessions.add_examples(Session(), images, {e.name: 255 * e.label for e in cases})
    for example, case in zip(session.examples, cases, strict=True):
        np.testing.assert_array_equal(example.label, case.label)
    again = sessions.add_examples(session, {"p1_0": images["p1_0"]}, {"p1_0": np.ones(SHAPE)})
    assert [e.name for e in again.examples] == ["p0_0", "p2_0", "p3_0", "p4_0", "p1_0"]
    second = sessions.add_examples(session, {"p1_0": images["p1_0"]}, {"p1_0": 2 * np.eye(*SHAPE)})
    assert set(np.unique(second.examples[-1].label)) == {0, 2}  # a mask with the second structure alone


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ({}, {}, "no images"),
        ({"a": np.eye(4)}, {}, "a has no mask"),
        ({}, {"b": np.eye(4)}, "no images"),
        ({"a": np.eye(4)}, {"a": np.eye(4), "b": np.eye(4)}, "b has no image"),
        ({"a": np.eye(4)}, {"a": np.ones((5, 4))}, "the image is 4x4, its mask 4x5"),
        ({"a": np.eye(4)}, {"a": np.zeros((4, 4))}, "every mask is empty"),
        ({"a": np.eye(4)}, {"a": np.arange(16).reshape(4, 4)}, r"ids \[1, 2.* shows 1 to 6"),
    ],
)
def test_mismatched_images_and_masks_are_named(images, labels, message):
    with pytest.raises(UserError, match=message):
        sessions.add_examples(Session(), images, labels)


def test_an_image_is_not_its_own_example(predictor, cases):
    session = _session(cases, 4, 1)
    expected = predictor.segment(cases[-1].image, *_arrays(cases[:4])).mask
    assert expected.any()
    np.testing.assert_array_equal(sessions.predict(predictor, session).mask, expected)
    accepted = sessions.accept(session, np.ones(SHAPE, np.uint8))
    assert [e.name for e in accepted.examples] == [e.name for e in cases]
    np.testing.assert_array_equal(sessions.predict(predictor, accepted).mask, expected)
    assert sessions.predict(predictor, Session()) is None
    assert sessions.predict(predictor, replace(session, examples=())) is None


def test_accepting_goes_to_the_next_image_and_stops_at_the_last(cases):
    session = _session(cases, 1, 2)
    for name in ("p3_0", "p4_0", "p4_0"):
        assert session.query[0] == name
        session = sessions.accept(session, np.eye(*SHAPE, dtype=np.uint8))
    assert sorted(session.masks) == ["p3_0", "p4_0"]
    assert sessions.move(sessions.move(session, -1), -5).current == 0
    with pytest.raises(UserError, match="p4_0 is empty"):
        sessions.accept(session, np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match="no image to accept"):
        sessions.accept(Session(), np.ones(SHAPE, np.uint8))


def test_a_new_image_of_an_old_name_has_no_mask_yet(cases):
    first, second = np.ones((9, 7)), np.zeros((5, 6))
    session = sessions.accept(sessions.add_queries(Session(), {"slice1": first}), np.ones((9, 7)))
    session = sessions.add_queries(session, {"slice1": second, "slice2": first})
    assert session.masks == {}
    assert session.query[0] == "slice1"
    np.testing.assert_array_equal(session.query[1], second)


def test_effects_are_the_predictions_with_more_and_more_examples(predictor, cases):
    session = _session(cases, 4, 1)
    image = cases[-1].image
    masks = [predictor.segment(image, *_arrays(cases[:n])).mask for n in (1, 2, 3, 4)]
    effects = sessions.example_effects(predictor, session)
    assert [caption for _, caption in effects] == [f"{np.count_nonzero(masks[0])}: p0_0"] + [
        f"Δ {np.count_nonzero(masks[n] != masks[n - 1])}: + p{n}_0" for n in (1, 2, 3)
    ]
    for (shown, _), mask in zip(effects, masks, strict=True):
        np.testing.assert_array_equal(shown, sessions.overlay(image, mask))
    assert sessions.example_effects(predictor, Session()) == []
    unmarked = [replace(case, label=np.zeros_like(case.label)) for case in cases[:2]]
    effects = sessions.example_effects(predictor, replace(session, examples=(*unmarked, *cases[2:4])))
    assert [caption.split(": ")[1] for _, caption in effects] == [
        "p2_0",
        "+ p3_0",
    ]  # without a label there is no effect


@pytest.mark.parametrize("shape", [(40, 60), (900, 700), (640, 640)])
def test_an_untouched_mask_comes_back_exactly(shape):
    rng = np.random.default_rng(0)
    image, mask = rng.random(shape), rng.integers(0, 7, shape).astype(np.uint8)
    np.testing.assert_array_equal(sessions.edited_mask(sessions.editor_value(image, mask), image, mask), mask)
    empty = sessions.editor_value(image, None)
    assert not sessions.edited_mask(empty, image, None).any()


@pytest.mark.parametrize("shape", [(40, 60), (900, 700)])
def test_strokes_and_the_eraser_change_what_they_touch(shape):
    height, width = sessions.view_shape(shape)
    image, mask = np.random.default_rng(0).random(shape), np.zeros(shape, np.uint8)
    mask[: shape[0] // 4] = 3
    value = sessions.editor_value(image, mask)
    layer = value["layers"][0]
    layer[: height // 8] = 0  # erased
    layer[height // 2 : height, : width // 2] = (*COLOURS[1], 140)  # drawn in the colour of id 2
    layer[height // 2 : height, width // 2 : width] = (*COLOURS[0], 30)  # the blurred rim of a stroke
    edited = sessions.edited_mask(value, image, mask)
    row, column = shape[0], shape[1]
    assert not edited[: row // 8 - 1].any()
    assert (edited[row // 8 + 1 : row // 4] == 3).all()
    assert (edited[row // 2 + 1 :, : column // 2 - 1] == 2).all()
    assert not edited[row // 4 + 1 :, column // 2 + 1 :].any()


def test_overlays_and_heat_maps():
    image = np.outer(np.linspace(0, 1000, 100), np.ones(50))
    mask = np.zeros((100, 50), np.uint8)
    mask[20:60, 10:40] = 2
    shown = sessions.overlay(image, mask)
    assert (shown.shape, shown.dtype) == ((640, 320, 3), np.uint8)
    np.testing.assert_array_equal(shown[:, 0], sessions.view(image)[:, 0])  # unchanged outside the mask
    assert (shown[128, 64:256] == COLOURS[1]).all()  # the outline
    heat = sessions.heat_map(np.array([[0.0, 1.0]]))
    assert heat[0, 0].sum() < 30 < 500 < heat[0, -1].sum()


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        (np.arange(12).reshape(3, 4), ".png"),
        (np.arange(12).reshape(3, 4) * 5000, ".png"),
        (np.arange(12).reshape(3, 4) / 7 - 1, ".tif"),
    ],
)
def test_saved_images_keep_their_intensities(tmp_path, image, suffix):
    found, content = sessions.encode(image.astype(np.float32))
    (tmp_path / f"x{found}").write_bytes(content)
    assert found == suffix
    np.testing.assert_array_equal(read_image(tmp_path / f"x{found}"), image.astype(np.float32))


def test_the_saved_examples_are_a_support_folder(tmp_path, cases):
    with zipfile.ZipFile(io.BytesIO(sessions.support_zip(cases))) as archive:
        archive.extractall(tmp_path)
    images, labels, names = read_support(tmp_path)
    assert names == [e.name for e in cases]
    for image, label, e in zip(images, labels, cases, strict=True):
        np.testing.assert_array_equal(image, e.image)
        np.testing.assert_array_equal(label, e.label)
    with pytest.raises(UserError, match="no examples to save"):
        sessions.support_zip([])
    with pytest.raises(UserError, match="no masks to save"):
        sessions.masks_zip({})


def test_without_gradio_the_error_names_the_package(tmp_path, predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with pytest.raises(UserError, match=r"pip install 'universeg_jax\[demo\]'"):
        demo_page.launch(predictor, tmp_path)


@pytest.fixture
def page(predictor, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed (extra `demo`)")
    monkeypatch.setattr(demo_page, "MAX_FILE_SIZE", 4_000_000)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):  # the page sets them
        monkeypatch.setenv(name, "")
    (tmp_path / "kept").mkdir()
    page = demo_page.launch(predictor, tmp_path / "kept")
    yield page, f"http://{demo_page.HOST}:{page.server_port}", tmp_path / "kept"
    page.close()


def test_a_port_that_is_taken_is_named(page, predictor, tmp_path):
    blocks, _, _ = page
    with pytest.raises(UserError, match=f"port {blocks.server_port} of 127.0.0.1 is taken; choose another with --port"):
        demo_page.launch(predictor, tmp_path, blocks.server_port)


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


@pytest.mark.browser
def test_in_a_browser_examples_give_a_mask_that_can_be_corrected_accepted_and_saved(
    page, predictor, folder, cases, tmp_path
):
    _, url, kept = page
    browser = _browser()
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(condition):
        return WebDriverWait(browser, 60).until(lambda _: condition())

    def upload(where, part, names):
        paths = [str(folder / part / f"{name}.png") for name in names]
        wait(lambda: find(f"#{where} input[type=file]"))[0].send_keys("\n".join(paths))

    def picture(selector):
        source = wait(lambda: find(f"{selector} img"))[0].get_attribute("src")
        with urllib.request.urlopen(source) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))

    try:
        browser.get(url)
        upload("images", "images", ["p0_0", "p1_0", "p2_0"])
        wait(lambda: "p2_0" in find("#images")[0].text)
        upload("masks", "labels", ["p0_0", "p1_0", "p2_0"])
        wait(lambda: "p2_0" in find("#masks")[0].text)
        find("#add")[0].click()
        wait(lambda: len(find("#support img")) == 3)
        upload("queries", "images", ["p4_0"])
        wait(lambda: "by 3 examples" in find("#status")[0].text)
        expected = predictor.segment(cases[-1].image, *_arrays(cases[:3]))
        assert expected.mask.any()
        np.testing.assert_array_equal(picture("#result"), sessions.overlay(cases[-1].image, expected.mask))
        np.testing.assert_array_equal(picture("#uncertainty"), sessions.heat_map(expected.uncertainty))
        wait(lambda: len(find("#effects img")) == 3)
        browser.save_screenshot(str(tmp_path / "page.png"))

        canvas = wait(lambda: find("#editor canvas"))[0]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        drawing = ActionChains(browser).move_to_element(canvas).click_and_hold()
        drawing.move_by_offset(60, 0).move_by_offset(-120, 0).release().perform()
        find("#accept")[0].click()
        wait(lambda: len(find("#support img")) == 4)
        find("#save_support")[0].click()
        link = wait(lambda: find("#files a[href*='support.zip']"))[0].get_attribute("href")
        with urllib.request.urlopen(link) as answer, zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
            archive.extractall(tmp_path / "saved")
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == []
    finally:
        browser.save_screenshot(str(tmp_path / "end.png"))
        browser.quit()
    images, labels, names = read_support(tmp_path / "saved")
    assert names == ["p0_0", "p1_0", "p2_0", "p4_0"]
    np.testing.assert_array_equal(images[3], cases[-1].image)
    np.testing.assert_array_equal(labels[0], read_label(folder / "labels" / "p0_0.png"))
    stroke = labels[3] != expected.mask
    assert 0 < stroke.sum() < stroke.size / 4
    assert (labels[3][stroke] == 1).all()
    uploaded = {"p0_0.png", "p1_0.png", "p2_0.png", "p4_0.png"}
    assert not uploaded & {p.name for p in kept.rglob("*")}


def _browser():
    """A headless Chromium, or a skip that says what is absent."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed")
    from selenium import webdriver

    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("chromium and chromedriver are not on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1900"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
