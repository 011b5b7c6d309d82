"""The page in a real browser: Debian's chromium, headless, against a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

import pytest

from ifedicl import federate, simulate
from ifedicl.adapter import Adapter
from ifedicl.backbone.load import Backbone
from ifedicl.federation.events import Event, RoundDone
from ifedicl.metrics import Evaluation
from ifedicl.report import Figures, Report, write_report
from ifedicl.runs import run, zero_shot_adapter
from ifedicl.settings import ModelSettings, RunSettings, validated
from tests.support import tiny
from tests.support.chromium import CHROMIUM, FLAGS
from tests.support.serving import Running, serving

if TYPE_CHECKING:
    from playwright import sync_api as playwright
else:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine (Debian: apt install chromium)")
playwright.expect.set_options(timeout=20_000)  # on a busy machine
TEXTS = ("the soup was warm and kind", "a cold room with a loud fan", 'they said "late", twice')


class Watched:
    """A page, and everything that must not happen on it."""

    def __init__(self, page: playwright.Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on(
            "console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))

    def at(self, view: str) -> playwright.Page:
        self.page.goto(f"{self.url}{view}")
        return self.page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def server(tiny_adapters: Path, runs: Path) -> Iterator[Running]:
    # As `ifedicl run` leaves it: the adapter beside its metrics.jsonl.
    shutil.copytree(tiny_adapters / "mood", runs / "finished" / "adapter")
    write(runs / "finished", [*beginning(), *one_round(1), *one_round(2), *ending()])
    with serving(runs, f"mood={runs}/finished/adapter", f"{tiny_adapters}/place", "--runs", str(runs)) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[playwright.BrowserContext]:
    with playwright.sync_playwright() as driver:
        folder = tmp_path_factory.mktemp("browser")
        context = driver.chromium.launch_persistent_context(folder, executable_path=CHROMIUM, args=FLAGS, accept_downloads=True)
        context.set_default_timeout(20_000)
        yield context
        context.close()


@pytest.fixture
def watched(browser: playwright.BrowserContext, server: Running) -> Iterator[Watched]:
    """Whatever a test does, nothing may be complained of, and no other host asked."""
    page = browser.new_page()
    watched = Watched(page, server.url)
    yield watched
    page.close()
    assert watched.complaints == []
    assert watched.hosts == {f"127.0.0.1:{server.port}"}


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


# Phone width

CUT_OFF = """
[...document.querySelectorAll("body *")].filter((own) => {
  const box = own.getBoundingClientRect(), style = getComputedStyle(own);
  if (!box.width || !box.height || own.closest("pre, textarea, .unseen, .skip, thead")) return false;
  const outside = box.right > innerWidth + 0.5 || box.left < -0.5;
  return outside || (style.overflowX !== "visible" && own.tagName !== "SELECT" && own.scrollWidth > own.clientWidth + 1);
}).map((own) => `${own.tagName}.${own.className} ${own.textContent.slice(0, 40)}`)
"""


def cut_off(page: playwright.Page) -> list[str]:
    """Elements that do not fit the width, or hold more than they show."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [*([f"the page scrolls sideways by {wide} pixels"] if wide > 0 else []), *page.evaluate(CUT_OFF)]


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_cut_off_on_a_phone(watched: Watched, width: int) -> None:
    page = watched.page
    page.set_viewport_size({"width": width, "height": 800})
    watched.at("")
    page.locator("#adapter").select_option("mood")
    page.get_by_label("Texts, one a line").fill("\n".join([*TEXTS, "a-word-without-an-end-" * 8]))
    page.get_by_role("button", name="Label", exact=True).click()
    playwright.expect(page.get_by_role("status").first).to_contain_text("4 texts labelled")
    assert cut_off(page) == []
    cell = page.locator("#table tbody td").nth(2)
    assert cell.locator(".choice span").last.is_visible()
    told = cell.evaluate("(own) => getComputedStyle(own, '::before').content")
    assert told == ('"mood"' if width < 600 else "none")  # cards name their columns
    watched.at("#adapters")
    page.locator("#shown-adapter").select_option("mood")
    playwright.expect(page.locator("#adapter-view")).to_contain_text("What each client sent")
    assert cut_off(page) == []
    letters = page.evaluate("[...document.querySelectorAll('#adapter-view svg')].map((own) => own.getScreenCTM().a * 11)")
    assert min(letters) > 8  # pixels of a letter in a picture
    watched.at("#runs")
    page.get_by_label("Run", exact=True).select_option("finished")
    playwright.expect(page.locator("#runs-status")).to_contain_text("Finished")
    assert cut_off(page) == []
    watched.at("docs")
    assert cut_off(page) == []


def test_pictures_are_drawn_again_for_another_width(watched: Watched) -> None:
    page = watched.at("#adapters")
    picture = page.locator("#adapter-view svg").first
    playwright.expect(picture).to_have_attribute("viewBox", re.compile("^0 0 920 "))
    page.set_viewport_size({"width": 390, "height": 800})
    playwright.expect(picture).to_have_attribute("viewBox", re.compile("^0 0 320 "))


