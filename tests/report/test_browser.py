"""The page in headless Chromium: numbers, filters, themes, keyboard, no overflow, nothing that axe calls serious."""

import json
import shutil
import threading

import pytest

from mdistiller.report.live import serve
from mdistiller.report.page import report
from mdistiller.runs.statistics import paired_gain
from tests.report.test_page import ACCURACY, runs, write_run  # noqa: F401  (a fixture)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
RESULTS = "#results-table tbody tr:not([hidden])"


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright to drive Chromium with")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):  # noqa: F811
    """The page on disk, with an answer beside the results."""
    folder = runs / "EA-KD_s0" / "answers" / "best"
    folder.mkdir(parents=True)
    answer = {"index": 0, "prompt": "sun <moon>", "references": ["moon"], "answer": "moon", "rouge_l": 100.0}
    (folder / "words_seed0.jsonl").write_text(json.dumps(answer) + "\n")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report(runs))
    return path


@pytest.fixture(scope="module")
def opened(chromium):
    """open(address, viewport, scheme) -> page. No page may say anything on the console, or ask for anything else."""
    said = []

    def open_page(address, viewport=WIDE, scheme="light"):
        page = chromium.new_context(viewport=viewport, color_scheme=scheme).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        own = (address, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or said.append(request.url))
        page.goto(address)
        return page

    yield open_page
    assert said == []


@pytest.fixture(scope="module")
def desk(opened, file):
    """The page on a wide screen; a test leaves it with all runs shown."""
    return opened(file.as_uri())


def drawn(page, name):
    """The traces of a chart."""
    return page.evaluate("name => document.querySelector(`#${name} .plot`).data", name)


def shown_rows(page):
    return [row.split("\t") for row in page.locator(RESULTS).all_inner_texts()]


def pick(page, kind, value):
    page.locator(f"#pick-{kind} summary").click()
    page.get_by_label(value, exact=True).click()
    page.keyboard.press("Escape")


def check_looks(page, axe, width):
    """No overflow, all charts are drawn within the width, and axe finds nothing serious."""
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in ("gains", "curves", "cost", "weights", "classes"):
        assert page.locator(f"#{name} .plot svg.main-svg").first.is_visible(), name
        box = page.locator(f"#{name} .plot").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    found = axe.run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []


def test_the_page_fits_a_desk_and_a_phone_and_is_accessible(opened, desk, file):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe").Axe()
    check_looks(desk, axe, 1400)
    check_looks(opened(file.as_uri(), NARROW, "dark"), axe, 390)


def test_tables_and_charts_hold_the_numbers_of_the_run_folders(desk):
    assert [row[:4] for row in shown_rows(desk)] == [["KD", "70.50 ± 0.71", "71.50 ± 0.71", "2"],
                                                     ["EA-KD", "73.50 ± 1.41", "74.50 ± 1.41", "2"]]
    gain = paired_gain(dict(enumerate(ACCURACY["EA-KD"])), dict(enumerate(ACCURACY["KD"])))
    (points,) = drawn(desk, "gains")
    assert points["x"] == [gain.mean] and points["error_x"]["array"] == [pytest.approx(gain.high - gain.mean, rel=1e-5)]
    lines = {trace["name"]: trace["y"] for trace in drawn(desk, "curves") if trace.get("hoverinfo") != "skip"}
    assert lines == {"EA-KD": [72.5, 73.5], "KD": [69.5, 70.5]}
    desk.locator("#curve-key").select_option("weight_mean")
    upper, lower, line = drawn(desk, "curves")  # the band is the deviation within a batch
    assert (line["y"], upper["y"], lower["y"]) == ([0.8, 0.8], [pytest.approx(1.1)] * 2, [pytest.approx(0.5)] * 2)
    desk.locator("#curve-key").select_option(index=[0])
    *_, costs = drawn(desk, "cost")
    assert costs["x"] == [60, 60] and costs["y"] == [73.5, 70.5]  # seconds, percent
    units = desk.evaluate("[599, 600, 36000].map(time => charts.unit([time, null])[0])")
    assert units == ["seconds", "minutes", "hours"]
    assert desk.evaluate("[charts.whole([{x: [1, 2]}]).dtick, charts.whole([{x: [240]}]).dtick]") == [1, None]
    heat, mean = drawn(desk, "weights")
    assert [row[0] for row in heat["z"] if row[0]] == [25, 50, 25] and mean["y"] == [0.5]
    assert drawn(desk, "classes")[0]["y"] == [3, 0]


