"""The report and its viewer of denoising in a real browser: keyboard, touch, both colour schemes, both widths."""

import json
from pathlib import Path
from typing import Any

import pytest

from browser import CONTRAST, chromium
from opdlm import viewer
from opdlm.records.trajectory import Trajectory
from opdlm.report.html import write_report
from report_runs import HOSTILE, drafted, trajectory, write_run

PAGE = "<!doctype html><meta charset=utf-8><style>{style}</style><div id=v></div><script>{script}</script>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "first"), write_run(folder / "second", lossless=True)]
    return write_report(runs, folder / "report.html")


@pytest.fixture
def opened(browser, report):
    """(page, faults): the report, and what went wrong in it or left it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda request: request.url.startswith("file:") or faults.append(request.url))
    page.goto(report.as_uri())
    yield page, faults
    context.close()


@pytest.fixture
def alone(browser, tmp_path):
    """A page with the viewer alone, as `viewer` in its script."""
    (tmp_path / "page.html").write_text(PAGE.format(style=viewer.style(), script=viewer.script()), "utf-8")
    context = browser.new_context(has_touch=True)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.evaluate("window.viewer = new DenoisingViewer(document.querySelector('#v'))")
    yield page
    context.close()


def status(page: Any, number: int = 0) -> str:
    return page.locator(".dv-status").nth(number).text_content()


def masked(page: Any, number: int = 0) -> int:
    return page.locator(".viewer").nth(number).locator(".dv-token.dv-masked").count()


def test_it_is_stepped_by_keyboard(opened) -> None:
    """Else who has no mouse could not see a text being written."""
    page, faults = opened
    page.locator(".dv-scrub").first.focus()
    assert status(page).startswith("Forward 5 of 5: 8 of 8 tokens, 1.60 tokens per forward")
    seen = []
    for key in ("Home", "ArrowRight", "ArrowRight", ".", "ArrowLeft", ",", "End"):
        page.keyboard.press(key)
        seen.append((status(page).partition(":")[0], masked(page)))
    # commit steps 0 1 0 2 | 0 0 1 0
    assert seen == [
        ("Forward 0 of 5", 8),
        ("Forward 1 of 5", 6),
        ("Forward 2 of 5", 5),
        ("Forward 3 of 5", 4),
        ("Forward 2 of 5", 5),
        ("Forward 1 of 5", 6),
        ("Forward 5 of 5", 0),
    ]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator(".dv-hidden[aria-live=polite]").first.text_content().endswith("New: The  sat")
    assert not faults


def test_it_plays_and_pauses(opened) -> None:
    """Else the button would do nothing, or never end."""
    page, faults = opened
    page.evaluate("""
        window.passed = [];
        document.querySelector(".viewer").addEventListener("dv-change", (event) => passed.push(event.detail.frame));
    """)
    page.locator(".dv-bar").first.get_by_label("Speed").select_option("10")
    page.locator(".dv-bar").first.get_by_role("button", name="Play").click()
    page.locator(".dv-bar").first.get_by_role("button", name="Play").wait_for()
    assert page.evaluate("passed") == [0, 1, 2, 3, 4, 5]
    page.locator(".dv-bar").first.get_by_label("Speed").select_option("0.5")
    page.locator(".dv-scrub").first.focus()
    page.keyboard.press(" ")
    page.keyboard.press(" ")
    assert status(page).startswith("Forward 0 of 5")
    assert not faults


def test_tokens_are_read_by_keyboard(opened) -> None:
    """Else a screen reader would not come to the alternatives, or not hear how sure the model was."""
    page, faults = opened
    page.locator(".dv-token").first.focus()
    page.keyboard.press("ArrowRight")
    chosen = page.locator("[aria-selected=true]")
    assert chosen.get_attribute("aria-label") == "cat, confidence 40.0 %"
    detail = page.locator(".dv-detail").first
    assert "KL(teacher || student)0.0200 nats" in detail.text_content()
    assert [row.text_content() for row in detail.locator("tr").all()] == [" cat70.0 %", "<b>bold</b>20.0 %"]
    page.keyboard.press("ArrowDown")
    assert page.locator("[aria-selected=true]").get_attribute("aria-label").startswith("the,")
    page.locator(".dv-label select").first.select_option("kl")
    assert page.locator("[aria-selected=true]").get_attribute("aria-label") == "the, KL 2.500 nats"
    assert page.locator(".dv-token").nth(2).get_attribute("aria-label") == "sat, KL not measured"
    assert not faults


def test_texts_of_a_model_stay_texts(opened) -> None:
    """Else a model's words would run in the reader's browser."""
    page, faults = opened
    assert page.evaluate("window.stolen") is None
    assert page.locator("img").count() == 0
    assert page.locator(".dv-token").nth(7).text_content() == HOSTILE
    assert HOSTILE in page.locator(".dv-prompt").first.text_content()
    assert not faults  # among them: a request for the image


def test_verified_decoding_shows_what_was_refused(opened) -> None:
    """Else accepted and refused drafts could not be told apart."""
    page, faults = opened
    second = page.locator(".viewer").nth(1)
    kinds = [token.get_attribute("class") for token in second.locator(".dv-token").all()]
    names = [next(name for name in ("accepted", "own", "replaced") if f"dv-{name}" in kind) for kind in kinds]
    assert names == ["accepted", "own", "accepted", "accepted", "replaced", "accepted", "accepted", "own"]
    second.locator(".dv-scrub").focus()
    page.keyboard.press("ArrowLeft")
    assert [one.text_content() for one in second.locator(".dv-refused").all()] == [" dog", " ran"]
    assert second.locator(".dv-draft").count() == 2
    assert page.locator(".viewer").first.locator("option[value=verified]").get_attribute("hidden") is not None
    assert not faults


def test_another_text_is_chosen(opened) -> None:
    """Else of all rollouts one alone could be seen."""
    page, _ = opened
    choice = page.locator(".text-choice").first
    assert choice.locator("option").all_text_contents()[0] == "rollout 1, text 1"
    page.locator(".dv-scrub").first.focus()
    page.keyboard.press("Home")
    choice.select_option("0")
    assert status(page).startswith("Forward 5 of 5")


def test_a_text_comes_in_live(alone) -> None:
    """Else a page could not show a text while a server writes it, nor save what it saw."""
    alone.evaluate("""
        viewer.begin({prompt: "<i>p</i>", block_size: 4, first: 6, decoding: "dynamic:0.9"});
        viewer.append({tokens: [{position: 6, text: "A", token_id: 1, confidence: 0.9,
                                 alternatives: [{token_id: 1, text: "A", probability: 0.9}]}]});
    """)
    assert status(alone) == "Forward 1: 1 tokens, 1.00 tokens per forward so far (dynamic:0.9)"
    assert alone.locator(".dv-token").count() == 2  # the rest of its block
    alone.evaluate(
        "viewer.append({tokens: [{position: 7, text: 'B', token_id: 2, confidence: 0.5}]}); viewer.step(-1);"
    )
    alone.evaluate("viewer.append({tokens: [{position: 9, text: 'D'}, {position: 8, text: '</script>'}]})")
    assert status(alone).startswith("Forward 1: 1 tokens")  # who stepped back stays there
    alone.evaluate("viewer.end({answer: 'ABD'})")
    assert status(alone).startswith("Forward 3 of 3: 4 of 4 tokens, 1.33 tokens per forward")
    assert alone.locator(".dv-text").text_content() == "AB</script>D"
    saved = Trajectory.from_json(alone.evaluate("viewer.record()"), "viewer")
    assert saved.positions == (6, 7, 8, 9)
    assert saved.commit_steps == (0, 1, 0, 0)
    assert saved.forwards == 3
    assert saved.confidences is None  # not of all
    assert saved.alternatives is not None
    alone.evaluate("viewer.show(viewer.record())")
    assert status(alone).startswith("Forward 3 of 3: 4 of 4 tokens")
    alone.evaluate("""
        viewer.begin({verified: true});
        viewer.append({tokens: [{position: 1, text: "x"}], drafts: [{position: 2, text: "y"}]});
    """)
    assert alone.locator(".dv-ghost").text_content() == "y"
    alone.evaluate("viewer.append({tokens: [{position: 2, text: 'y'}, {position: 3, text: 'z'}]}); viewer.end()")
    assert "dv-accepted" in alone.locator(".dv-token").nth(1).get_attribute("class")
    assert alone.locator(".dv-ghost").count() == 0


@pytest.mark.parametrize("record", [trajectory(), drafted()], ids=["denoised", "verified"])
def test_a_record_comes_back_as_it_was(alone, record: Trajectory) -> None:
    """Else a saved trajectory would be another's."""
    alone.evaluate("(record) => viewer.show(record)", record.to_json())
    assert Trajectory.from_json(alone.evaluate("viewer.record()"), "viewer") == record


