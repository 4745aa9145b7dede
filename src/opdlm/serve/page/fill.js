/* A text with gaps: they are marked by selecting, and filled where they stand. */

import { Dial } from "./dial.js";
import { element, say } from "./elements.js";
import { Writing } from "./writing.js";

const GAP = /\[\[MASK:(\d+)\]\]/;

export const startFill = (page, cards) => {
  const section = document.querySelector("#fill");
  const [form, text, filled] = ["form", "textarea", ".filled"].map((one) => section.querySelector(one));
  const [mark, size] = [".mark", ".size"].map((one) => section.querySelector(one));
  const dial = new Dial(section.querySelector(".dial div"), cards.map(onlyMasks));

  mark.addEventListener("click", () => {
    if (!size.reportValidity()) return;
    text.focus();
    text.setRangeText(`[[MASK:${size.value}]]`, text.selectionStart, text.selectionEnd, "select");
    say(`A gap of ${size.value} tokens.`);
  });

  /* Tokens of a draft go into the gaps in order. A token without a probability is given: it stands between gaps. */
  const draw = (whole, tokens) => {
    const written = tokens.filter((token) => token === null || token.probability !== null);
    const parts = whole.split(GAP).map((part, i) => (i % 2 ? gap(written, Number(part)) : document.createTextNode(part)));
    filled.replaceChildren(...parts);
    filled.hidden = false;
  };

  /* The text itself, once it is there: single tokens may be parts of characters. What is given comes back as it was. */
  const drawFilled = (whole, done) => {
    const given = whole.split(GAP).filter((_, i) => i % 2 === 0);
    const found = new RegExp(`^${given.map(escaped).join("([^]*?)")}$`).exec(done);
    const parts = found ? found.slice(1).flatMap((words, i) => [element("mark", "", words), given[i + 1]]) : [done];
    filled.replaceChildren(...(found ? [given[0], ...parts] : parts));
  };

  const fill = async (signal) => {
    const whole = text.value;
    const options = { dial, prompt: whole, signal, drawDraft: (tokens) => draw(whole, tokens) };
    draw(whole, []);
    const { max_tokens: _, ...sampling } = page.sampling();
    const done = await new Writing(section.querySelector(".result")).run("v1/infill", { text: whole, ...sampling }, options);
    if (done.complete) drawFilled(whole, done.text);
    say(done.complete ? `Filled: ${done.text}` : "Stopped.");
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (GAP.test(text.value)) page.busy(form, fill);
    else page.alert("There is no gap yet. Select a part of the text, then press “Make a gap of”.");
  });
};

/* `checked` writes from left to right and fills no gaps. */
const onlyMasks = (card) => {
  const decodings = card.decodings.filter((kind) => kind !== "checked");
  const saved = card.defaults.decoding.startsWith("checked") ? "" : card.defaults.decoding;
  return { ...card, decodings, defaults: { ...card.defaults, decoding: saved } };
};

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");

const gap = (written, size) => {
  const made = element("mark");
  for (let i = 0; i < size; i += 1) {
    const token = written.shift();
    const cell = element("span", token ? "" : "mask", token ? token.token : "  ");
    made.append(cell);
  }
  return made;
};
