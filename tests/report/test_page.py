"""The page, as headless Chromium shows it."""

import dataclasses
import json
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipeflow.config import Config
from pipeflow.report.command import report, write_page
from pipeflow.report.live import Live
from pipeflow.report.runs import read_runs
from pipeflow.workers.timeline import COMPUTE, SEND, Span
from pipeflow.workers.trace import write_trace
from tests.run_records import ALTERNATE, write, write_log

FULL = tuple(
    dataclasses.replace(
        each,
        rate={part: 1e-3 for part in each.train_loss},
        gradient_norm={part: 10.0 ** (each.epoch - 2) for part in each.train_loss},
        idle=(0.1, 0.2, 0.3),
    )
    for each in ALTERNATE
)


def a_run(folder: Path, records=FULL, **options) -> Path:
    """A run that has left all that there is."""
    write(folder, records, wire=True)
    config = Config.from_dict({"run": {"dir": str(folder)}, **options})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    history = [{"epoch": 2, "step": 1, "options": {"optim.lr": [0.1, 0.002]}}]
    (folder / "config_history.yaml").write_text(yaml.safe_dump(history))
    (folder / "samples").mkdir()
    for name in ("data", *(f"epoch-{number:06d}" for number in (0, 2, 4, 9))):
        Image.new("RGB", (16, 16), (40, 90, 200)).save(folder / "samples" / f"{name}.png")
    spans = [Span(COMPUTE, "part 0 forward 3", 10**9, 5 * 10**6), Span(SEND, "latents 3", 10**9 + 10**6, 10**6)]
    write_trace([spans, spans], folder / "timeline.json")
    return folder


def test_one_run_is_drawn_without_a_network_on_a_telephone_and_on_a_desk(tmp_path, open_page):
    folder = a_run(tmp_path / "mine", optim={"lr": 0.5})
    write_page(read_runs([folder]), folder)
    page = open_page(folder / "report.html", width=390)
    text = page.tab.locator("body").inner_text()
    for words in ("optim.lr\t0.5\t0.002", "3 alternate + 2 finetune", "0 → 1: 0.001", "0: 10%, 1: 20%, 2: 30%"):
        assert words in text
    assert page.tab.locator("figcaption").all_inner_texts() == [
        "data",
        "epoch 0",
        "epoch 2",
        "epoch 4",
    ]  # 9 is of later
    assert page.tab.locator("img").evaluate_all("all => all.every(each => each.complete && each.naturalWidth == 16)")
    page.tab.locator("summary").last.click()
    assert "2 epochs, 1 batch\toptim.lr\t0.1\t0.002" in page.tab.locator("body").inner_text()
    for width, least in ((390, 350), (1280, 400)):
        page.tab.set_viewport_size({"width": width, "height": 844})
        for axis in ("seconds", "bytes", "epoch"):
            page.tab.check(f"#over-{axis}")
            page.wait_for(f"document.querySelector('.over-{axis} > div').getBoundingClientRect().height > 250")
            widths = page.drawn()
            assert len(widths) == 10 and all(least < each < width for each in widths), (width, axis, widths)
        assert (
            page.is_as_wide_as_the_window()
        )  # of the figures: bits/dim, 4 losses, 2 of updates, 2 of links, the timeline
    assert page.complaints == [] and page.addresses == {(folder / "report.html").as_uri()}


def test_several_runs_begin_with_what_differs_and_share_their_colours(tmp_path, open_page):
    folders = [a_run(tmp_path / "runs" / f"lr{lr}", optim={"lr": lr}) for lr in (0.1, 0.2)]
    folders.append(write_log(tmp_path / "runs" / "going", FULL[:2]))
    report(folders)
    page = open_page(tmp_path / "runs" / "report.html", 390)
    assert page.complaints == [] and page.is_as_wide_as_the_window()
    table = page.tab.locator("table").first
    assert table.locator("th").all_inner_texts()[:2] == ["run", "optim.lr"]
    rows = [row.locator("td").all_inner_texts()[:2] for row in table.locator("tbody tr").all()]
    assert rows == [["lr0.1", "0.1"], ["lr0.2", "0.2"], ["going", ""]]
    assert "5.900*" in table.inner_text() and "Runs that have not ended: 1." in page.tab.locator("p").first.inner_text()
    strokes = table.locator("line").evaluate_all("all => all.map(each => each.getAttribute('stroke'))")
    assert len(set(strokes)) == 3
    document = page.tab.evaluate("JSON.stringify(Bokeh.documents[0].to_json())")
    assert all(stroke in document for stroke in strokes)
    assert page.tab.locator("figcaption").all_inner_texts() == ["data of all", *["epoch 0", "epoch 2", "epoch 4"] * 2]


