"""The page at `/` in a real browser, against a real server: chat, the dial, side by side, gaps, keyboard, phone."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from browser import CONTRAST, chromium
from live_server import MESSAGES, autoregressive, diffusion, gauge, serving, until
from lossless import drafting
from opdlm.config import GenerationSettings
from opdlm.models.tokens import encode_prompt
from opdlm.records.trajectory import Trajectory
from opdlm.sampling.api import DiffusionLM, GenerationOutput
from opdlm.sampling.engine import Completion, Engine
from support import tiny_tokenizer

TEXTS = ":is(p, span, label, legend, button:not(:disabled), textarea, summary, output, th, td):not(.dv-masked)"
PROMPT = MESSAGES[0]["content"]
SELECT = "(e, word) => e.setSelectionRange(e.value.indexOf(word), e.value.indexOf(word) + word.length)"
HOSTILE = "<img src=x onerror='window.stolen = 1'>"


def drafter() -> DiffusionLM:
    defaults = GenerationSettings.model_validate({"decoding": "verified", "max_new_tokens": 24})
    return DiffusionLM(drafting(window=3), tiny_tokenizer(chat=True), defaults)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def root(browser) -> Iterator[str]:
    models = {"diffusion": diffusion(), "autoregressive": autoregressive(), "lossless": drafter()}
    with serving(models) as url:
        yield url.removesuffix("/v1")


@contextmanager
def opened(browser: Any, root: str, faults: list[str], **options: Any) -> Iterator[Any]:
    """A page, and in `faults` what went wrong in it or left the server."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda request: request.url.startswith((root, "data:", "blob:")) or faults.append(request.url))
    page.goto(root)
    yield page
    context.close()


@pytest.fixture
def page(browser, root):
    faults: list[str] = []
    with opened(browser, root, faults) as found:
        found.locator("#chat-prompt").wait_for()
        yield found
    assert not faults


def asked(page: Any, text: str = PROMPT, number: int = 0) -> Any:
    """The answer in the chat, once it is complete."""
    page.locator("#chat-prompt").fill(text)
    page.keyboard.press("Enter")
    reply = page.locator("#chat .reply").nth(number)
    reply.locator(".facts", has_text=re.compile(r"forwards?, .* s$")).wait_for()
    page.locator("#chat .go").wait_for()
    return reply


def saved(page: Any, within: Any) -> Trajectory:
    with page.expect_download() as caught:
        within.get_by_role("button", name="Save the trajectory").click()
    assert caught.value.suggested_filename.endswith(".json")
    return Trajectory.from_json(json.loads(caught.value.path().read_text("utf-8")), "saved")


def generated(**settings: Any) -> GenerationOutput:
    return diffusion().generate([encode_prompt(diffusion().tokenizer, MESSAGES)], **settings)


def event(tokens: list[Any], forwards: int, start: int = 0, **delta: Any) -> dict[str, Any]:
    draft = {"start": start, "position": 4 + start, "tokens": tokens, "forwards": forwards}
    return {"choices": [{"index": 0, "delta": {"draft": draft, **delta}}], "usage": None}


def known(text: str, number: int, probability: float | None = 0.5) -> dict[str, Any]:
    return {"token": text, "id": number, "probability": probability}


def replayed(page: Any, *events: dict[str, Any]) -> None:
    """The server's answer from now on."""
    lines = [f"data: {json.dumps(one)}\n\n" for one in events]
    body = "".join(lines) + ("" if "error" in events[-1] else "data: [DONE]\n\n")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))


def test_a_prompt_is_answered_as_generate_does(page) -> None:
    """Else the page would show another text than the model's, or save another trajectory than it had."""
    reply = asked(page)
    expected = generated()
    record = expected.trajectories()[0]
    assert reply.locator(".answer").text_content() == diffusion().decode(expected)[0]
    assert reply.locator(".facts").text_content().startswith(f"24 tokens in {record.forwards} forwards, ")
    found = saved(page, reply)
    for name in ("positions", "token_ids", "forwards", "block_size"):
        assert getattr(found, name) == getattr(record, name)
    assert found.confidences == pytest.approx(record.confidences, abs=1e-3)
    assert (found.decoding, found.prompt, found.verified) == ("dynamic:0.3", PROMPT, False)
    assert found.answer == diffusion().decode(expected)[0]
    assert page.locator("#spoken").text_content() == f"Answer: {found.answer}"


