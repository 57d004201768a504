"""The page of attention maps in Chromium, by mouse, by keys and on a phone: `make browser`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from multihead.maps import page

LAYERS, HEADS, TOKENS = 3, 4, ["[CLS]", "to", "be", "or", "not", "<b>be</b>", "[SEP]"]


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """Weights (layers, H, L, L), each row with a key of its own that it sees most of."""
    scores = np.random.default_rng(0).normal(size=(LAYERS, HEADS, len(TOKENS), len(TOKENS))) * 2
    exps = np.exp(scores)
    return np.asarray(exps / exps.sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.fail("chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    started.set_page_load_timeout(60)
    yield started
    started.quit()


class Page:
    """The page as those who use it see it."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.all(selector)[0].text)

    @property
    def tokens(self) -> list[Any]:
        return self.all("#tokens button")

    @property
    def shares(self) -> list[float]:
        """The weights under the tokens, in per cent."""
        return [float(x.text.removesuffix(" %")) for x in self.all("#tokens small")]

    @property
    def focused(self) -> str:
        active = self.browser.switch_to.active_element
        return str(active.get_attribute("aria-label") or active.text.partition("\n")[0])

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def head(self, layer: int, head: int) -> Any:
        """The small map of a head from 1, or of the mean, 0."""
        return self.all("#heads button")[(layer - 1) * (HEADS + 1) + head]


@pytest.fixture
def shown(chromium: webdriver.Chrome, weights: np.ndarray, tmp_path: Path) -> Iterator[Page]:
    path = tmp_path / "maps.html"
    path.write_text(page(weights, TOKENS, note="three layers"), encoding="utf-8")
    chromium.set_window_size(1280, 900)
    chromium.get(path.as_uri())
    yield Page(chromium)
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


def test_it_opens_on_the_first_head(shown: Page, weights: np.ndarray) -> None:
    assert shown.text("#chosen") == "Layer 1, head 1"
    assert [x.text.partition("\n")[0] for x in shown.tokens] == TOKENS
    np.testing.assert_allclose(shown.shares, 100 * weights[0, 0, 0], atol=0.08)
    assert len(shown.all("#heads button")) == LAYERS * (HEADS + 1)


@pytest.mark.parametrize(("layer", "head"), [(1, 3), (3, 4), (2, 0)])
def test_a_click_on_a_small_map_opens_it(
    layer: int, head: int, shown: Page, weights: np.ndarray
) -> None:
    shown.head(layer, head).click()
    expected = weights[layer - 1].mean(axis=0) if head == 0 else weights[layer - 1, head - 1]
    name = "mean of the heads" if head == 0 else f"head {head}"
    assert shown.text("#chosen") == f"Layer {layer}, {name}"
    np.testing.assert_allclose(shown.shares, 100 * expected[0], atol=0.08)
    pressed = shown.all("#heads button[aria-pressed=true]")
    assert [x.get_attribute("aria-label") for x in pressed] == [f"Layer {layer}, {name}"]
    assert Select(shown.all("#layer")[0]).first_selected_option.text == str(layer)


def test_lists_choose_layer_and_head(shown: Page, weights: np.ndarray) -> None:
    Select(shown.all("#layer")[0]).select_by_visible_text("2")
    Select(shown.all("#head")[0]).select_by_visible_text("4")
    assert shown.text("#chosen") == "Layer 2, head 4"
    np.testing.assert_allclose(shown.shares, 100 * weights[1, 3, 0], atol=0.08)


def test_pointing_at_a_token_shows_where_it_looks(shown: Page, weights: np.ndarray) -> None:
    ActionChains(shown.browser).move_to_element(shown.tokens[4]).perform()
    row = weights[0, 0, 4]
    np.testing.assert_allclose(shown.shares, 100 * row, atol=0.08)
    most = int(row.argmax())
    said = f"Token 5, “not”, looks most at “{TOKENS[most]}” ({most + 1}) {100 * row[most]:.1f} %"
    assert shown.text("#said").startswith(said[:-3])  # but for the last digit
    first = shown.all("#ranking tbody tr")[0].text.split()
    assert first[0] == str(most + 1)
    assert float(first[-2]) == pytest.approx(row[most] * len(TOKENS), abs=0.06)
    ActionChains(shown.browser).move_to_element(shown.all("h1")[0]).perform()
    np.testing.assert_allclose(shown.shares, 100 * weights[0, 0, 0], atol=0.08)


def test_a_click_on_a_token_stays(shown: Page, weights: np.ndarray) -> None:
    shown.tokens[3].click()
    ActionChains(shown.browser).move_to_element(shown.all("h1")[0]).perform()
    shown.head(2, 2).click()
    np.testing.assert_allclose(shown.shares, 100 * weights[1, 1, 3], atol=0.08)


def test_all_of_it_can_be_reached_by_keys(shown: Page, weights: np.ndarray) -> None:
    stops = []
    shown.all("body")[0].click()
    for _ in range(7):
        shown.press(Keys.TAB)
        stops.append(shown.focused)
    tags = [stop for stop in stops if stop]
    assert tags[2] == "Layer 1, head 1"
    assert "[CLS]" in tags  # one stop for all tokens
    assert "to" not in tags


