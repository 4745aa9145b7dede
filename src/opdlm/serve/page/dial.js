/* The dial: which model writes, and how it decodes. Drawn from what the served model can do. */

import { element, labelled } from "./elements.js";

const threshold = { label: "threshold", type: "range", min: 0, max: 1, step: 0.01, usual: 0.9 };
const many = { label: "tokens per forward", type: "number", min: 1, max: 64, step: 1, usual: 1 };
const drafts = { label: "most drafts", type: "number", min: 1, max: 64, step: 1, usual: "" };

const KINDS = {
  prefix: [
    "From the left, every token that is surer than the threshold, up to the first that is not; at least one.",
    threshold,
  ],
  dynamic: ["Every token of the block that is surer than the threshold, wherever it stands; at least the surest.", threshold],
  static: ["The surest tokens of the block, always as many.", many],
  sequential: ["The leftmost tokens of the block, always as many.", many],
  checked: ["Exactly what this model writes from left to right: it drafts, and its next forward checks the drafts.", drafts],
  "checked:auto": ["The same text as checked; how many drafts it makes is chosen by the clock."],
  factor: [
    "The n surest tokens, n as large as (n + 1) × (1 − confidence of the n-th) stays below the factor.",
    { label: "factor", type: "number", min: 0.1, max: 64, step: 0.1, usual: 1 },
  ],
  entropy: [
    "The most certain tokens, as many as keep their entropies together within the bound.",
    { label: "bound in nats", type: "number", min: 0, max: 20, step: 0.05, usual: 0.1 },
  ],
  klass: ["Every token that is surer than the threshold and whose distribution has settled; at least the surest.", threshold],
  verified: ["Exactly the original's text: it drafts, and its own weights check. More drafts change the speed alone.", drafts],
  "verified:auto": ["Exactly the original's text; how many drafts it makes is chosen by the clock."],
  typical: [
    "Also keeps drafts to which the original gives this probability: not the original's text.",
    { label: "least probability", type: "range", min: 0.01, max: 1, step: 0.01, usual: 0.3 },
  ],
};
const WITHOUT_DRAFTS = ["Exactly the original's text, one token a forward, without drafts."];
const AUTOREGRESSIVE = "An autoregressive model writes one token a forward. There is nothing to set.";

export class Dial {
  /* cards: of the models to choose from. chosen: the name of the first choice. */
  constructor(holder, cards, chosen = cards[0].id) {
    this.holder = holder;
    this.cards = cards;
    this.models = element("select");
    for (const card of cards) this.models.append(new Option(card.id, card.id));
    this.models.value = chosen;
    this.kinds = element("select");
    this.does = element("p", "does");
    this.number = element("input");
    this.value = element("output");
    this.numberLabel = labelled("", this.number, this.value);
    this.kindLabel = labelled("decoding", this.kinds);
    holder.replaceChildren(labelled("model", this.models), this.kindLabel, this.numberLabel, this.does);
    this.models.addEventListener("change", () => this._drawModel());
    this.kinds.addEventListener("change", () => this._drawKind());
    this.number.addEventListener("input", () => this._drawNumber());
    this._drawModel();
  }

  get card() {
    return this.cards.find((card) => card.id === this.models.value);
  }

  /* Whether it is written by drafts that are checked, or from left to right: no masks are filled. */
  get verified() {
    return !this.card.infill || this.kinds.value.startsWith("checked");
  }

  /* Whether a forward writes one token, always. */
  get single() {
    return !this.card.infill && this.kinds.value === "sequential";
  }

  get decoding() {
    const value = this.number.value;
    return this.numberLabel.hidden || value === "" ? this.kinds.value : `${this.kinds.value}:${value}`;
  }

  /* In words. */
  get name() {
    return `${this.card.id}, ${this.decoding.replace(":", " ")}`;
  }

  /* What a request has of it; the model's own decoding, with all of its numbers, where nothing was changed. */
  get fields() {
    const asked = this.decoding === this.card.defaults.decoding ? {} : { decoding: this.decoding };
    return { model: this.card.id, ...asked };
  }

  _drawModel() {
    const { decodings, defaults } = this.card;
    const offered = Object.keys(KINDS).filter((kind) => decodings.includes(kind.split(":")[0]));
    const saved = [defaults.decoding, this._own()[0]].find((kind) => offered.includes(kind));
    this.kinds.replaceChildren();
    for (const kind of offered) this.kinds.append(new Option(kind + (kind === saved ? " (as saved)" : ""), kind));
    this.kinds.value = saved ?? offered[0];
    this.kindLabel.hidden = offered.length === 1;
    this._drawKind();
  }

  _drawKind() {
    const kind = this.kinds.value;
    const single = kind === "sequential" && !this.card.infill;
    const [does, number] = single ? WITHOUT_DRAFTS : KINDS[kind];
    this.does.textContent = this.kindLabel.hidden ? AUTOREGRESSIVE : does;
    this.numberLabel.hidden = !number;
    if (number) {
      const [own, value] = this._own();
      for (const name of ["type", "min", "max", "step"]) this.number[name] = number[name];
      this.number.placeholder = number.usual === "" ? "all there are" : "";
      this.number.value = kind === own && value !== undefined ? value : number.usual;
      this.numberLabel.firstChild.textContent = number.label;
    }
    this._drawNumber();
  }

  _drawNumber() {
    this.value.textContent = this.number.type === "range" ? this.number.value : "";
    this.value.hidden = this.number.type !== "range";
    this.holder.dispatchEvent(new Event("change", { bubbles: true }));
  }

  /* [kind, number] as the model was saved. */
  _own() {
    return this.card.defaults.decoding.split(":");
  }
}
