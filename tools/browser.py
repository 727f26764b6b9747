"""The annotation page in a headless browser, driven as a user would: by the ids of its components.

Needs selenium, Chromium and its driver (Debian: chromium, chromium-driver). The test of the page and its screenshot use
it.
"""

import io
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from universeg_jax.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 200  # that the page may take for anything


def find_browser() -> str:
    """The path of a browser. Raises UserError if there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"no browser ({', '.join(BROWSERS)}) is on the path")
    return browser


def open_browser(size: tuple[int, int]) -> Any:
    """A headless browser with a window of `size` (width and height in pixels). Raises UserError for what is missing."""
    try:
        from selenium import webdriver
    except ModuleNotFoundError as error:
        raise UserError("selenium drives the browser: pip install selenium") from error
    driver = shutil.which("chromedriver")
    if driver is None:
        raise UserError("chromedriver is not on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = find_browser()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument("--window-size={},{}".format(*size))
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


class Tab:
    """The page at `url` in a browser."""

    def __init__(self, url: str, size: tuple[int, int] = (1500, 1900)) -> None:
        self.browser = open_browser(size)
        from selenium.webdriver.support.ui import WebDriverWait

        self._waiter = WebDriverWait(self.browser, SECONDS)
        self.browser.get(url)

    def find(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Waits until `condition` returns something true, and returns that."""
        return self._waiter.until(lambda _: condition())

    def says(self, *texts: str) -> None:
        """Waits until the status line has all texts."""
        self.wait(lambda: (found := self.find("#status")) and all(text in found[0].text for text in texts))

    def type(self, where: str, text: str) -> None:
        self.wait(lambda: self.find(f"#{where} textarea, #{where} input"))[0].send_keys(text)

    def upload(self, where: str, files: Sequence[Path]) -> None:
        self.wait(lambda: self.find(f"#{where} input[type=file]"))[0].send_keys("\n".join(map(str, files)))
        self.wait(lambda: files[-1].name.split(".")[0] in self.find(f"#{where}")[0].text)

    def into_view(self, element: Any) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)

    def click(self, selector: str) -> None:
        button = self.wait(lambda: self.find(selector))[0]
        self.into_view(button)
        button.click()

    def picture(self, selector: str) -> np.ndarray:
        """uint8 [H, W, 3]: the image that a component shows."""
        source = self.wait(lambda: self.find(f"{selector} img"))[0].get_attribute("src")
        with urllib.request.urlopen(source) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))

    def draw(self) -> None:
        """Draws a line of 120 pixels through the middle of the editor."""
        from selenium.webdriver import ActionChains

        canvas = self.wait(lambda: self.find("#editor canvas"))[0]
        self.into_view(canvas)
        line = ActionChains(self.browser).move_to_element(canvas).click_and_hold()
        line.move_by_offset(60, 0).move_by_offset(-120, 0).release().perform()

    def screenshot(self) -> Image.Image:
        """The window from the top of the page, once nothing moves any more."""
        self.browser.execute_script("window.scrollTo(0, 0)")
        before = b""
        while (shot := self.browser.get_screenshot_as_png()) != before:
            before = shot
        return Image.open(io.BytesIO(shot))

    def close(self) -> list[str]:
        """Closes the browser; the errors that it logged."""
        errors = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        self.browser.quit()
        return errors
