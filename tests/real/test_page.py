"""The page in a real browser: Debian's chromium, headless, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

import pytest

from ifedicl.federation.events import Event, RoundDone
from ifedicl.runs import run
from ifedicl.settings import RunSettings, validated
from tests.support import choices, tiny
from tests.support.browsing import TEXTS, Watched, append, beginning, ending, level, one_round, write
from tests.support.chromium import CHROMIUM
from tests.support.serving import serving

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine (Debian: apt install chromium)")
playwright.expect.set_options(timeout=20_000)  # on a busy machine


def test_pasted_texts_are_labelled_beside_zero_shot(watched: Watched) -> None:
    page = watched.at("")
    page.locator("#adapter").select_option("mood")
    page.get_by_label("Texts, one a line").fill("\n".join(TEXTS))
    page.get_by_role("button", name="Label", exact=True).click()
    playwright.expect(page.get_by_role("status").first).to_contain_text("3 texts labelled")
    assert page.locator("#table th").all_inner_texts() == ["Text", "Zero-shot", "mood"]
    rows = page.locator("#table tbody tr")
    assert rows.count() == 3
    for row, text in zip(rows.all(), TEXTS, strict=True):
        assert row.locator("td").first.inner_text() == text
        for cell in row.locator("td").all()[1:]:
            assert sum(float(share.rstrip("%")) for share in cell.locator(".choice span:last-child").all_inner_texts()) == (
                pytest.approx(100, abs=0.2)
            )
    page.get_by_label("beside zero-shot").uncheck()
    page.get_by_role("button", name="Label", exact=True).click()
    playwright.expect(page.locator("#table th")).to_have_count(2)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "txt"])
def test_a_file_becomes_a_table_and_a_download(watched: Watched, tmp_path: Path, ending: str) -> None:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    contents = {
        "csv": "number,text\r\n" + "".join(f"{number},{text}\r\n" for number, text in enumerate(quoted)),
        "jsonl": "".join(json.dumps({"number": 1, "text": text}) + "\n" for text in TEXTS),
        "txt": "\n".join(TEXTS),
    }
    file = tmp_path / f"notes.{ending}"
    file.write_bytes(contents[ending].encode())
    page = watched.at("")
    page.locator("#file").set_input_files(file)
    playwright.expect(page.locator("#opened-name")).to_have_text(f"notes.{ending}: 3 texts")
    page.get_by_role("button", name="Label", exact=True).click()
    playwright.expect(page.locator("#table tbody tr")).to_have_count(3)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download as CSV").click()
    waiting.value.save_as(tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_bytes().decode().split("\r\n")
    assert lines[0] == "text,label,p(good),p(bad),zero_shot_label,zero_shot_p(good),zero_shot_p(bad)"
    assert len(lines) == 5
    assert lines[3].startswith('"they said ""late"", twice",')


def test_no_cell_of_a_download_is_a_formula(watched: Watched) -> None:
    page = watched.at("")
    rows = [["=1+1", "a,b"], ["@SUM(A1)", "-2"], ["plain", "\t=3"], ['+"x"', "it's 1=1"]]
    found = page.evaluate("async (rows) => (await import('/table.js')).csv(rows)", rows)
    assert found.split("\r\n")[:4] == ['\'=1+1,"a,b"', "'@SUM(A1),'-2", "plain,'\t=3", '"\'+""x""",it\'s 1=1']


def test_a_dropped_file_is_taken_and_one_that_is_not_utf8_is_named(watched: Watched, tmp_path: Path) -> None:
    page = watched.at("#runs")
    drop = "([name, bytes]) => { const data = new DataTransfer(); data.items.add(new File([new Uint8Array(bytes)], name)); " + (
        "dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true })); }"
    )
    page.evaluate(drop, ["dropped.txt", list(b"one\ntwo\n")])
    playwright.expect(page.locator("#opened-name")).to_have_text("dropped.txt: 2 texts")
    page.evaluate(drop, ["dropped.txt", list(b"\xff\xfe")])
    playwright.expect(page.locator("#classify-status")).to_contain_text("not UTF-8")


