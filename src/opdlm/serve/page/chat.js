/* A conversation: each answer is denoised before the reader's eyes. */

import { Dial } from "./dial.js";
import { element, say } from "./elements.js";
import { Writing } from "./writing.js";

export const startChat = (page, cards) => {
  const section = document.querySelector("#chat");
  const [form, turns, text] = ["form", ".turns", "textarea"].map((one) => section.querySelector(one));
  const dial = new Dial(section.querySelector(".dial div"), cards);
  let messages = [];

  const answer = async (prompt, signal) => {
    const asked = [...messages, { role: "user", content: prompt }];
    for (const steps of turns.querySelectorAll(".steps")) steps.open = false;
    const [question, reply] = [element("p", "question", prompt), element("div", "reply")];
    const [by, holder] = [element("p", "by", dial.name), element("div")];
    reply.append(by, holder);
    turns.append(question, reply);
    text.value = "";
    question.scrollIntoView({ block: "nearest" });
    try {
      const body = { messages: asked, ...page.sampling() };
      const done = await new Writing(holder).run("v1/chat/completions", body, { dial, prompt, signal });
      messages = [...asked, { role: "assistant", content: done.text }];
      say(`${done.complete ? "Answer" : "Stopped"}: ${done.text}`);
    } catch (error) {
      question.remove();
      reply.remove();
      text.value = prompt;
      throw error;
    }
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = text.value.trim();
    if (prompt) page.busy(form, (signal) => answer(prompt, signal));
  });
  section.querySelector(".again").addEventListener("click", () => {
    if (document.body.classList.contains("busy")) return;
    messages = [];
    turns.replaceChildren();
    text.focus();
  });
};