HURT = "<img src=x onerror=window.hurt=1></script><script>window.hurt=1</script>'\"`{{7*7}}{%x%}$$x$$"


HOVERED = """(() => {
    const texts = [], walk = root => root.querySelectorAll("*").forEach(each => {
        if (String(each.className).includes("bk-tooltip-row")) texts.push(each.innerText);
        if (each.shadowRoot) walk(each.shadowRoot);
    });
    walk(document);
    return texts.join(" ");
})()"""
"""Text of the hover texts that are to be seen, which stand in shadow trees."""


def test_names_and_options_of_others_are_text_wherever_they_stand(tmp_path, open_page):
    folders = [a_run(tmp_path / name) for name in ("a", "b")]
    for number, folder in enumerate(folders):
        summary = json.loads((folder / "summary.json").read_text())
        summary["name"] = f"{HURT}{number}"
        summary["versions"] = {HURT: HURT}
        summary["parts"] = [
            {"layers": [HURT], "parameters": 1, "head_parameters": 1, "forward_macs": 1, "output_shape": [1]}
        ]
        for epoch in summary["epochs"][:1]:
            epoch["train_loss"] = {"0": 1.0}
        (folder / "summary.json").write_text(json.dumps(summary))
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        settings["data"] |= {"path": f"{HURT}{number}"}
        settings[HURT] = {HURT: [HURT]}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        history = [{"epoch": 1, "options": {HURT: [HURT, HURT]}}]
        (folder / "config_history.yaml").write_text(yaml.safe_dump(history))
        trace = json.loads((folder / "timeline.json").read_text().replace("part 0 forward 3", "HURT"))
        for event in trace["traceEvents"]:
            if event["ph"] == "X":
                event["name"] = HURT
            elif event["name"] == "thread_name":
                event["args"]["name"] = HURT
        (folder / "timeline.json").write_text(json.dumps(trace))
    write_page(read_runs(folders), tmp_path)
    page = open_page(tmp_path / "report.html")
    for summary in page.tab.locator("summary").all():
        summary.click()
    assert page.tab.locator("body").inner_text().count(HURT) > 20
    figure = page.tab.locator(".over-epoch [data-root-id]").first.locator("xpath=./*").first
    figure.scroll_into_view_if_needed()
    curves = figure.bounding_box()
    for step in range(60):  # somewhere a curve is near, whose hover text names its run
        page.tab.mouse.move(curves["x"] + curves["width"] / 2, curves["y"] + 30 + 4 * step)
        page.tab.wait_for_timeout(10)
        if page.tab.evaluate(HOVERED):
            break
    assert HURT in page.tab.evaluate(HOVERED)
    assert not page.tab.evaluate("'hurt' in window") and page.complaints == []
    assert page.addresses == {(tmp_path / "report.html").as_uri()}


@pytest.mark.slow
def test_a_script_that_came_into_the_page_would_not_run(tmp_path, open_page):
    """The page's policy lets no script run but its own, and lets nothing be asked for."""
    folder = a_run(tmp_path / "mine")
    write_page(read_runs([folder]), folder)
    text = (folder / "report.html").read_text()
    hurt = "<script>window.hurt = 1</script><img src='https://example.org/x.png' onerror='window.hurt = 1'>"
    (folder / "report.html").write_text(text.replace("<h1>", f"{hurt}<h1>"))
    page = open_page(folder / "report.html")
    assert not page.tab.evaluate("'hurt' in window")
    assert sum("Content Security Policy" in each for each in page.complaints) >= 2
    assert len(page.drawn()) == 10


def asked(address: str, host: str) -> int:
    """The status of an answer to a request that names another host."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host})) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_a_page_that_is_served_follows_its_runs_and_answers_nobody_else(tmp_path, open_page):
    folder = write_log(tmp_path / "live", FULL[:1])
    with Live([folder], port=0) as live:
        threading.Thread(target=live.serve_forever, daemon=True).start()
        try:
            assert live.server_address[0] == "127.0.0.1"
            host = live.address.removeprefix("http://").strip("/")
            assert [asked(live.address, each) for each in (host, "evil.example", "")] == [200, 403, 403]
            assert asked(f"{live.address}..%2fsecret", host) == 404
            page = open_page(live.address, own_clock=True)
            assert "1 alternate" in page.tab.locator("body").inner_text() and page.complaints == []
            shutil.rmtree(folder)
            write_log(folder, FULL[:2])
            with page.tab.expect_navigation():
                page.tab.clock.fast_forward(6_000)
            page.wait_for("document.body.innerText.includes('2 alternate')")
        finally:
            live.shutdown()