def test_the_curl_of_the_api_page_works_as_it_stands(watched: Watched) -> None:
    page = watched.at("docs")
    command, sample = page.locator("#curl").inner_text(), json.loads(page.locator("#sample-answer").inner_text())
    done = subprocess.run([str(shutil.which("bash")), "-c", command], capture_output=True, text=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    assert set(answer) == set(sample)
    assert len(answer["results"]) == len(answer["zero_shot"]) == len(sample["results"]) == 1
    assert set(answer["results"][0]) == set(sample["results"][0])


def test_a_report_fits_a_phone_in_light_and_dark(watched: Watched, tmp_path: Path, backbone: Backbone) -> None:
    examples = {"a client with a long name": tiny.examples(12), "south": tiny.examples(12, seed=1)}
    model = ModelSettings(source="tiny", device="cpu", dtype="float32")
    done = federate(simulate(backbone, tiny.TASK, examples), model, tiny.TASK, tiny.method(rounds={"rounds": 1}))
    tested = runs_of_tests(backbone, model, done.adapter)
    rows = [Figures(name, found, {}, 1.0) for name, found in zip(("zero-shot", "the federation"), tested, strict=True)]
    report = Report("mood", done.adapter, done.outcome, examples, rows, ["It does NOT beat zero-shot."], [], 1.0)
    write_report(report, tmp_path / "report.html")
    page = watched.page
    for scheme, width in (("light", 390), ("dark", 390), ("light", 1440)):
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.set_viewport_size({"width": width, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        assert cut_off(page) == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert (level(paper) > 700 and level(ink) < 150) if scheme == "light" else (level(paper) < 120 and level(ink) > 600)
    watched.hosts.clear()
    watched.at("")


def runs_of_tests(backbone: Backbone, model: ModelSettings, adapter: Adapter) -> list[Evaluation]:
    """Zero-shot and an adapter on text that neither has seen."""
    both = zero_shot_adapter(backbone, model, tiny.TASK), adapter
    return [own.classifier(backbone).evaluate(tiny.examples(20, seed=3)) for own in both]


def level(colour: str) -> int:
    """Red, green and blue of a colour, added."""
    return sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(",")))


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


# Runs as files: what a coordinator writes, by hand

Line = dict[str, object]


def beginning() -> list[Line]:
    clients = ["north", "south"]
    vectors = [exchange(name, "vectors", 0, up=1024, down=512) for name in clients]
    return [
        {"event": "run", "task": "mood", "labels": ["good", "bad"], "clients": clients},
        {"event": "step", "step": "vectors", "round": 0, "clients": 2},
        *vectors,
    ]


def exchange(client: str, step: str, number: int, *, up: int, down: int, failure: str | None = None) -> Line:
    return {"event": "exchange", "client": client, "step": step, "round": number, "bytes_up": up, "bytes_down": down,
            "seconds": 0.1, "failure": failure}  # fmt: skip


def one_round(number: int, failing: str | None = None) -> list[Line]:
    clients = ["north", "south"]
    own = {name: {"examples": 4, "correct": 1 + number, "loss_sum": 4.0 - number} for name in clients}
    held_out = {"examples": 8, "correct": 2 + 2 * number, "loss_sum": 8.0 - 2 * number}
    failures = {name: "late" if name == failing else None for name in clients}
    return [
        {"event": "step", "step": "update", "round": number - 1, "clients": 2},
        *(
            exchange(name, "update", number - 1, up=0 if failures[name] else 1024, down=4096, failure=failures[name])
            for name in clients
        ),
        {"event": "step", "step": "evaluate", "round": number - 1, "clients": 2},
        *(exchange(name, "evaluate", number - 1, up=100, down=1024) for name in clients),
        {"event": "round", "round": number, "rounds": 3, "clients": [name for name in clients if name != failing],
         "train_loss": 1.0 / number, "by_client": own, "held_out": held_out, "worst": "north"},
    ]  # fmt: skip


def ending() -> list[Line]:
    tally = {"examples": 8, "correct": 3, "loss_sum": 6.0}

    def tested(name: str, confusion: list[list[int]]) -> Line:
        right = confusion[0][0] + confusion[1][1]
        return {"event": "test", "name": name, "examples": 8, "accuracy": right / 8, "interval": [0.3, 0.9], "macro_f1": 0.5,
                "loss": 0.6, "labels": list(tiny.TASK.labels), "confusion": confusion}  # fmt: skip

    return [
        {"event": "zero_shot", "held_out": tally},
        {"event": "finished", "chosen_round": 2, "gate": {"open": True, "adapter": {**tally, "correct": 6}, "raw": tally}},
        tested("zero-shot", [[2, 2], [3, 1]]),
        tested("adapter", [[3, 1], [0, 4]]),
    ]


def write(run: Path, lines: list[Line]) -> None:
    run.mkdir(exist_ok=True, parents=True)
    (run / "new").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "new").rename(run / "metrics.jsonl")


def append(run: Path, lines: list[Line]) -> None:
    """In two writes, the first of which ends within a line."""
    content = "".join(json.dumps(line) + "\n" for line in lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(content[:-40])
        file.flush()
        time.sleep(0.3)
        file.write(content[-40:])