def test_a_tap_shows_the_alternatives(alone) -> None:
    """Else there would be no hovering on a phone, and no alternatives."""
    alone.evaluate("(record) => viewer.show(record)", trajectory().to_json())
    alone.locator(".dv-token").nth(4).tap()
    assert "position8" in alone.locator(".dv-detail").text_content()


def test_a_text_of_an_old_file(alone) -> None:
    """Files of earlier versions have no texts, no alternatives and no KL."""
    old = {"positions": [4, 5, 6], "token_ids": [7, 8, 9], "commit_steps": [1, 0, 1], "block_size": 4, "forwards": 2}
    alone.evaluate("(record) => viewer.show(record)", old)
    assert alone.locator(".dv-text").text_content() == "⟨7⟩⟨8⟩⟨9⟩"
    assert alone.locator(".dv-label select").input_value() == "step"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable(browser, report, width: int, scheme: Any) -> None:
    """Else the page would be cut at one width, or grey on grey in one of the schemes."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    sizes = page.eval_on_selector_all(".wide", "(all) => all.map((one) => [one.scrollWidth, one.clientWidth])")
    if width == 1280:
        assert all(inside <= room for inside, room in sizes)  # no table needs scrolling on a desk
    for colour in ("confidence", "step", "kl"):
        page.locator(".dv-label select").first.select_option(colour)
        shown = ".dv-token:not(.dv-masked), .dv-chip, .dv-status, .small, figcaption, th, td, dt, dd, p, h2, option"
        contrast = page.eval_on_selector_all(shown, CONTRAST)
        assert min(contrast) >= 4.5
    text = page.eval_on_selector_all("figure text", "(all) => all.map((one) => one.getBoundingClientRect().height)")
    assert min(text) >= 9  # pixels
    context.close()


def test_the_script_ends_where_it_should() -> None:
    """Else `</script>` in the viewer's own source would end it in the middle of a page."""
    assert "</script" not in viewer.script()
    assert "</style" not in viewer.style()
    assert json.loads(json.dumps(viewer.script()))
