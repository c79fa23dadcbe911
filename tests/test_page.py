"""The page for people, in Chromium on a real service. Screenshots go to build/screenshots, to be looked at."""

import base64
import csv
import io
import json
import mimetypes
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright

from florence_tagger.config import SAMPLES
from florence_tagger.media.formats import EXTENSIONS
from tests.conftest import ROOT, SCENES, TRUTH, RunningServer, document, start_server, stop_server, wait_for
from tests.test_tiles import CROWD
from tests.variants import QUEUE, STREET, YARD, picture, saved
from tests.videos import animation, video

PAGE = SAMPLES.parent / "page"
SCREENSHOTS = ROOT / "build" / "screenshots"
CHROMIUM = Path(__file__).parent / "chromium.sh"
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
MAX_BYTES = 150_000  # of all that the page loads at first, headers included

# The longest takes 11 s; a browser that hangs ends the run and tells where.
pytestmark = pytest.mark.timeout(180, method="thread")

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's or Ubuntu's own Chromium; where there is none the script says so."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Browser, server: RunningServer) -> Iterator[Visit]:
    """Opens the page; in the end nothing may have been asked of another host, and the console has no errors.

    `refused` is the end of the URLs that the service is meant to answer with an error.
    """
    seen: list[str] = []
    origin = server.url

    def is_foreign(request: Request) -> bool:
        return not request.url.startswith((f"{origin}/", f"blob:{origin}/"))

    with ExitStack() as stack:

        def opened(url: str = server.url, refused: str = "", **options: Any) -> Page:
            nonlocal origin
            origin = url
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
            stack.callback(context.close)
            context.set_default_timeout(20_000)
            page = context.new_page()
            page.on("console", lambda message: is_fault(message, refused) and seen.append(message.text))
            page.on("pageerror", lambda error: seen.append(str(error)))
            page.on("request", lambda request: is_foreign(request) and seen.append(request.url))
            page.goto(f"{url}/")
            return page

        yield opened
        assert seen == []


def is_fault(message: ConsoleMessage, refused: str) -> bool:
    """Whether a line of the console tells of a fault."""
    expected = "Failed to load resource" in message.text and message.location["url"].endswith(refused or "/none")
    return message.type in ("error", "warning") and not expected


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit()


def choose(page: Page, *files: tuple[str, bytes]) -> None:
    """Chooses files and waits until they are counted."""
    page.locator("#files").set_input_files(
        [{"name": name, "mimeType": mime(name), "buffer": content} for name, content in files]
    )
    settle(page)


def mime(name: str) -> str:
    return mimetypes.guess_type(name)[0] or ""


def settle(page: Page) -> None:
    """Waits until nothing is being counted any more."""
    expect(page.locator("#told")).not_to_be_empty(timeout=30_000)
    expect(page.locator("#work")).to_be_hidden(timeout=30_000)


def table(page: Page) -> list[tuple[str, int]]:
    """The rows of the table: label and count."""
    cells = "rows => rows.map(row => [row.dataset.label, Number(row.lastElementChild.textContent)])"
    return [(label, count) for label, count in page.locator("#rows tr").evaluate_all(cells)]


