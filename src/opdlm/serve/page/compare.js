/* Two models, or two decodings of one, on the same prompt: one after the other. */

import { Dial } from "./dial.js";
import { element, say } from "./elements.js";
import { Writing } from "./writing.js";

const MEASURES = [
  ["tokens", ({ usage }) => String(usage.completion_tokens)],
  ["forwards", ({ usage }) => String(usage.forwards)],
  ["tokens per forward", ({ usage }) => usage.tokens_per_forward.toFixed(2)],
  ["seconds", ({ seconds }) => seconds.toFixed(2)],
  ["tokens per second", ({ usage, seconds }) => (usage.completion_tokens / seconds).toFixed(1)],
];

const scoped = (scope, text) => {
  const made = element("th", "", text);
  made.scope = scope;
  return made;
};

export const startCompare = (page, cards) => {
  const section = document.querySelector("#compare");
  const [form, text, table] = ["form", "textarea", ".took"].map((one) => section.querySelector(one));
  const verdict = section.querySelector(".verdict");
  const right = cards.find((card) => card.decodings.length === 1) ?? cards[1] ?? cards[0];
  const left = cards.find((card) => card !== right) ?? right;
  const sides = [...section.querySelectorAll(".side")].map((side, i) => ({
    dial: new Dial(side.querySelector(".dial div"), cards, [left, right][i].id),
    holder: side.querySelector(".result"),
  }));

  const drawTook = (results) => {
    const head = element("tr");
    head.append(element("td"), ...results.map(({ name }) => scoped("col", name)));
    const rows = MEASURES.map(([measure, of]) => {
      const row = element("tr");
      row.append(scoped("row", measure), ...results.map((result) => element("td", "", of(result))));
      return row;
    });
    const [top, body] = [element("thead"), element("tbody")];
    top.append(head);
    body.append(...rows);
    table.replaceChildren(top, body);
  };

  const compare = async (prompt, signal) => {
    table.hidden = verdict.hidden = true;
    const writings = sides.map((side) => new Writing(side.holder));
    const body = { messages: [{ role: "user", content: prompt }], ...page.sampling() };
    const results = [];
    for (const [i, { dial }] of sides.entries()) {
      const done = await writings[i].run("v1/chat/completions", body, { dial, prompt, signal });
      if (!done.complete) return;
      results.push({ name: dial.name, ...done });
    }
    drawTook(results);
    verdict.textContent = results[0].text === results[1].text ? "Both wrote the same text." : "The texts differ.";
    table.hidden = verdict.hidden = false;
    const took = results.map(({ name, usage, seconds }) => `${name}: ${usage.forwards} forwards, ${seconds.toFixed(2)} s`);
    say(`${verdict.textContent} ${took.join("; ")}`);
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = text.value.trim();
    if (prompt) page.busy(form, (signal) => compare(prompt, signal));
  });
};