def test_arrow_keys_go_through_heads(shown: Page) -> None:
    shown.head(1, 1).click()
    shown.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert shown.focused == shown.text("#chosen") == "Layer 2, head 2"
    shown.press(Keys.HOME, Keys.ARROW_LEFT)
    assert shown.focused == shown.text("#chosen") == "Layer 2, mean of the heads"
    shown.press(Keys.END, Keys.ARROW_UP, Keys.ARROW_UP)
    assert shown.focused == shown.text("#chosen") == f"Layer 1, head {HEADS}"


def test_arrow_keys_go_through_tokens(shown: Page, weights: np.ndarray) -> None:
    shown.tokens[0].click()
    shown.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown.focused == "be"
    np.testing.assert_allclose(shown.shares, 100 * weights[0, 0, 2], atol=0.08)
    outline = shown.browser.switch_to.active_element.value_of_css_property("outline-width")
    assert outline == "3px"
    shown.press(Keys.END, Keys.ARROW_RIGHT)
    assert shown.focused == "[SEP]"
    assert "“[SEP]”" in shown.text("#said")


def test_the_map_has_a_table_of_the_same_numbers(shown: Page, weights: np.ndarray) -> None:
    shown.all("summary")[0].click()
    shown.head(3, 2).click()
    rows = [
        [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
        for row in shown.all("#numbers tbody tr")
    ]
    np.testing.assert_allclose(np.array(rows, float), 100 * weights[2, 1], atol=0.08)
    heads = [cell.text for cell in shown.all("#numbers thead th")]
    assert heads == TOKENS
    assert "Layer 3, head 2" in shown.all("#map")[0].get_attribute("aria-label")


def test_the_map_answers_the_pointer(shown: Page, weights: np.ndarray) -> None:
    frame = shown.browser.execute_script("return frame")
    canvas = shown.all("#map")[0]
    shown.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    middle = [canvas.size[name] / 2 for name in ("width", "height")]
    row, column = 5, 2
    to = [
        frame[side] + (n + 0.5) * frame["cell"] - half
        for side, n, half in zip(("left", "top"), (column, row), middle, strict=True)
    ]
    ActionChains(shown.browser).move_to_element_with_offset(canvas, *map(int, to)).click().perform()
    assert shown.text("#cell").startswith("<b>be</b> → be: ")
    np.testing.assert_allclose(shown.shares, 100 * weights[0, 0, row], atol=0.08)


def colour_in_map(shown: Page, row: int, column: int) -> list[int]:
    """The colour in the middle of a cell."""
    return list(
        shown.browser.execute_script(
            "const r = devicePixelRatio; return [...byId('map').getContext('2d').getImageData("
            "(frame.left + (arguments[1] + .5) * frame.cell) * r,"
            "(frame.top + (arguments[0] + .5) * frame.cell) * r, 1, 1).data].slice(0, 3)",
            row,
            column,
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_even_head_has_no_colour_and_a_peaked_one_has(
    scheme: str, chromium: webdriver.Chrome, tmp_path: Path
) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    path = tmp_path / "maps.html"
    path.write_text(page(np.stack([np.full((8, 8), 1 / 8), np.eye(8)])[None], list("abcdefgh")))
    chromium.get(path.as_uri())
    shown = Page(chromium)
    paper = [252, 252, 251] if scheme == "light" else [29, 32, 37]
    np.testing.assert_allclose(colour_in_map(shown, 3, 3), paper, atol=4)
    shown.all("#heads button")[2].click()
    ink = [8, 38, 82] if scheme == "light" else [246, 240, 170]
    np.testing.assert_allclose(colour_in_map(shown, 3, 3), ink, atol=4)
    np.testing.assert_allclose(colour_in_map(shown, 3, 4), paper, atol=4)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_other_keys_have_a_line_of_their_own(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "maps.html"
    path.write_text(page(np.full((1, 1, 2, 3), 1 / 3), ["a", "b"], keys=["x", "y", "z"]))
    chromium.get(path.as_uri())
    shown = Page(chromium)
    assert [x.text.split() for x in shown.all("#keys > span")] == [
        [word, "33.3", "%"] for word in "xyz"
    ]
    assert shown.all("#tokens small") == []


def test_a_phone_shows_all_of_it(chromium: webdriver.Chrome, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scores = np.exp(rng.normal(size=(6, 12, 40, 40)))
    words = ["antidisestablishmentarianism" * 2, *(f"word{n}" for n in range(39))]
    path = tmp_path / "maps.html"
    path.write_text(page(scores / scores.sum(-1, keepdims=True), words), encoding="utf-8")
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        chromium.get(path.as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") == 390
        sizes = [x.size for x in Page(chromium).tokens]
        assert min(size["height"] for size in sizes) >= 40  # for a thumb
        assert max(size["width"] for size in sizes) <= 390
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