def test_a_conversation_goes_on_and_begins_anew(page) -> None:
    """Else the model would not know what was said before, or never forget it."""
    sent: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.post_data_json["messages"]))
    first = asked(page).locator(".answer").text_content()
    asked(page, "and then", 1)
    assert sent[1] == [*MESSAGES, {"role": "assistant", "content": first}, {"role": "user", "content": "and then"}]
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turns").text_content() == ""
    asked(page)
    assert sent[2] == MESSAGES


def test_the_dial_offers_what_the_model_can_do(page) -> None:
    """Else a reader could choose what the server refuses, or would not learn what a setting does."""
    dial = page.locator("#chat .dial")
    kinds = dial.get_by_label("decoding")
    names = kinds.locator("option").all_text_contents()
    kept = ["prefix", "dynamic (as saved)", "static", "sequential", "checked", "checked:auto"]
    assert names == [*kept, "factor", "entropy", "klass"]
    assert dial.get_by_label("threshold").input_value() == "0.3"
    said = set()
    for kind in [name.split()[0] for name in names]:
        kinds.select_option(kind)
        said.add(dial.locator(".does").text_content())
    assert len(said) == len(names)
    kinds.select_option("static")
    dial.get_by_label("tokens per forward").fill("3")
    reply = asked(page)
    assert reply.locator(".by").text_content() == "diffusion, static 3"
    forwards = int(generated(decoding="static:3").rollout.forwards)
    assert f" in {forwards} forwards, " in reply.locator(".facts").text_content()
    dial.get_by_label("model").select_option("autoregressive")
    assert not kinds.is_visible()
    assert "nothing to set" in dial.locator(".does").text_content()
    dial.get_by_label("model").select_option("lossless")
    assert kinds.locator("option").all_text_contents() == [
        "sequential",
        "verified (as saved)",
        "verified:auto",
        "typical",
    ]
    reply = asked(page, number=1)
    found = saved(page, reply)
    assert found.verified
    assert reply.locator(".facts").text_content().startswith(f"24 tokens in {found.forwards} forwards, ")
    assert kinds.input_value() == "verified"


def test_a_text_is_seen_while_it_is_denoised(page) -> None:
    """Else the page would show no denoising, or save steps that never were."""
    events = [
        event([known("A", 1), None, None], 1),
        event([known("A", 1), None, known("C", 3)], 2, content=""),
        event([known("B", 2), known("C", 3), known("D", 4)], 4, start=1),  # a forward was missed
    ]
    replayed(page, *events)
    reply = asked(page)
    assert reply.locator(".dv-text").text_content() == "ABCD"
    page.locator(".dv-scrub").focus()
    seen = []
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
        shown = reply.locator(".dv-token:not(.dv-masked)").all_text_contents()
        seen.append("".join(shown))
    assert seen == ["AC", "AC", "A", ""]
    record = saved(page, reply)
    assert (record.positions, record.commit_steps) == ((4, 5, 6, 7), (0, 3, 1, 3))
    assert (record.token_ids, record.forwards) == ((1, 2, 3, 4), 4)


def test_blocks_that_were_missed_take_no_more_forwards_than_there_were(page) -> None:
    """Else a text that came in late would be saved with more forwards than it took."""
    block = [known("B", 2), known("C", 3), known("D", 4)]
    replayed(page, event([known("A", 1), None, None, None], 1), event([*block, known("E", 5)], 4, start=1))
    record = saved(page, asked(page))
    assert (record.positions, record.commit_steps) == ((4, 5, 6, 7, 8), (0, 1, 1, 1, 1))
    assert record.forwards == 4


def test_a_forward_that_writes_into_two_blocks_keeps_all_of_its_tokens(page) -> None:
    """Else what a grammar forces in several blocks at once would be missing in the saved text."""
    replayed(page, event([known(letter, place) for place, letter in enumerate("ABCDE")], 1))
    record = saved(page, asked(page))
    assert (record.positions, record.commit_steps) == ((4, 5, 6, 7, 8), (0, 0, 0, 0, 0))


