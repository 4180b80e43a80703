"""report.html in a real browser: opens from disk, draws, filters, exports, asks for nothing, logs nothing."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outputs import valid_csv
from reports import document
from test_outputs import hostile

from benchmarks.report_page import browser, build_run, requests_of
from kdaudit.report.document import Document
from kdaudit.report.page import render_html

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def page(downloads) -> Iterator[Any]:
    """Headless Chromium; the tests skip where there is none."""
    try:
        with browser(downloads) as opened:
            yield opened
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def large(shared, tmp_path_factory) -> tuple[Path, Document]:
    """A run with 10,000 candidates, of real images."""
    run = tmp_path_factory.mktemp("large") / "run"
    return run, build_run(run, shared / "data/cifar10/train.parquet", document())


def quiet(page: Any) -> None:
    """Nothing in the console and no request since the page was opened."""
    assert page.get_log("browser") == []
    assert requests_of(page) == []


def opened(page: Any, file: Path) -> None:
    page.get_log("performance")
    page.get(file.as_uri())
    assert page.execute_script("return document.documentElement.dataset.ready") == "yes"


def choose(page: Any, name: str, value: str) -> None:
    page.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def paths(page: Any) -> list[str]:
    return page.execute_script("return [...document.querySelectorAll('#grid .tile')].map((t) => t.title)")


def text(page: Any, name: str) -> str:
    return page.execute_script("return document.getElementById(arguments[0]).textContent", name)


def exported(page: Any, downloads: Path) -> str:
    file = downloads / "candidates.csv"
    file.unlink(missing_ok=True)
    page.execute_script("document.getElementById('export').click()")
    for _ in range(600):  # however long a busy machine takes
        if file.exists() and not list(downloads.glob("*.crdownload")):
            return file.read_bytes().decode("utf-8")
        time.sleep(0.1)
    raise AssertionError("nothing was exported")


def test_ten_thousand_candidates_draw_filter_sort_and_export(page, large, downloads):
    run, made = large
    file = run / "report.html"
    assert file.stat().st_size < 15_000_000
    opened(page, file)
    assert text(page, "count") == "10,000 of 10,000 candidates"
    assert text(page, "pageno") == "page 1 of 84"
    assert paths(page)[0] == "shard-00/000000.jpg"
    assert len(paths(page)) == 120
    sheets = page.execute_script(
        "return new Set([...document.querySelectorAll('.thumb')].map((t) => t.style.backgroundImage)).size"
    )
    assert sheets == 1  # only what is looked at is decoded

    second = made.clusters[1]
    choose(page, "cluster", second.id)
    assert text(page, "count") == f"{second.size:,} of 10,000 candidates"
    rows = valid_csv(exported(page, downloads))
    assert len(rows) == second.size
    assert {row["cluster"] for row in rows} == {second.id}
    assert {row["control"] for row in rows} == {str(second.sees[0].answer)}

    choose(page, "cluster", "")
    choose(page, "search", "shard-03/0031")
    assert text(page, "count") == "100 of 10,000 candidates"
    choose(page, "sort", "path")
    assert paths(page) == sorted(paths(page))
    choose(page, "search", "no such thing")
    assert paths(page) == []
    assert "No candidate fits" in text(page, "grid")
    choose(page, "search", "")
    choose(page, "sort", "p")
    page.execute_script("document.getElementById('next').click()")
    assert text(page, "pageno") == "page 2 of 84"
    quiet(page)


def test_a_thumbnail_shows_the_image_it_stands_for(page, large):
    """The tile's place on its sheet is right: what the browser paints is the trigger's yellow, where it was put."""
    run, _ = large
    opened(page, run / "report.html")
    choose(page, "search", "shard-09/009999")
    assert len(paths(page)) == 1
    element = page.execute_script(
        "const t = document.querySelector('#grid .thumb'); t.scrollIntoView({block: 'center'}); return t"
    )
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    red, green, blue = picture.getpixel((picture.width * 4 // 32, picture.height * 28 // 32))
    assert min(red, green) - blue > 80, (red, green, blue)


def test_images_are_selected_with_mouse_and_keyboard_and_the_selection_is_exported(page, large, downloads):
    from selenium.webdriver import ActionChains, Keys

    run, _ = large
    opened(page, run / "report.html")
    tiles = page.find_elements("css selector", "#grid .tile")
    tiles[2].click()
    ActionChains(page).key_down(Keys.SHIFT).click(tiles[5]).key_up(Keys.SHIFT).perform()
    assert text(page, "count").endswith("4 selected")
    ActionChains(page).send_keys(Keys.ARROW_RIGHT, " ").perform()
    assert text(page, "count").endswith("5 selected")
    rows = valid_csv(exported(page, downloads))
    assert [row["path"] for row in rows] == [f"shard-00/{i:06d}.jpg" for i in (2, 3, 4, 5, 6)]
    ActionChains(page).send_keys(Keys.ENTER).perform()
    assert page.execute_script("return document.getElementById('dialog').open")
    assert "shard-00/000006.jpg" in text(page, "detail")
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    ActionChains(page).send_keys("c").perform()
    assert "selected" not in text(page, "count")
    ActionChains(page).send_keys("]").perform()
    assert text(page, "pageno") == "page 2 of 84"
    ActionChains(page).send_keys("/shard-05").perform()
    assert text(page, "count") == "1,000 of 10,000 candidates"
    quiet(page)


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(width, page, large):
    run, _ = large
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    try:
        opened(page, run / "report.html")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("media", ["dark", "light", "print"])
def test_text_can_be_read_in_every_mode(media, page, large):
    """The verdict, the body and the soft text against their background, by the contrast ratio of WCAG (AA: 4.5)."""
    run, _ = large
    if media == "print":
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    else:
        features = [{"name": "prefers-color-scheme", "value": media}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        opened(page, run / "report.html")
        ratios = page.execute_script(CONTRAST)
        assert ratios
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "=cmd|' /C calc'!A0", "\x1b]0;owned\x07\u202e.png"]
)
def test_a_hostile_name_is_text_in_the_page_and_in_its_export(name, page, downloads, tmp_path):
    made, gallery = hostile(name)
    file = tmp_path / "report.html"
    file.write_text(render_html(made, gallery), encoding="utf-8")
    opened(page, file)
    assert page.execute_script("return document.scripts.length") == 2
    (row,) = valid_csv(exported(page, downloads))
    assert row["path"].removeprefix("./") == paths(page)[0]
    assert list(csv.reader([",".join(row)]))
    quiet(page)


CONTRAST = """
const light = ([r, g, b]) => {
  const part = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
};
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const found = numbers(getComputedStyle(e).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
  return [255, 255, 255];
};
const found = {};
for (const query of [".verdict h1", ".verdict .why", ".verdict .about", ".fact span", ".soft", "th", "td",
                     ".says .model", ".says i", ".path", ".tag.critical", ".chip", "figcaption",
                     ".mark.failed", "footer", "pre"]) {
  const element = document.querySelector(query);
  if (!element) continue;
  const [a, b] = [numbers(getComputedStyle(element).color), behind(element)].map((c) => light(c)).sort((x, y) => y - x);
  found[query] = (a + 0.05) / (b + 0.05);
}
return found;
"""