def ranked(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def answered(server: RunningServer, content: bytes, **parameters: Any) -> dict[str, Any]:
    """A document's source as the service answers it."""
    body = {"documents": [document(content)], "num_labels": 0, **parameters}
    source: dict[str, Any] = server.post(body).json()["data"][0]["source"]
    return source


def counted(server: RunningServer, content: bytes, **parameters: Any) -> list[tuple[str, int]]:
    """The service's own counts, as the table should have them."""
    found = answered(server, content, **parameters)["content"]
    return ranked({label: count for one in found for label, count in one.items()})


def set_threshold(page: Page, score: float) -> None:
    page.locator("#threshold").fill(str(score))


def screenshot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.mouse.move(0, 0)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def pages_file() -> bytes:
    """A TIFF of three pages, which Chromium can't show."""
    first, *others = (picture(scene=one) for one in (STREET, QUEUE, YARD))
    return saved(first, "TIFF", save_all=True, append_images=others)


SCENE = (SCENES / "scene00.png").read_bytes()


@pytest.mark.parametrize("name", ["street.png", "yard.png", "picnic.jpg", "crossing.webm"])
def test_a_sample_takes_one_click(page: Page, server: RunningServer, name: str) -> None:
    page.locator(f"[data-sample='{name}']").click()
    settle(page)
    assert table(page) == counted(server, (SAMPLES / name).read_bytes())
    expect(page.locator("#about")).to_have_text(re.compile(r"Counted by florence-2-tiny \(\w+\) on CPU in [\d.]+ s\."))
    expect(page.locator("#told")).to_have_text(re.compile(rf"{name}: \d+ objects, \d labels\."))


TRANSFER = """([name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/png" }));
  return data;
}"""


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_files_come_in_three_ways(page: Page, way: str) -> None:
    if way == "choose":
        choose(page, ("scene00.png", SCENE))
    else:
        transfer = page.evaluate_handle(TRANSFER, ["scene00.png", base64.b64encode(SCENE).decode()])
        if way == "drop":
            page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
            expect(page.locator("#drop")).to_have_class(re.compile("over"))
            page.dispatch_event("body", "drop", {"dataTransfer": transfer})
            expect(page.locator("#drop")).not_to_have_class(re.compile("over"))
        else:
            paste = "data => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))"
            page.evaluate(paste, transfer)
        settle(page)
    assert table(page) == ranked(TRUTH["scene00.png"])


def test_boxes_are_where_the_service_says(page: Page, server: RunningServer) -> None:
    choose(page, ("scene00.png", SCENE))
    frame = page.locator(".frame").bounding_box()
    assert frame
    places = "boxes => boxes.map(one => [one.dataset.label, ...Object.values(one.getBoundingClientRect().toJSON())])"
    drawn = sorted(
        (label, *(round(320 * (one - start) / frame["width"]) for one, start in ((x, frame["x"]), (y, frame["y"]))))
        for label, x, y, *_ in page.locator(".box").evaluate_all(places)
    )
    detections = answered(server, SCENE, return_boxes=True)["detections"]
    assert drawn == sorted((one["label"], *(round(side) for side in one["box"][:2])) for one in detections)
    score = detections[0]["score"]
    x1, y1, x2, y2 = detections[0]["box"]
    places = [["top left", "top", "top right"], ["left", "centre", "right"], ["bottom left", "bottom", "bottom right"]]
    place = places[int((y1 + y2) / 2 * 3 / 320)][int((x1 + x2) / 2 * 3 / 320)]
    label = f"{detections[0]['label']}, score {score:.2f}, {place}"
    expect(page.get_by_role("button", name=label, exact=True).first).to_be_visible()
    expect(page.get_by_role("figure", name=f"scene00.png: {len(detections)} found", exact=True)).to_be_visible()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("scene.png", lambda: SCENE),
        ("pages.tif", pages_file),
        ("video.webm", lambda: video("webm", "libvpx-vp9", deadline="realtime")),
        ("animation.gif", lambda: animation("GIF")),
    ],
)
def test_the_threshold_recounts_as_the_service_does(
    page: Page, server: RunningServer, name: str, make: Callable[[], bytes]
) -> None:
    content = make()
    choose(page, (name, content))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for score in (0.0, 0.7, 0.8, 0.85, 0.9, 1.0):
        set_threshold(page, score)
        assert table(page) == counted(server, content, min_score=score), score
        expect(page.locator("#least")).to_have_text(f"{score:.2f}")
    expect(page.locator("#total")).to_have_text("Nothing found")
    assert [url for url in asked if url.endswith("/process")] == [], "counted in the browser"


def test_hover_and_focus_link_boxes_and_rows(page: Page) -> None:
    choose(page, ("scene00.png", SCENE))
    label, count = table(page)[0]
    row, boxes = page.locator(f"#rows tr[data-label='{label}']"), page.locator(f".box[data-label='{label}']")
    others = page.locator(f".box:not([data-label='{label}'])").first
    lit = re.compile(r"\blit\b")
    row.hover()
    assert boxes.count() == count
    for box in boxes.all():
        expect(box).to_have_class(lit)
    expect(others).not_to_have_class(lit)
    page.mouse.move(0, 0)
    expect(row).not_to_have_class(lit)
    boxes.first.hover()
    expect(row).to_have_class(lit)
    page.mouse.move(0, 0)
    row.get_by_role("button").focus()
    expect(boxes.first).to_have_class(lit)
    row.get_by_role("button").press("Enter")  # it stays
    page.locator("#copy").focus()
    expect(boxes.first).to_have_class(lit)
    expect(row.get_by_role("button")).to_have_attribute("aria-pressed", "true")
    expect(boxes.first).to_have_attribute("aria-pressed", "true")
    expect(others).to_have_attribute("aria-pressed", "false")
    boxes.first.click()
    expect(row.get_by_role("button")).to_have_attribute("aria-pressed", "false")