def test_drafts_that_were_refused_are_saved(page) -> None:
    """Else accepted and refused drafts of a lossless model could not be told apart."""
    page.locator("#chat .dial").get_by_label("model").select_option("lossless")
    replayed(
        page,
        event([known("A", 1), known("B", 2, None), known("C", 3, None)], 1),
        event([known("B", 2), known("X", 9), known("Y", 8, None)], 2, start=1),
        event([known("Y", 8)], 3, start=3),
    )
    record = saved(page, asked(page))
    assert record.verified
    assert (record.token_ids, record.commit_steps) == ((1, 2, 9, 8), (0, 1, 1, 2))
    assert [[one.text for one in place] for place in record.refused or ()] == [[], [], ["C"], []]


def test_two_models_side_by_side(page) -> None:
    """Else nobody would see what diffusion saves, or the seconds of one would hold those of the other."""
    sent: list[Any] = []
    page.on("request", lambda request: request.method == "POST" and sent.append(request.post_data_json["model"]))
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#compare-prompt").fill(PROMPT)
    page.locator("#sampling summary").click()
    page.get_by_label("most tokens").fill("12")
    page.locator("#compare .go").click()
    page.locator(".took").wait_for()
    assert sent == ["diffusion", "autoregressive"]
    cells = [[cell.text_content() for cell in row.locator("th, td").all()] for row in page.locator(".took tr").all()]
    assert cells[0] == ["", "diffusion, dynamic 0.3", "autoregressive, sequential"]
    assert [row[0] for row in cells[1:]] == ["tokens", "forwards", "tokens per forward", "seconds", "tokens per second"]
    forwards = [saved(page, side).forwards for side in page.locator("#compare .result").all()]
    assert cells[2] == ["forwards", *map(str, forwards)]
    assert cells[1][2] == cells[2][2]
    texts = page.locator("#compare .answer").all_text_contents()
    same = "Both wrote the same text." if texts[0] == texts[1] else "The texts differ."
    assert page.locator(".verdict").text_content() == same


def test_a_gap_is_marked_and_filled(page) -> None:
    """Else what a model with masks can do and others cannot would not be seen."""
    page.locator("#tab-fill").click()
    text = page.locator("#fill-text")
    text.fill("one two three four")
    page.locator("#fill .go").click()
    assert "There is no gap yet" in page.get_by_role("alert").text_content()
    for word in ("two", "four"):
        text.evaluate(SELECT, word)
        page.get_by_role("button", name="Make a gap of").click()
    gaps = "one [[MASK:4]] three [[MASK:4]]"
    assert text.input_value() == gaps
    page.locator("#fill .go").click()
    page.locator("#fill .facts", has_text="8 tokens in ").wait_for()
    page.locator("#fill .go").wait_for()
    assert page.locator(".filled").text_content() == diffusion().infill(gaps)
    marked = page.locator(".filled mark").all_text_contents()
    assert "one {} three {}".format(*marked) == diffusion().infill(gaps)
    record = diffusion().fill([diffusion().gaps(gaps).ids]).trajectories()[0]
    found = saved(page, page.locator("#fill"))
    assert (found.positions, found.token_ids, found.forwards) == (record.positions, record.token_ids, record.forwards)
    assert page.locator("#fill").get_by_label("model").locator("option").all_text_contents() == ["diffusion"]
    assert "checked" not in page.locator("#fill").get_by_label("decoding").text_content()


