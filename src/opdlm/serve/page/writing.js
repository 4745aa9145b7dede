/* One text while it is written: how it is denoised, what it took, and its trajectory as a file. */

import { stream } from "./api.js";
import { button, element, save } from "./elements.js";

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export class Writing {
  constructor(holder) {
    this.holder = holder;
    this.text = "";
    this.answer = element("p", "answer");
    this.facts = element("p", "facts");
    this.steps = element("details", "steps");
    const shown = element("div");
    const saving = button("Save the trajectory", () => this._save());
    this.steps.append(element("summary", "", "How it was denoised"), shown, saving);
    this.steps.open = true;
    this.steps.hidden = true;
    holder.replaceChildren(this.answer, this.facts, this.steps);
    this.viewer = new DenoisingViewer(shown);
  }

  /* Asks for a text and shows it while it comes in. Resolves to {text, complete, seconds, usage}.

     dial: of this request. prompt: in words. drawDraft: draws a draft in another way while it is written; the viewer
     then has the text at the end. Throws what `stream` throws, unless it was stopped by `signal`. */
  async run(path, body, { dial, prompt, signal, drawDraft }) {
    const began = performance.now();
    this._begin(dial, prompt);
    this.facts.textContent = "waiting for the first token …";
    this.steps.hidden = Boolean(drawDraft);
    let complete = false, usage = null;
    try {
      for await (const event of stream(path, { ...body, ...dial.fields }, signal)) {
        usage = event.usage ?? usage;
        for (const choice of event.choices) {
          const news = choice.delta ?? choice;
          this.text += news.content ?? news.text ?? "";
          if (!news.draft) continue;
          this._feed(news.draft);
          drawDraft?.(news.draft.tokens);
          this._drawFacts("writing", null, (performance.now() - began) / 1000);
        }
      }
      complete = true;
    } catch (error) {
      if (error.name !== "AbortError") {
        this.facts.textContent = "";
        throw error;
      }
    }
    const seconds = (performance.now() - began) / 1000;
    this._end(complete, usage, seconds);
    return { text: this.text, complete, seconds, usage };
  }

  _begin(dial, prompt) {
    this.about = { prompt, block_size: dial.card.block_size, verified: dial.verified, decoding: dial.decoding };
    this.model = dial.card.id;
    this.seen = new Set();
    this.drafts = [];
    this.forwards = 0;
    this.begun = false;
    this.holder.classList.toggle("single", dial.single);
    this.viewer.begin({ ...this.about, prompt: "" });
    if (dial.single) this.viewer.colour("confidence");
  }

  /* A draft goes to the viewer as a forward: the tokens that are new in it, and drafts that the next one checks. A
     client that reads slowly gets fewer drafts than there were forwards; tokens of the last block then count as written
     by the last forward, and those of each block before it by an earlier one, as far as there were any. */
  _feed(draft) {
    if (!this.begun) this.viewer.begin({ ...this.about, prompt: "", first: draft.position - draft.start });
    this.begun = true;
    if (draft.forwards <= this.forwards) return;
    const skipped = draft.forwards - this.forwards - 1;
    this.forwards = draft.forwards;
    const there = draft.tokens
      .map((token, i) => token && { position: draft.position + i, text: token.token, token_id: token.id, confidence: token.probability })
      .filter(Boolean);
    const tokens = there.filter((token) => token.confidence !== null && !this.seen.has(token.position));
    for (const token of tokens) this.seen.add(token.position);
    const earlier = this.about.verified ? [] : this._blocks(tokens).slice(0, -1).slice(0, skipped);
    for (let i = 0; i < skipped; i += 1) this.viewer.append({ tokens: earlier[i] });
    const own = tokens.at(-1);
    if (own && this.about.verified && !skipped) own.refused = this._refused(own);
    this.drafts = this.about.verified ? there.filter((token) => token.confidence === null) : [];
    const last = tokens.filter((token) => !earlier.some((block) => block.includes(token)));
    this.viewer.append({ tokens: last, drafts: this.drafts });
  }

  /* The same tokens, block by block. */
  _blocks(tokens) {
    const blocks = new Map();
    for (const token of tokens) {
      const number = Math.floor(token.position / this.about.block_size);
      blocks.set(number, [...(blocks.get(number) ?? []), token]);
    }
    return [...blocks.values()];
  }

  /* Of the drafts of the forward before: those from the first on that did not hold. */
  _refused(own) {
    const left = this.drafts.filter((token) => token.position >= own.position);
    const held = !left.length || left[0].position !== own.position || left[0].token_id === own.token_id;
    return held ? [] : left.map(({ token_id, text }) => ({ token_id, text }));
  }

  _end(complete, usage, seconds) {
    this.viewer.end({ answer: this.text });
    this.viewer.show({ ...this.viewer.record(), prompt: "" });
    if (this.holder.classList.contains("single")) this.viewer.colour("confidence");
    this.answer.textContent = this.text;
    this.steps.hidden = this.forwards === 0;
    this._drawFacts(complete ? "" : "stopped after", usage, seconds);
  }

  _drawFacts(state, usage, seconds) {
    const tokens = usage?.completion_tokens ?? this.seen.size, forwards = usage?.forwards ?? this.forwards;
    const each = (tokens / Math.max(1, forwards)).toFixed(2);
    const took = `${plural(tokens, "token")} in ${plural(forwards, "forward")}, ${each} per forward, ${seconds.toFixed(2)} s`;
    this.facts.textContent = state ? `${state}: ${took}` : took;
  }

  _save() {
    const record = { ...this.viewer.record(), ...{ prompt: this.about.prompt, answer: this.text } };
    const name = `trajectory-${this.model}-${this.about.decoding}`.replace(/[^\w.-]+/g, "-");
    save(`${name}.json`, JSON.stringify(record) + "\n");
  }
}