def test_filters_apply_to_tables_and_charts(desk):
    pick(desk, "seed", "0")
    assert [row[:4] for row in shown_rows(desk)] == [["KD", "70.00", "71.00", "1"], ["EA-KD", "72.50", "73.50", "1"]]
    (points,) = drawn(desk, "gains")
    assert points["x"] == [2.5] and points["marker"]["symbol"] == ["circle-open"]  # one seed: no interval
    assert not desk.locator("tr[data-seed='1']").first.is_visible()
    pick(desk, "method", "EA-KD")
    assert [row[0] for row in shown_rows(desk)] == ["EA-KD"]
    assert {trace["name"] for trace in drawn(desk, "curves")} == {"EA-KD"}
    desk.get_by_role("button", name="Show all").click()
    desk.locator("#gain-over").select_option(label="EA-KD")  # the gain of every other configuration over this one
    (points,) = drawn(desk, "gains")
    gain = paired_gain(dict(enumerate(ACCURACY["KD"])), dict(enumerate(ACCURACY["EA-KD"])))
    assert points["x"] == [gain.mean] and points["error_x"]["array"] == [pytest.approx(gain.high - gain.mean)]
    desk.get_by_label("Find").fill("ea-kd resnet8")
    assert [row[0] for row in shown_rows(desk)] == ["EA-KD"]
    desk.get_by_label("Find").fill("")
    desk.locator("#gain-over").select_option(index=[0])


def test_keyboard_sorting_log_scale_and_theme(desk):
    desk.locator(".skip").focus()
    assert desk.locator(".skip").bounding_box()["x"] >= 0  # it shows when it is reached
    heading = desk.locator("#results-table th button", has_text="last epoch")
    for order, first in (("descending", "EA-KD"), ("ascending", "KD")):
        heading.press("Enter")
        assert shown_rows(desk)[0][0] == first and heading.locator("..").get_attribute("aria-sort") == order
    desk.locator("#curves .log").press("Enter")
    assert desk.evaluate("document.querySelector('#curves .plot').layout.yaxis.type") == "log"
    colour = "getComputedStyle(document.body).backgroundColor + document.querySelector('.plot').layout.font.color"
    before = desk.evaluate(colour)
    desk.locator("#theme").press("Enter")
    assert desk.evaluate(colour) != before and desk.locator("#theme").get_attribute("aria-pressed") == "true"
    desk.locator("#pick-seed summary").press("Enter")
    desk.keyboard.press("Escape")
    assert desk.evaluate("document.activeElement.parentElement.id") == "pick-seed"
    assert not desk.locator("#pick-seed fieldset").is_visible()


def test_the_unit_of_times_fits_the_pair_that_is_shown(opened, tmp_path):
    for name in ("KD", "DKD", "MLD"):
        write_run(tmp_path / name, name, 0, 70.0)
    for file, short, long in (("config.yaml", "digits", "cifar100"), ("summary.json", "60.0", "36000.0")):
        path = tmp_path / "MLD" / file
        path.write_text(path.read_text().replace(short, long))
    (tmp_path / "report.html").write_text(report(tmp_path))
    page = opened((tmp_path / "report.html").as_uri())
    assert drawn(page, "cost")[-1]["x"] == [60, 60]  # seconds
    page.locator("#cost-pair").select_option(index=[0])
    assert drawn(page, "cost")[-1]["x"] == [10]  # hours


def test_a_live_page_renews_itself_and_keeps_the_filters(opened, tmp_path):
    write_run(tmp_path / "KD_s0", "KD", 0, 70.0)
    with serve(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened(f"http://127.0.0.1:{server.server_address[1]}/")
        pick(page, "method", "KD")
        page.locator("#pick-seed summary").click()
        page.get_by_label("0", exact=True).focus()
        write_run(tmp_path / "KD_s1", "KD", 1, 71.0)
        write_run(tmp_path / "DKD_s0", "DKD", 0, 80.0)
        page.evaluate("live.ask()")
        page.wait_for_function("document.querySelector('#pick-seed summary')?.textContent === 'Seed: all 2'")
        assert [row[:2] for row in shown_rows(page)] == [["KD", "70.50 ± 0.71"]]
        assert page.locator("#pick-method summary").inner_text() == "Method: KD"
        assert page.locator("#pick-seed fieldset").is_visible()  # an open menu stays open, with the focus
        assert page.evaluate("document.activeElement.value") == "0"
        server.shutdown()