def test_stop_frees_the_place(page, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a long text would be written to its end for nobody."""
    step, finished, steps, stopped = Engine.step, [], [], threading.Event()

    def noted(engine: Engine) -> Any:
        events = step(engine)
        finished.extend(one for one in events if isinstance(one, Completion))
        steps.append(events)
        if len(steps) == 3:
            stopped.wait(100)
        return events

    answered = gauge(root, "opdlm_requests_total")
    monkeypatch.setattr(Engine, "step", noted)
    page.locator("#chat .dial").get_by_label("decoding").select_option("sequential")
    page.locator("#chat-prompt").fill(PROMPT)
    page.locator("#chat .go").click()
    page.locator("#chat .dv-token:not(.dv-masked)").first.wait_for()
    page.keyboard.press("Enter")  # the button that was pressed is Stop now
    page.locator("#chat .go").wait_for()
    assert page.locator("#chat .facts").text_content().startswith("stopped after: ")
    until(lambda: gauge(root, "opdlm_requests_total") == answered + 1)
    stopped.set()
    until(lambda: gauge(root, "opdlm_texts_writing") == 0)
    assert not finished
    assert page.locator("#chat .go").evaluate("(button) => button === document.activeElement")


def test_texts_of_a_model_stay_texts(page) -> None:
    """Else a model's words would run in the reader's browser."""
    replayed(page, event([known(HOSTILE, 1)], 1, content=HOSTILE))
    reply = asked(page, HOSTILE)
    assert reply.locator(".answer").text_content() == HOSTILE
    assert page.locator(".question").text_content() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.evaluate("window.stolen") is None


def test_errors_are_said_in_words(browser, root: str) -> None:
    """Else a reader would wait for an answer that never comes, or lose what was typed."""
    faults: list[str] = []
    with opened(browser, root, faults) as page:
        told = page.get_by_role("alert")
        page.locator("#chat-prompt").fill("long " * 60)
        page.keyboard.press("Enter")
        told.get_by_text("context of 256").wait_for()
        assert page.locator("#chat-prompt").input_value() == ("long " * 60).strip()
        replayed(page, event([known("A", 1)], 1), {"error": {"message": "the model could not write"}})
        page.locator("#chat-prompt").fill("x")
        page.keyboard.press("Enter")
        told.get_by_text("The server says: the model could not write.").wait_for()
        page.unroute_all()
        page.route("**/v1/*/completions", lambda route: route.abort())
        page.keyboard.press("Enter")
        told.get_by_text("The server cannot be reached").wait_for()
        assert page.locator(".reply, .question").count() == 0
        assert not [fault for fault in faults if "Failed to load" not in fault]


def test_a_key_is_asked_for_where_the_server_needs_one(browser) -> None:
    """Else a server with a key would have no page, or one without a key a field that means nothing."""
    with serving(api_key="secret") as url:
        faults: list[str] = []
        with opened(browser, url.removesuffix("/v1"), faults) as page:
            field = page.get_by_label("API key")
            field.fill("wrong")
            page.keyboard.press("Enter")
            page.get_by_role("alert").get_by_text("the API key is missing or wrong").wait_for()
            field.fill("secret")
            page.keyboard.press("Enter")
            page.locator("#chat-prompt").wait_for()
            assert not field.is_visible()
            asked(page)
            page.reload()
            page.locator("#chat-prompt").wait_for()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable(browser, root: str, width: int, scheme: Any) -> None:
    """Else the page would be cut on a phone, or grey on grey in one of the schemes."""
    faults: list[str] = []
    size = {"width": width, "height": 844}
    with opened(browser, root, faults, viewport=size, color_scheme=scheme, has_touch=width == 390) as page:
        page.locator("#chat-prompt").wait_for()
        assert not page.get_by_label("API key").is_visible()
        asked(page, "a long word " + "w" * 80)
        page.locator("#sampling summary").click()
        for tab in page.get_by_role("tab").all():
            tab.click()
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert min(page.eval_on_selector_all(TEXTS, CONTRAST)) >= 4.5
            heights = page.eval_on_selector_all(
                "button, input, select, [role=tab]",
                "(all) => all.map((one) => one.getBoundingClientRect().height).filter((height) => height > 0)",
            )
            assert min(heights) >= 40
    assert not faults


def test_the_page_asks_for_nothing_from_elsewhere(root: str) -> None:
    """Else a page of a server in a closed network would not work, or could be made to send what was typed."""
    answer = httpx2.get(root + "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in policy
    assert "unsafe" not in policy
    for name in ("page.js", "page.css", "viewer.js", "viewer.css"):
        file = httpx2.get(f"{root}/page/{name}")
        assert file.headers["content-type"].startswith(("text/javascript", "text/css"))
        assert "://" not in file.text
    assert httpx2.get(root + "/page/app.py").status_code == 404
    assert httpx2.get(root + "/page/..%2Fapp.py").status_code == 404