def test_everything_is_done_by_keyboard_alone(watched: Watched) -> None:
    page = watched.at("")
    playwright.expect(page.locator("#adapter option")).to_have_count(2)
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if reached[-1] == "texts":
            break
    assert reached == ["To the content", "Label texts", "Adapters", "Runs", "API", "adapter", "texts"]
    page.keyboard.type(TEXTS[0])
    page.keyboard.press("Control+Enter")
    playwright.expect(page.locator("#table tbody tr")).to_have_count(1)
    for name in ("file", "sample", "sample", "sample", "go", "compare", "download"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id || document.activeElement.className") == name
        assert page.evaluate("getComputedStyle(document.activeElement.closest('.row')).display") == "flex"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")  # without zero-shot
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#table th")).to_have_count(2)


def test_a_live_run_grows_on_the_page_and_ends(watched: Watched, runs: Path) -> None:
    write(runs / "live", [*beginning(), *one_round(1)])
    page = watched.at("#runs")
    page.get_by_label("Run", exact=True).select_option("live")
    status = page.locator("#runs-status")
    playwright.expect(status).to_contain_text("Running: round 1 of 3, evaluate, 2 of 2 clients have answered")
    assert page.locator("#run-view svg .dot").count() == 2
    append(runs / "live", one_round(2, failing="south"))
    playwright.expect(status).to_contain_text("round 2")
    playwright.expect(page.locator("#run-view svg .dot")).to_have_count(4)
    south = page.locator("#run-view tr", has_text="south").locator("td").all_inner_texts()
    assert south == ["south", "no", "75.0%", "2.2 KB", "10.5 KB", "4", "1", "evaluate"]
    append(runs / "live", [*one_round(3), *ending()])
    playwright.expect(status).to_contain_text("Finished after 3 rounds; round 2 was chosen")
    playwright.expect(page.locator("#run-view")).to_contain_text("Gate open")
    playwright.expect(page.locator("#run-view svg .raw")).to_have_count(2)
    shutil.rmtree(runs / "live")


def test_a_real_run_is_followed_from_its_first_round_to_its_last(watched: Watched, runs: Path, tiny_adapters: Path) -> None:
    """Four rounds of two clients in this process, each of which waits until the page has shown it."""
    go = threading.Semaphore(0)

    def observer(event: Event) -> None:
        if isinstance(event, RoundDone):
            assert go.acquire(timeout=30)

    data = {}
    for number, name in enumerate(("north", "south")):
        data[name] = str(runs / f"{name}.jsonl")
        tiny.write_rows(Path(data[name]), tiny.rows(12, seed=number))
    model = {"source": str(tiny_adapters / "model"), "dtype": "float32", "device": "cpu"}
    sections = {"task": tiny.TASK.model_dump(), "model": model, "data": {"clients": data, "test": data["north"]}}
    sections |= {"rounds": {"rounds": 3, "evaluate_every": 1}, "calibration": {"batch_size": 2, "local_steps": 1}}
    settings = validated(RunSettings, sections, "test")
    thread = threading.Thread(target=run, args=(settings, runs / "real"), kwargs={"observer": observer})
    thread.start()
    try:
        playwright.expect(watched.page.locator("body")).to_be_attached()
        while not (runs / "real" / "metrics.jsonl").exists():
            time.sleep(0.05)
        page = watched.at("#runs")
        page.get_by_label("Run", exact=True).select_option("real")
        for shown in (1, 2):
            playwright.expect(page.locator("#run-view svg .dot")).to_have_count(2 * shown)
            playwright.expect(page.locator("#runs-status")).to_contain_text(f"of {3}")
            go.release()
        go.release()
        playwright.expect(page.locator("#runs-status")).to_contain_text("Finished after 3 rounds")
        playwright.expect(page.locator("#run-view")).to_contain_text("Test text, adapter")
        assert page.locator("#run-view tbody tr").count() == 2
    finally:
        go.release(9)
        thread.join()


def test_a_resumed_run_is_read_again(watched: Watched, runs: Path) -> None:
    write(runs / "again", [*beginning(), *one_round(1), *one_round(2)])
    page = watched.at("#runs")
    page.get_by_label("Run", exact=True).select_option("again")
    playwright.expect(page.locator("#run-view svg .dot")).to_have_count(4)
    write(runs / "again", [*beginning(), *one_round(1)])
    playwright.expect(page.locator("#run-view svg .dot")).to_have_count(2)
    shutil.rmtree(runs / "again")


def test_an_adapter_shows_its_numbers_figures_and_what_each_client_sent(watched: Watched) -> None:
    page = watched.at("#adapters")
    page.locator("#shown-adapter").select_option("mood")
    view = page.locator("#adapter-view")
    playwright.expect(view).to_contain_text("What each client sent")
    assert view.locator("svg rect").count() == 3 * 2 * 3  # λ, β, Γ; two writes; three layers
    assert (view.locator("svg rect title").first.text_content() or "").startswith("layer 0, attention: ")
    cells = [row.locator("td").all_inner_texts() for row in view.locator("tbody tr").all()]
    assert cells[0] == ["good", "4", "50.0% (2)", "75.0% (3)", "+25.0 points"]
    assert cells[1] == ["bad", "4", "25.0% (1)", "100.0% (4)", "+75.0 points"]
    assert cells[2] == ["north", "1.0 KB", "2.0 KB", "200 B", "10.5 KB", "0"]
    page.locator("#shown-adapter").select_option("place")
    playwright.expect(view).to_contain_text("Not known here")
    assert view.locator("svg rect").count() == 2 * 2 * 3


def test_the_description_of_the_api_loads_nothing_from_elsewhere(watched: Watched) -> None:
    page = watched.at("docs")
    for path in ("POST /v1/classify", "GET /v1/adapters", "GET /metrics"):
        playwright.expect(page.get_by_role("heading", name=path, exact=True)).to_be_visible()
    assert watched.hosts == {urlparse(watched.url).netloc}


def test_a_sample_text_is_labelled_with_one_click(watched: Watched) -> None:
    page = watched.at("")
    playwright.expect(page.locator("#classify")).to_contain_text("Gives each text one of the adapter's labels")
    sample = page.locator("#samples button").first
    words = sample.inner_text()
    sample.click()
    playwright.expect(page.locator("#table tbody tr td").first).to_have_text(words)
    assert page.get_by_label("Texts, one a line").input_value() == words


def test_a_question_with_its_options_has_a_form_of_its_own(
    browser: playwright.BrowserContext, tiny_adapters: Path, tmp_path: Path
) -> None:
    source = str(tiny_adapters / "model")
    own = tiny.drawn_adapter(tiny.load(tiny_adapters / "model"), rank=4, source=source)
    replace(own, task=choices.TASK).save(tmp_path / "places")
    with serving(tmp_path, f"{tiny_adapters}/mood", str(tmp_path / "places")) as running:
        page = browser.new_page()
        page.goto(running.url)
        playwright.expect(page.get_by_label("Options, one a line")).to_be_hidden()
        page.locator("#adapter").select_option("places")
        page.get_by_label("One question").fill("the soup was warm")
        page.get_by_label("Options, one a line").fill("at home\nout\non the table")
        page.get_by_role("button", name="Label", exact=True).click()
        playwright.expect(page.locator("#table tbody tr")).to_have_count(1)
        playwright.expect(page.locator("#table tbody td").last.locator(".choice")).to_have_count(3)
        page.goto(f"{running.url}#adapters")
        page.locator("#shown-adapter").select_option("places")
        playwright.expect(page.locator("#adapter-view")).to_contain_text("POST /v1/choose")
        page.close()


@pytest.mark.parametrize(("count", "shown"), [(5, 5), (6, 3)])
def test_all_labels_are_shown_or_it_says_how_many_there_are(watched: Watched, count: int, shown: int) -> None:
    probabilities = {f"label {number}": (number + 1) / (count * (count + 1) / 2) for number in range(count)}
    labelled = {"label": f"label {count - 1}", "probabilities": probabilities}
    answer = {"adapter": {"name": "mood", "version": "1"}, "results": [labelled], "zero_shot": [labelled]}
    watched.page.route("**/v1/classify", lambda route: route.fulfill(json=answer))
    page = watched.at("")
    page.get_by_label("Texts, one a line").fill("a text")
    page.get_by_role("button", name="Label", exact=True).click()
    cell = page.locator("#table tbody td").last
    playwright.expect(cell.locator(".choice")).to_have_count(shown)
    assert ("top 3 of 6" in cell.inner_text()) == (count > shown)


def test_the_curl_of_the_api_page_works_as_it_stands(watched: Watched) -> None:
    page = watched.at("docs")
    command, sample = page.locator("#curl").inner_text(), json.loads(page.locator("#sample-answer").inner_text())
    done = subprocess.run([str(shutil.which("bash")), "-c", command], capture_output=True, text=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    assert set(answer) == set(sample)
    assert len(answer["results"]) == len(answer["zero_shot"]) == len(sample["results"]) == 1
    assert set(answer["results"][0]) == set(sample["results"][0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_both_readable(watched: Watched, scheme: Literal["light", "dark"]) -> None:
    watched.page.emulate_media(color_scheme=scheme)
    page = watched.at("")
    ink, paper = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    levels = [level(ink), level(paper)]
    assert (levels[0] < 150 and levels[1] > 700) if scheme == "light" else (levels[0] > 600 and levels[1] < 120)


def test_a_server_with_keys_asks_for_one(browser: playwright.BrowserContext, tiny_adapters: Path, tmp_path: Path) -> None:
    from ifedicl.serve.api_keys import new_key

    key = new_key(tmp_path / "keys", "reader")
    with serving(tmp_path, f"{tiny_adapters}/mood", "--keys", str(tmp_path / "keys")) as running:
        page = browser.new_page()
        page.goto(running.url)
        page.get_by_label("This server asks for a key").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        playwright.expect(page.locator("#classify-status")).to_contain_text("the key is not known")
        page.get_by_label("This server asks for a key").fill(key)
        page.keyboard.press("Enter")
        page.get_by_label("Texts, one a line").fill(TEXTS[0])
        page.keyboard.press("Control+Enter")
        playwright.expect(page.locator("#table tbody tr")).to_have_count(1)
        page.close()


def test_a_server_that_takes_few_texts_at_a_time_is_asked_for_few(
    browser: playwright.BrowserContext, tiny_adapters: Path, tmp_path: Path
) -> None:
    limits = ["--most-texts", "4", "--most-waiting", "5", "--most-bytes", "1024"]
    with serving(tmp_path, f"{tiny_adapters}/mood", *limits) as running:
        page = browser.new_page()
        sizes: list[int] = []
        page.on("request", lambda asked: sizes.append(len(json.loads(asked.post_data)["texts"])) if asked.post_data else None)
        page.goto(running.url)
        page.get_by_label("Texts, one a line").fill("\n".join([*TEXTS, *TEXTS[:1], *["a cold room " * 50] * 2]))
        page.keyboard.press("Control+Enter")
        playwright.expect(page.get_by_role("status").first).to_contain_text("6 texts labelled")
        assert sizes == [2, 2, 1, 1]  # beside zero-shot each counts twice; two long ones are too many bytes
        page.close()
