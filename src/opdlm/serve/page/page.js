/* The playground: a chat, two models side by side, gaps. What they share is here. */

import { models, useKey } from "./api.js";
import { startChat } from "./chat.js";
import { startCompare } from "./compare.js";
import { startFill } from "./fill.js";

const $ = (selector) => document.querySelector(selector);

const page = {
  /* What requests have of the fields under "Sampling". */
  sampling() {
    const fields = { temperature: $("#temperature"), max_tokens: $("#most"), seed: $("#seed") };
    const given = Object.entries(fields).filter(([, input]) => input.value !== "");
    return Object.fromEntries(given.map(([name, input]) => [name, Number(input.value)]));
  },

  /* Runs `act(signal)` while the form shows "Stop" in place of its other button; an error is told in words. */
  async busy(form, act) {
    if (document.body.classList.contains("busy")) {
      page.alert("Another text is being written. Wait for it, or stop it.");
      return;
    }
    const [go, stop] = [form.querySelector(".go"), form.querySelector(".stop")];
    const controller = new AbortController();
    const end = () => controller.abort();
    const shown = (busy) => {
      document.body.classList.toggle("busy", busy);
      go.hidden = busy;
      stop.hidden = !busy;
    };
    const pressed = document.activeElement === go;
    page.alert("");
    shown(true);
    if (pressed) stop.focus();
    stop.addEventListener("click", end);
    try {
      await act(controller.signal);
    } catch (error) {
      page.fail(error);
    } finally {
      const stopped = document.activeElement === stop;
      shown(false);
      if (stopped) go.focus();
      stop.removeEventListener("click", end);
    }
  },

  alert(words) {
    $("#alert").textContent = words;
    $("#alert").hidden = !words;
  },

  fail(error) {
    page.alert(error.message);
    if (error.status !== 401) return;
    $("#key").hidden = false;
    $("#key input").focus();
  },
};

/* Enter sends, Shift and Enter make a new line. */
const listen = (form) => {
  const text = form.querySelector("textarea");
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || form.closest("#fill")) return;
    event.preventDefault();
    if (!form.querySelector(".go").hidden) form.requestSubmit();
  });
};

const startTabs = () => {
  const tabs = [...$("#tabs").children];
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      $(`#${tab.getAttribute("aria-controls")}`).hidden = tab !== chosen;
    }
  };
  for (const tab of tabs) tab.addEventListener("click", () => choose(tab));
  $("#tabs").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const shown = tabs.filter((tab) => !tab.hidden);
    const next = shown.at((shown.indexOf(event.target) + by) % shown.length);
    choose(next);
    next.focus();
  });
};

const start = async () => {
  page.alert("");
  let cards;
  try {
    cards = await models();
  } catch (error) {
    page.fail(error);
    return;
  }
  $("#key").hidden = true;
  $("main").hidden = false;
  startChat(page, cards);
  startCompare(page, cards);
  const filling = cards.filter((card) => card.infill);
  $("#tab-fill").hidden = filling.length === 0;
  if (filling.length) startFill(page, filling);
};

$("#key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("#key input").value);
  if ($("main").hidden) start();
  else {
    $("#key").hidden = true;
    page.alert("");
  }
});
document.querySelectorAll("form.ask").forEach(listen);
startTabs();
start();
