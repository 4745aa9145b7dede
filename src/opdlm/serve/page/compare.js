/* Two models, or two decodings of one, on the same prompt: one after the other. */

import { Dial } from "./dial.js";
import { element, say } from "./elements.js";
import { Writing } from "./writing.js";

export const startCompare = (page, cards) => {
  const section = document.querySelector("#compare");
  const [form, text, table] = ["form", "textarea", ".wide"].map((one) => section.querySelector(one));
  const verdict = section.querySelector(".verdict");
  const right = cards.find((card) => card.decodings.length === 1) ?? cards[1] ?? cards[0];
  const left = cards.find((card) => card !== right) ?? right;
  const sides = [...section.querySelectorAll(".side")].map((side, i) => ({
    dial: new Dial(side.querySelector(".dial div"), cards, [left, right][i].id),
    holder: side.querySelector(".result"),
  }));

  const row = (name, { usage, seconds }) => {
    const made = element("tr");
    const head = element("th", "", name);
    head.scope = "row";
    const { completion_tokens: tokens, forwards, tokens_per_forward: each } = usage;
    const cells = [tokens, forwards, each.toFixed(2), seconds.toFixed(2), (tokens / seconds).toFixed(1)];
    made.append(head, ...cells.map((cell) => element("td", "", String(cell))));
    return made;
  };

  const compare = async (prompt, signal) => {
    const rows = [];
    table.hidden = verdict.hidden = true;
    const writings = sides.map((side) => new Writing(side.holder));
    const body = { messages: [{ role: "user", content: prompt }], ...page.sampling() };
    const texts = [];
    for (const [i, { dial }] of sides.entries()) {
      const done = await writings[i].run("v1/chat/completions", body, { dial, prompt, signal });
      if (!done.complete) return;
      texts.push(done.text);
      rows.push(row(dial.name, done));
    }
    table.querySelector("tbody").replaceChildren(...rows);
    verdict.textContent = texts[0] === texts[1] ? "Both wrote the same text." : "The texts differ.";
    table.hidden = verdict.hidden = false;
    say(`${verdict.textContent} ${rows.map((one) => [...one.cells].map((cell) => cell.textContent).join(", ")).join("; ")}`);
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = text.value.trim();
    if (prompt) page.busy(form, (signal) => compare(prompt, signal));
  });
};