# What those see who lack one kind of cone (Machado, Oliveira and Fernandes, 2009), in linear RGB.
COLOUR_BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray[Any, Any]:
    values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """CIELAB of linear RGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_labels_look_different_to_everybody(page: Page) -> None:
    labels = [f"label {index}" for index in range(32)]
    script = "async labels => { const { lookOf } = await import('/page/palette.js'); return labels.map(lookOf); }"
    looks = page.evaluate(script, labels)
    assert len({(look["colour"], look["style"]) for look in looks}) == 32
    for matrix in [np.eye(3), *COLOUR_BLINDNESS.values()]:
        colours = [lab(np.array(matrix) @ linear(look["colour"])) for look in looks[:8]]
        gaps = [np.linalg.norm(a - b) for index, a in enumerate(colours) for b in colours[:index]]
        assert min(gaps) > 10  # 2.3 can just be seen


def test_tasks_and_their_text(page: Page) -> None:
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda one: one.method == "POST" and bodies.append(one.post_data_json))
    choose(page, ("scene00.png", SCENE))
    page.get_by_label("Look for", exact=True).select_option("OPEN_VOCABULARY_DETECTION")
    page.get_by_role("button", name="Count again").click()
    expect(page.locator("#told")).to_have_text("Say what to look for, then count.")
    text = page.get_by_label("What to look for")
    expect(text).to_be_focused()
    text.fill("  car ")
    text.press("Enter")
    expect(page.locator("#told")).to_have_text(re.compile("scene00.png"))
    page.get_by_label("Look for", exact=True).select_option("REGION_PROPOSAL")
    expect(text).to_be_hidden()
    page.get_by_role("button", name="Count again").click()
    settle(page)
    asked = [(body["prompt"], body["text"], body["num_labels"], body["return_boxes"]) for body in bodies]
    assert asked == [
        ("OD", "", 0, True),
        ("OPEN_VOCABULARY_DETECTION", "car", 0, True),
        ("REGION_PROPOSAL", "", 0, True),
    ]


def test_tiles_are_asked_for_and_drawn(page: Page, server: RunningServer) -> None:
    page.get_by_label("in", exact=True).select_option("2")
    choose(page, ("crowd.png", CROWD))
    assert table(page) == counted(server, CROWD, tiles=2)
    tiles, switch = page.locator(".tile"), page.get_by_label("Show the tiles")
    expect(tiles).to_have_count(4)
    frame, last = page.locator(".frame").bounding_box(), tiles.last.bounding_box()
    assert frame is not None
    assert last is not None
    assert last["x"] == pytest.approx(frame["x"] + frame["width"] * 329 / 768, abs=1)
    assert last["width"] == pytest.approx(frame["width"] * 439 / 768, abs=1)
    screenshot(page, "tiles")
    switch.uncheck()
    expect(tiles.first).to_be_hidden()
    page.get_by_label("in", exact=True).select_option("1")
    page.get_by_role("button", name="Count again").click()
    settle(page)
    expect(tiles).to_have_count(0)
    expect(switch).to_be_hidden()


def test_a_bad_file_does_not_hurt_the_others(page: Page) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    choose(page, ("scene00.png", SCENE), (name, b"no picture"), ("scene01.jpg", (SCENES / "scene01.jpg").read_bytes()))
    expect(page.locator("#told")).to_have_text("2 files counted, 1 not.")
    page.get_by_role("button", name=name).click()
    expect(page.get_by_role("alert")).to_contain_text(f"{name}: ")
    expect(page.get_by_role("alert")).to_contain_text("not a picture")
    expect(page.locator("#found")).to_be_hidden()
    expect(page.get_by_role("button", name="Copy JSON")).to_be_enabled()  # they are of all files
    expect(page.get_by_role("button", name="Save CSV")).to_be_enabled()
    screenshot(page, "failed")
    page.get_by_role("button", name="scene01.jpg").press("Enter")
    expect(page.get_by_role("button", name="scene01.jpg")).to_be_focused()
    assert table(page) == ranked(TRUTH["scene01.jpg"])
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#results")).to_be_hidden()


def test_a_video_has_frames_and_a_plot(page: Page) -> None:
    page.get_by_role("button", name="Video").click()
    settle(page)
    strip = page.get_by_role("group", name="Frames").get_by_role("button")
    expect(strip).to_have_count(11)
    expect(page.locator("#strip [aria-pressed=true]")).to_have_count(1)
    strip.nth(0).click()
    expect(page.locator(".box")).to_have_count(3)
    expect(strip.nth(0)).to_have_attribute("aria-label", "0:00: 3 found")
    colours = """canvas => {  // of a copy: Chromium warns of canvases that are read again and again
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        return new Set(copy.getImageData(0, 0, canvas.width, canvas.height).data).size;
    }"""
    assert page.locator(".frame canvas").evaluate(colours) > 100
    assert wait_for(lambda: strip.nth(4).locator("canvas").evaluate(colours) > 50)
    strip.nth(0).press("ArrowRight")
    expect(strip.nth(1)).to_be_focused()
    expect(strip.nth(1)).to_have_attribute("aria-pressed", "true")
    for key, place in (("End", 10), ("ArrowRight", 10), ("Home", 0)):
        page.keyboard.press(key)
        expect(strip.nth(place)).to_be_focused()
        expect(strip.nth(place)).to_have_attribute("aria-pressed", "true")
    page.locator("#rows tr[data-label=bus] button").click()  # goes to where it is most
    expect(strip.nth(6)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".box[data-label=bus]")).to_have_count(1)
    lines = page.locator("#plot polyline:not(.edge)")
    assert lines.evaluate_all("lines => lines.map(line => line.dataset.label)") == [label for label, _ in table(page)]
    expect(page.get_by_role("img", name=re.compile("Counts over time. person: most, 3, at 0:05"))).to_be_visible()
    words = page.locator("#plot span").evaluate_all("all => all.map(one => one.textContent)")
    assert words == ["3", "0", "Counts over time", "0:00", "0:09.9"]
    plot = page.locator("#plot svg").bounding_box()
    assert plot
    page.mouse.click(plot["x"] + plot["width"] - 3, plot["y"] + 20)
    expect(strip.nth(10)).to_have_attribute("aria-pressed", "true")


def test_a_video_without_anything_has_all_its_frames(page: Page) -> None:
    def answer(route: Route) -> None:
        response = route.fetch()
        envelope = response.json()
        envelope["data"][0]["source"] |= {"content": [], "detections": []}
        route.fulfill(response=response, json=envelope)

    page.route("**/process", answer)
    page.get_by_role("button", name="Video").click()
    settle(page)
    expect(page.locator("#total")).to_have_text("Nothing found")
    expect(page.locator("#strip button")).to_have_count(11)
    expect(page.locator(".frame canvas")).to_be_visible()


SLOW_SEEKS = """delay => {
  window.seeks = [];
  const time = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "currentTime");
  const set = function (value) {
    seeks.push(Math.round(value));
    setTimeout(() => time.set.call(this, value), delay);
  };
  Object.defineProperty(HTMLMediaElement.prototype, "currentTime", { ...time, set });
}"""


def test_the_shown_frame_comes_before_the_strip(page: Page) -> None:
    choose(page, ("scene00.png", SCENE))
    page.evaluate(SLOW_SEEKS, 500)
    page.get_by_role("button", name="Video").click()
    expect(page.locator("#told")).to_have_text("2 files counted.", timeout=30_000)
    assert not page.locator(".frame img").is_visible(), "another document's picture"
    expect(page.locator(".frame canvas")).to_be_visible()
    shown = page.locator("#strip [aria-pressed=true]").inner_text()
    assert page.evaluate("seeks[0]") == int(shown.removeprefix("0:"))
    before = page.evaluate("""() => {
      const number = seeks.length;  // in one go with the click: the strip goes on seeking meanwhile
      document.querySelectorAll("#strip button")[9].click();
      return number;
    }""")
    set_threshold(page, 1)
    assert page.locator(".box").count() == 0, "the boxes do not wait for a picture"
    set_threshold(page, 0)
    page.wait_for_function("before => seeks.length > before", arg=before)
    assert page.evaluate("before => seeks[before]", before) == 9
    page.wait_for_function("() => new Set(seeks).size === 11")  # the others come after it


def test_the_stage_follows_whatever_is_chosen_meanwhile(page: Page) -> None:
    page.evaluate(SLOW_SEEKS, 300)
    page.get_by_role("button", name="Video").click()
    strip = page.locator("#strip button")
    expect(strip).to_have_count(11)
    expect(page.locator(".frame canvas")).to_be_visible()
    strip.nth(0).click()
    expect(page.locator(".box")).to_have_count(3)
    for key in ("ArrowRight", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_timeout(50)
    for place in (9, 0, 9):
        strip.nth(place).click()
    found = int(re.findall(r"(\d+) found", strip.nth(9).get_attribute("aria-label") or "")[0])
    expect(page.locator(".box")).to_have_count(found, timeout=30_000)
    strip.nth(0).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()  # what is on the stage, not what is to come
    assert download.value.suggested_filename == "crossing-9-counted.png"


def test_stopping_keeps_what_was_counted(page: Page) -> None:
    choose(page, ("a.png", SCENE), ("b.jpg", (SCENES / "scene01.jpg").read_bytes()))
    page.get_by_role("button", name="b.jpg").click()
    held: list[Route] = []
    page.route("**/process", lambda route: held.append(route))
    page.get_by_role("button", name="Count again").click()
    expect(page.locator("#again")).to_be_disabled()
    page.locator("#files").set_input_files([{"name": "c.png", "mimeType": "image/png", "buffer": SCENE}])
    expect(page.get_by_role("button", name="c.png")).to_contain_text("waits")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert")).to_have_text("c.png: Stopped.")
    expect(page.locator("#again")).to_be_focused()
    page.get_by_role("button", name="b.jpg").click()
    assert table(page) == ranked(TRUTH["scene01.jpg"])
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#told")).to_be_empty()


def test_a_run_has_one_task_and_a_file_that_waited_for_a_text_goes_on(page: Page) -> None:
    page.get_by_label("Look for", exact=True).select_option("OPEN_VOCABULARY_DETECTION")
    page.locator("#files").set_input_files([{"name": "a.png", "mimeType": "image/png", "buffer": SCENE}])
    expect(page.locator("#told")).to_have_text("Say what to look for, then count.")
    page.get_by_label("Look for", exact=True).select_option("OD")
    expect(page.locator("#told")).to_have_text(re.compile("a.png: "))
    bodies: list[dict[str, Any]] = []

    def change(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        page.get_by_label("Look for", exact=True).select_option("REGION_PROPOSAL")
        route.continue_()

    page.route("**/process", change)
    page.get_by_role("button", name="Clear").click()
    choose(page, ("a.png", SCENE), ("b.png", SCENE + b"."))
    expect(page.locator("#told")).to_have_text("2 files counted.")
    assert [body["prompt"] for body in bodies] == ["OD", "OD"]


def test_an_answer_of_another_kind_is_told(page: Page) -> None:
    page.route("**/process", lambda route: route.fulfill(json={"hello": 1}))
    choose(page, ("a.png", SCENE))
    expect(page.get_by_role("alert")).to_have_text("a.png: The service's answer can't be read.")
    page.unroute("**/process")
    page.route("**/process", lambda route: route.fulfill(body="<h1>Log in</h1>"))
    page.get_by_role("button", name="Count again").click()
    expect(page.get_by_role("alert")).to_contain_text("perhaps a proxy that wants a login")


def test_a_service_without_room_is_waited_for(visit: Visit) -> None:
    page = visit(refused="/process")
    busy: list[int] = []

    def answer(route: Route) -> None:
        busy.append(len(busy))
        if len(busy) > 2:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "The service is busy."})

    page.route("**/process", answer)
    page.get_by_role("button", name="Street").click()
    expect(page.locator("#working")).to_contain_text("street.png is sent again in a moment")
    settle(page)
    assert len(busy) == 3
    assert table(page)
    busy.clear()
    page.get_by_role("button", name="Count again").click()
    expect(page.locator("#working")).to_contain_text("street.png is sent again in a moment")
    page.get_by_role("button", name="Stop").click()
    settle(page)
    assert table(page), "what was counted before stays"


def test_what_is_no_file_is_told_and_a_double_click_is_one(page: Page) -> None:
    transfer = page.evaluate_handle(
        "() => { const data = new DataTransfer(); data.setData('text/plain', 'https://a.b/c.png'); return data; }"
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("#told")).to_contain_text("That was no file.")
    page.get_by_role("button", name="Street").dblclick()
    settle(page)
    expect(page.locator("#list button")).to_have_count(1)


def test_a_file_that_opens_slowly_says_so(page: Page) -> None:
    page.evaluate("void (HTMLImageElement.prototype.decode = () => new Promise(() => {}))")
    choose(page, ("scene00.png", SCENE))
    expect(page.locator("#stage")).to_have_text("Opening…")
    page.get_by_role("button", name="Save PNG").click()
    expect(page.locator("#told")).to_have_text("The picture is not open yet.")


@pytest.mark.parametrize("label", ["person", "traffic light", "a long caption of a region that says much " * 3])
def test_names_of_boxes_stay_within_the_picture(visit: Visit, label: str) -> None:
    page = visit(viewport={"width": 360, "height": 740})

    def answer(route: Route) -> None:
        response = route.fetch()
        envelope = response.json()
        boxes = [[300, 100, 318, 140], [2, 200, 18, 240], [150, 1, 170, 20]]
        found = [{"label": label, "score": 0.9, "box": box, "frame": 0} for box in boxes]
        envelope["data"][0]["source"] |= {"detections": found}
        route.fulfill(response=response, json=envelope)

    page.route("**/process", answer)
    choose(page, ("a.png", SCENE))
    expect(page.locator(".box")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    frame = page.locator(".frame").bounding_box()
    assert frame
    for tag in page.locator(".box span").all():
        place = tag.bounding_box()
        assert place
        assert place["x"] >= frame["x"] - 4
        assert place["x"] + place["width"] <= frame["x"] + frame["width"] + 4


def test_a_video_that_never_plays_does_not_stop_the_queue(page: Page) -> None:
    page.evaluate("void (HTMLMediaElement.prototype.addEventListener = () => {})")
    choose(page, ("video.webm", (SAMPLES / "crossing.webm").read_bytes()), ("scene00.png", SCENE))
    expect(page.locator("#told")).to_have_text("2 files counted.")
    expect(page.locator("#note")).to_contain_text("This browser can't show the file", timeout=30_000)
    expect(page.locator(".box").first).to_be_visible()


def test_without_tls_an_animation_has_its_first_picture(page: Page) -> None:
    page.evaluate("delete window.ImageDecoder")
    choose(page, ("animation.gif", animation("GIF")))
    expect(page.locator("#note")).to_have_text("This browser can show the first picture of the file alone.")
    page.locator("#strip button").nth(0).click()
    expect(page.locator(".frame canvas")).to_be_visible()
    page.locator("#strip button").nth(1).click()
    expect(page.locator(".frame.unseen .box").first).to_be_visible()


def test_a_note_goes_with_its_answer(page: Page) -> None:
    cut_off = [True]

    def answer(route: Route) -> None:
        response = route.fetch()
        envelope = response.json()
        if cut_off:
            envelope["data"][0]["source"] |= {"truncated": cut_off.pop(), "incomplete": True}
        route.fulfill(response=response, json=envelope)

    page.route("**/process", answer)
    choose(page, ("scene00.png", SCENE))
    expect(page.locator("#note")).to_contain_text("counts may be too low")
    expect(page.locator("#note")).to_contain_text("slow to decode")
    page.get_by_role("button", name="Count again").click()
    settle(page)
    expect(page.locator("#found")).to_be_visible()
    expect(page.locator("#note")).to_be_hidden()


def test_files_of_every_accepted_kind_can_be_chosen(page: Page) -> None:
    accepted = (page.locator("#files").get_attribute("accept") or "").split(",")
    assert set(accepted) == {"image/*", "video/*", *EXTENSIONS}


def test_a_sample_that_is_missing_is_told(visit: Visit) -> None:
    page = visit(refused="yard.png")
    page.route("**/yard.png", lambda route: route.fulfill(status=404, body="<h1>no</h1>"))
    page.get_by_role("button", name="Yard").click()
    expect(page.locator("#told")).to_have_text("The service answered 404.")
    expect(page.locator("#results")).to_be_hidden()


def test_a_new_threshold_is_said(page: Page) -> None:
    choose(page, ("scene00.png", SCENE))
    page.locator("#threshold").focus()
    page.keyboard.press("End")
    expect(page.locator("#told")).to_have_text("scene00.png: Nothing found.")


def test_an_animation_shows_each_of_its_pictures(page: Page) -> None:
    choose(page, ("animation.gif", animation("GIF")))
    sum_of = "canvas => canvas.getContext('2d').getImageData(0, 0, 384, 384).data.reduce((sum, one) => sum + one, 0)"
    sums = set()
    expect(page.locator("#strip button")).to_have_count(3)
    for button in page.locator("#strip button").all():
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        sums.add(page.locator(".frame canvas").evaluate(sum_of))
    assert len(sums) == 3


@pytest.mark.parametrize(
    ("name", "make", "place"),
    [
        ("pages.tif", pages_file, "page 1"),
        ("video.avi", lambda: video("avi", "mpeg4"), "0:00"),
    ],
)
def test_what_the_browser_cannot_show_has_boxes_all_the_same(
    page: Page, name: str, make: Callable[[], bytes], place: str
) -> None:
    choose(page, (name, make()))
    expect(page.locator(".frame.unseen")).to_be_visible()
    expect(page.locator("#note")).to_contain_text("This browser can't show the file")
    page.locator("#strip button").first.click()
    expect(page.locator("#strip button").first).to_contain_text(place)
    expect(page.locator(".box").first).to_be_visible()
    screenshot(page, f"unseen-{name.rpartition('.')[2]}")


def test_progress_is_told_and_can_be_stopped(page: Page) -> None:
    held: list[Route] = []
    page.route("**/process", lambda route: held.append(route))
    names = ["scene00.png", "scene02.png"]
    files = [{"name": name, "mimeType": "image/png", "buffer": SCENE} for name in names]
    page.locator("#files").set_input_files(files)
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("#working")).to_have_text(re.compile(r"(Sending|Counting) scene00.png \(1 of 2\)"))
    while not held:
        page.wait_for_timeout(10)
    held.pop().continue_()
    expect(page.locator("#working")).to_have_text(re.compile(r"\(2 of 2\)"))
    assert table(page) == ranked(TRUTH["scene00.png"]), "what is done is shown already"
    screenshot(page, "working")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#told")).to_have_text("1 file counted, 1 not.")
    page.get_by_role("button", name="scene02.png").click()
    expect(page.get_by_role("alert")).to_have_text("scene02.png: Stopped.")


def test_errors_of_the_service_are_told(visit: Visit, server: RunningServer) -> None:
    page = visit(refused="/process")
    answers: list[Callable[[Route], None]] = [
        lambda route: route.fulfill(status=503, json={"error": "The model is not ready yet."}),
        lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"),
        lambda route: route.abort(),
    ]
    page.route("**/process", lambda route: answers.pop(0)(route))
    choose(page, ("a.png", SCENE))
    reason = page.get_by_role("alert")
    expect(reason).to_have_text("a.png: The model is not ready yet.")
    page.get_by_role("button", name="Count again").click()
    expect(reason).to_have_text("a.png: The service answered 502.")
    page.get_by_role("button", name="Count again").click()
    expect(reason).to_have_text("a.png: The service can't be reached. Is it running?")
    page.unroute("**/process")
    page.get_by_role("button", name="Count again").click()
    expect(reason).to_be_hidden()
    assert table(page) == counted(server, SCENE)


@pytest.mark.parametrize("secure", [True, False], ids=["over TLS or here", "without TLS"])
def test_counts_are_copied_as_json(visit: Visit, secure: bool) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    if not secure:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    choose(page, ("scene00.png", SCENE), ("bad.png", b"no picture"))
    page.get_by_role("button", name="Copy JSON").click()
    expect(page.locator("#told")).to_have_text("Copied.")
    page.reload()
    first, second = json.loads(page.evaluate("navigator.clipboard.readText()"))
    content = [{label: count} for label, count in sorted(TRUTH["scene00.png"].items())]
    assert first == {"file": "scene00.png", "content": content, "error": None}
    assert (second["file"], second["content"]) == ("bad.png", [])
    assert "not a picture" in second["error"]


def test_counts_are_saved_as_csv(page: Page) -> None:
    choose(
        page, ('a "b", c.png', SCENE), ("bad.png", b"no picture"), ("empty.png", (SCENES / "scene08.png").read_bytes())
    )
    with page.expect_download() as download:
        page.get_by_role("button", name="Save CSV").click()
    assert download.value.suggested_filename == "counts.csv"
    head, *rows, bad, empty = csv.reader(io.StringIO(download.value.path().read_text()))
    assert head == ["file", "label", "count", "error"]
    assert rows == [['a "b", c.png', label, str(count), ""] for label, count in sorted(TRUTH["scene00.png"].items())]
    assert bad[:3] == ["bad.png", "", ""]
    assert "not a picture" in bad[3]
    assert empty == ["empty.png", "", "0", ""]


def test_saved_frames_have_names_of_their_own(page: Page) -> None:
    page.get_by_role("button", name="Video").click()
    settle(page)
    for place in (2, 5):
        page.locator("#strip button").nth(place).click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save PNG").click()
        assert download.value.suggested_filename == f"crossing-{place}-counted.png"


def test_what_the_browser_refuses_is_told(page: Page) -> None:
    page.evaluate("void (navigator.clipboard.writeText = () => Promise.reject(new DOMException('NotAllowedError')))")
    choose(page, ("scene00.png", SCENE))
    page.get_by_role("button", name="Copy JSON").click()
    expect(page.locator("#told")).to_have_text("This browser does not let the page copy.")
    page.evaluate("void (HTMLCanvasElement.prototype.toBlob = (done) => done(null))")
    page.get_by_role("button", name="Save PNG").click()
    expect(page.locator("#told")).to_have_text("This picture is too large for the browser to save.")


def test_the_annotated_picture_is_saved(page: Page, server: RunningServer) -> None:
    choose(page, ("scene00.png", SCENE))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save PNG").click()
    assert download.value.suggested_filename == "scene00-counted.png"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(download.value.path(), SCREENSHOTS / "annotated.png")
    image = Image.open(download.value.path()).convert("RGB")
    assert image.size == (320, 320)
    original = Image.open(io.BytesIO(SCENE)).convert("RGB")
    for one in answered(server, SCENE, return_boxes=True)["detections"]:
        x1, y1, _, y2 = (round(side) for side in one["box"])
        left = np.abs(np.asarray(image, int)[y1:y2, x1] - np.asarray(original, int)[y1:y2, x1])
        assert left.any(axis=1).all(), "its left side is drawn over"


def test_a_key_is_asked_for_and_kept_for_the_tab(visit: Visit, tmp_path: Path) -> None:
    server = start_server(tmp_path / "log.txt", "--api-key", "richtig äöü")
    try:
        page = visit(server.url, refused="/process", bypass_csp=True)
        page.get_by_role("button", name="Yard").click()
        dialog = page.get_by_role("dialog", name="This service wants a key")
        expect(dialog).to_be_visible()
        screenshot(page, "key")
        assert violations(page) == []
        for wrong in ("wrong", "Schlüssel 鍵"):
            dialog.get_by_label("API key").fill(wrong)
            dialog.get_by_role("button", name="Use this key").click()
            expect(dialog).to_contain_text("did not accept this key")
            expect(dialog.get_by_label("API key")).to_be_empty()
        dialog.get_by_label("API key").fill("richtig äöü")
        dialog.get_by_label("API key").press("Enter")
        settle(page)
        assert table(page)
        expect(page.locator("#about")).to_contain_text("florence-2-tiny")
        page.reload()
        page.get_by_role("button", name="Yard").click()
        settle(page)
        assert table(page), "the key was kept"
        other = visit(server.url, refused="/process")
        other.get_by_role("button", name="Yard").click()
        other.get_by_role("button", name="Cancel").click()
        expect(other.get_by_role("alert")).to_have_text("yard.png: The service wants an API key.")
    finally:
        stop_server(server)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sample", ["Street", "Video"])
def test_axe_finds_nothing(visit: Visit, scheme: str, sample: str) -> None:
    page = visit(bypass_csp=True, color_scheme=scheme, reduced_motion="reduce")
    page.get_by_role("button", name=sample).click()
    settle(page)
    page.locator("#rows button").first.click()
    assert violations(page) == []
    page.locator("#rows button").first.click()
    page.locator("#copy").focus()
    screenshot(page, f"{sample.lower()}-{scheme}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_at_the_start(visit: Visit, scheme: str) -> None:
    page = visit(bypass_csp=True, color_scheme=scheme)
    assert violations(page) == []
    screenshot(page, f"start-{scheme}")
    choose(page, ("bad.png", b"no picture"))
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []


def violations(page: Page) -> list[str]:
    """What axe-core finds on a page."""
    page.evaluate(AXE)
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{one['impact']}: {one['help']}: {one['nodes'][0]['html']}" for one in found]


@pytest.mark.parametrize("width", [360, 768])
def test_narrow_screens(visit: Visit, width: int) -> None:
    page = visit(viewport={"width": width, "height": 740}, has_touch=True)
    screenshot(page, f"start-{width}")
    for name in ("Street", "Video"):
        page.get_by_role("button", name=name, exact=True).tap()
        settle(page)
        expect(page.locator("#rows tr").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    screenshot(page, f"video-{width}")


FOCUSED = """() => {
  const one = document.activeElement;
  const shape = getComputedStyle(one.id === "files" ? one.parentElement : one); // the button that is drawn for it
  return [one.id || one.dataset.sample || one.textContent, shape.outlineStyle];
}"""


def test_the_keyboard_reaches_everything(page: Page) -> None:
    choose(page, ("scene00.png", SCENE))
    boxes = page.locator(".box")
    expect(boxes).to_have_count(sum(TRUTH["scene00.png"].values()))
    page.evaluate("document.activeElement.blur()")
    outlines: dict[str, str] = {}
    for _ in range(18 + page.locator("#rows tr").count()):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(FOCUSED)
        outlines[name] = outline
    controls = {"files", "street.png", "prompt", "tiles", "again", "clear", "threshold", "copy", "csv", "png"}
    assert controls | set(TRUTH["scene00.png"]) <= set(outlines)
    assert "none" not in outlines.values(), "where one is can be seen"
    assert boxes.evaluate_all("all => all.filter(one => one.tabIndex === 0).length") == 1, "one stop for all of them"
    boxes.first.focus()
    for key, place in (("ArrowRight", 1), ("ArrowUp", 0), ("End", boxes.count() - 1)):
        page.keyboard.press(key)
        expect(boxes.nth(place)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#threshold")).to_be_focused()


def test_the_focus_stays_near_when_files_are_counted_again(page: Page) -> None:
    choose(page, ("scene00.png", SCENE))
    go: list[Route] = []
    page.route("**/process", lambda route: go.append(route))
    page.get_by_role("button", name="Count again").press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    while not go:
        page.wait_for_timeout(10)
    go.pop().continue_()
    expect(page.get_by_role("button", name="Count again")).to_be_focused()


def test_forced_colours_keep_boxes_and_what_is_chosen(visit: Visit) -> None:
    page = visit(forced_colors="active", bypass_csp=True)
    choose(page, ("scene00.png", SCENE))
    page.locator("#rows button").first.click()
    colours = "all => new Set(all.map(one => getComputedStyle(one).{})).size"
    labels = len(TRUTH["scene00.png"])
    assert page.locator(".box").evaluate_all(colours.format("borderTopColor")) == labels
    assert page.locator(".bar").evaluate_all(colours.format("backgroundColor")) == labels
    pressed = page.locator("#rows [aria-pressed=true]")
    assert pressed.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    assert violations(page) == []
    screenshot(page, "forced-colours")


def test_motion_is_reduced_where_that_is_wished(visit: Visit) -> None:
    page = visit(reduced_motion="reduce")
    choose(page, ("scene00.png", SCENE))
    moves = "all => all.filter(one => getComputedStyle(one).transitionDuration !== '0s').length"
    assert page.locator("*").evaluate_all(moves) == 0


@pytest.mark.parametrize("name", ["street.png", "yard.png", "picnic.jpg"])
def test_small_pictures_are_those_of_the_samples(name: str) -> None:
    small = Image.open((PAGE / name).with_suffix(".jpg"))
    sample = Image.open(SAMPLES / name).convert("RGB").resize(small.size)
    assert np.abs(np.asarray(small, int) - np.asarray(sample, int)).mean() < 10, "make it anew, 256 pixels wide"


LOADED = """() => {
  const sent = performance.getEntries().filter((one) => one.entryType === "navigation" || one.entryType === "resource");
  const bytes = sent.reduce((sum, one) => sum + one.transferSize, 0);
  return [sent.length, bytes, performance.getEntriesByName("first-contentful-paint")[0].startTime];
}"""


def test_the_page_is_light_and_closed(visit: Visit, server: RunningServer) -> None:
    page = visit()
    page.wait_for_load_state("networkidle")
    files, weight, paint = page.evaluate(LOADED)
    print(f"{weight / 1000:.0f} kB in {files} files, first paint after {paint:.0f} ms")
    assert files > 12
    assert 10_000 < weight < MAX_BYTES
    policy = server.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.evaluate("document.querySelectorAll('[style], style, script:not([src])').length") == 0
    assert server.get("/page/../app.py").status_code == 404
    assert server.get("/page/samples/..%2fapp.py").status_code == 404


def test_classes_are_counted_alone_and_different_ones_have_numbers(page: Page, server: RunningServer) -> None:
    video_file = (SAMPLES / "crossing.webm").read_bytes()
    page.fill("#classes", "cars, submarine")
    choose(page, ("street.png", (SAMPLES / "street.png").read_bytes()))
    assert table(page) == [("cars", 4), ("submarine", 0)]
    page.fill("#classes", "")
    page.select_option("#video-count", "distinct")
    page.click("#clear")
    choose(page, ("crossing.webm", video_file))
    source = answered(server, video_file, video_count="distinct", return_boxes=True)
    assert table(page) == ranked({label: n for one in source["content"] for label, n in one.items()})
    expect(page.locator("#total")).to_contain_text("different object")
    expect(page.locator("#count-head")).to_have_text("Different ones")
    numbers = {one.get("track") for one in source["detections"]} - {None}
    expect(page.locator("#stage .box span").first).to_be_attached()  # the frame is drawn after the table
    tags = page.locator("#stage .box span").all_inner_texts()
    assert {int(tag.split()[-1]) for tag in tags if tag.split()[-1].isdigit()} <= numbers
    assert any(tag.split()[-1].isdigit() for tag in tags)
    page.screenshot(path=SCREENSHOTS / "distinct.png", full_page=True)
