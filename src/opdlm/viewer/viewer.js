/* The viewer of denoising: plays how a text was written, forward by forward. No dependencies, no network.

   const viewer = new DenoisingViewer(element, record)   record: a Trajectory of opdlm as JSON; may be left out
   viewer.show(record)        another finished text
   viewer.begin(about)        a text that is being written. about: {prompt, block_size, first, verified, decoding};
                              first: position of the first token that will be written (default: that of the first append)
   viewer.append(forward)     one forward of it. forward: {tokens: [{position, text, token_id, confidence, kl,
                              alternatives: [{text, probability}], refused: [{text}]}], drafts: [{position, text}]};
                              of a token only `position` and `text` are needed. drafts: what the next forward will check
   viewer.end(about)          the text is complete; about: {forwards, answer}, where known
   viewer.record()            what is shown, as a Trajectory
   viewer.go(n), viewer.step(by), viewer.play(), viewer.pause(), viewer.colour(by)
   viewer.destroy()
   The element gets an event "dv-change" {frame, frames, tokens} whenever what is shown changes.

   A frame is a forward: frame 0 is before the first, frame n after the n-th. `colour` is one of
   "confidence", "step", "kl", "verified". Every text is set as text, never as HTML. */
(() => {
  "use strict";

  const INTERVAL_MS = 400;
  const COLOURS = {
    confidence: "confidence",
    step: "step in which it was unmasked",
    kl: "the teacher's KL",
    verified: "accepted or refused",
  };
  const KINDS = { accepted: "draft, accepted", own: "the model's own token", replaced: "own token, a draft refused" };
  const ICONS = {
    first: "M6 5v14H4V5zM20 5v14L8 12z",
    back: "M17 5v14L6 12z",
    play: "M7 4v16l13-8z",
    pause: "M6 4h4v16H6zM14 4h4v16h-4z",
    forward: "M7 5v14l11-7z",
    last: "M18 5v14h2V5zM4 5v14l12-7z",
  };
  let made = 0;

  const node = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const icon = (name) => {
    const holder = document.createElement("template"); // a constant: no text of a model comes near it
    holder.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"></path></svg>`;
    return holder.content.firstChild;
  };

  const visible = (text) => text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
  const percent = (share) => {
    if (share < 5e-5) return "< 0.01 %";
    return (share >= 0.9995 ? "100" : (100 * share).toFixed(share < 0.1 ? 2 : 1)) + " %";
  };
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const quantile = (values, share) => [...values].sort((a, b) => a - b)[Math.floor(share * (values.length - 1))];

  /* Tokens of a Trajectory, in the order of the text, each with the forward that wrote it (from 1). */
  const tokensOf = (record) => {
    const at = (list, i) => (list ? list[i] : null);
    const tokens = record.positions.map((position, i) => ({
      position,
      token_id: record.token_ids[i],
      text: record.texts && record.texts.length ? record.texts[i] : `⟨${record.token_ids[i]}⟩`,
      step: record.commit_steps[i],
      confidence: at(record.confidences, i),
      kl: at(record.kl, i),
      alternatives: at(record.alternatives, i),
      refused: at(record.refused, i),
    }));
    tokens.sort((a, b) => a.position - b.position);
    let before = 0, block = null, steps = 0;
    for (const token of tokens) {
      const own = Math.floor(token.position / record.block_size);
      if (!record.verified && own !== block) {
        before += steps;
        block = own;
        steps = 0;
      }
      steps = Math.max(steps, token.step + 1);
      token.forward = record.verified ? token.step + 1 : before + token.step + 1;
    }
    return tokens;
  };

  class DenoisingViewer {
    constructor(element, record) {
      this.element = element;
      this.number = ++made;
      this.timer = null;
      this.by = "confidence";
      this._build();
      if (record) this.show(record);
      else this.begin({});
    }

    // --- what is shown -----------------------------------------------------------------------------------------

    show(record) {
      this._reset(record);
      this.tokens = tokensOf(record);
      this.frames = Math.max(record.forwards || 0, ...this.tokens.map((token) => token.forward), 0);
      this.live = false;
      for (const token of this.tokens) this._slot(token.position).token = token;
      this._afterNews();
      this.go(this.frames, false);
    }

    begin(about) {
      this._reset({ block_size: 4, verified: false, decoding: "", prompt: "", answer: "", ...about });
      this.tokens = [];
      this.frames = 0;
      this.live = true;
      this._afterNews();
      this.go(0, false);
    }

    append(forward) {
      const follows = this.frame === this.frames;
      this.frames += 1;
      this._ghosts([]);
      const tokens = [...(forward.tokens || [])].sort((a, b) => a.position - b.position);
      for (const given of tokens) {
        if (this.about.first === undefined) this.about.first = given.position;
        const token = { token_id: null, confidence: null, kl: null, alternatives: null, refused: null, ...given };
        token.forward = this.frames;
        token.step = this.about.verified ? this.frames - 1 : this._stepOf(token.position);
        this.tokens.push(token);
        this._slot(token.position).token = token;
      }
      this._afterNews();
      this._ghosts(forward.drafts || []);
      if (follows) this.go(this.frames, this.timer !== null || tokens.length === 0 ? false : "live");
      else this._drawFrame();
    }

    end(about) {
      this.live = false;
      Object.assign(this.about, about || {});
      this.frames = Math.max(this.frames, this.about.forwards || 0);
      this._ghosts([]);
      for (const [position, slot] of this.slots) {
        if (slot.token) continue;
        slot.remove();
        this.slots.delete(position);
      }
      this._afterNews();
      this.go(this.frames, true);
    }

    record() {
      const tokens = [...this.tokens].sort((a, b) => a.position - b.position);
      const list = (name) => (tokens.some((token) => token[name] != null) ? tokens.map((token) => token[name]) : null);
      const places = (name) => (list(name) ? tokens.map((token) => token[name] || []) : null);
      return {
        version: 1,
        prompt_ids: this.about.prompt_ids || [],
        positions: tokens.map((token) => token.position),
        token_ids: tokens.map((token) => token.token_id ?? -1),
        commit_steps: tokens.map((token) => token.step),
        confidences: tokens.every((token) => token.confidence != null) ? list("confidence") : null,
        block_size: this.about.block_size,
        forwards: this.frames,
        decoding: this.about.decoding || "",
        prompt: this.about.prompt || "",
        answer: this.about.answer || "",
        texts: tokens.map((token) => token.text),
        verified: Boolean(this.about.verified),
        alternatives: places("alternatives"),
        kl: list("kl"),
        refused: places("refused"),
      };
    }

    // --- moving ------------------------------------------------------------------------------------------------

    go(frame, spoken = true) {
      const before = this.frame;
      this.frame = Math.max(0, Math.min(this.frames, Math.round(frame)));
      this._drawFrame();
      if (spoken === true) this._say(before);
      const detail = { frame: this.frame, frames: this.frames, tokens: this._written() };
      this.element.dispatchEvent(new CustomEvent("dv-change", { detail, bubbles: true }));
    }

    step(by) {
      this.pause();
      this.go(this.frame + by);
    }

    play() {
      if (this.timer !== null) return;
      if (this.frame === this.frames) this.go(0, false);
      const tick = () => {
        this.timer = setTimeout(tick, INTERVAL_MS / Number(this.speed.value));
        if (this.frame < this.frames) this.go(this.frame + 1, false);
        if (this.frame === this.frames && !this.live) this.pause();
      };
      this.timer = setTimeout(tick, INTERVAL_MS / Number(this.speed.value));
      this._drawPlaying();
    }

    pause() {
      if (this.timer === null) return;
      clearTimeout(this.timer);
      this.timer = null;
      this._drawPlaying();
      this._say(this.frame);
    }

    colour(by) {
      this.by = this.picked = by;
      this.colours.value = by;
      this._drawColours();
    }

    destroy() {
      clearTimeout(this.timer);
      this.element.classList.remove("dv");
      this.element.replaceChildren();
    }

    // --- the parts ---------------------------------------------------------------------------------------------

    _build() {
      const root = this.element;
      root.replaceChildren();
      root.classList.add("dv");
      root.setAttribute("role", "group");
      root.setAttribute("aria-label", "How the text was denoised");
      this.prompt = node("p", "dv-prompt");
      this.text = node("div", "dv-text");
      this.text.setAttribute("role", "listbox");
      this.text.setAttribute("aria-orientation", "horizontal");
      this.text.setAttribute("aria-describedby", `dv-keys-${this.number}`);
      this.status = node("p", "dv-status");
      this.spoken = node("p", "dv-hidden");
      this.spoken.setAttribute("aria-live", "polite");
      this.spoken.setAttribute("role", "status");
      this.keys = node(
        "p",
        "dv-hidden",
        "Comma and full stop go a forward back and on, the space bar plays. " +
          "In the text the arrow keys go from token to token, up and down from block to block.",
      );
      this.keys.id = `dv-keys-${this.number}`;
      this.legend = node("p", "dv-legend");
      this.detail = node("div", "dv-detail");
      root.append(this.prompt, this._controls(), this.status, this.text, this.legend, this.detail, this.spoken, this.keys);
      this._listen();
    }

    _controls() {
      const bar = node("div", "dv-bar");
      bar.setAttribute("role", "toolbar");
      bar.setAttribute("aria-label", "Playing");
      const button = (name, label, act) => {
        const made = node("button", "dv-button");
        made.type = "button";
        made.title = label;
        made.setAttribute("aria-label", label);
        made.append(icon(name));
        made.addEventListener("click", act);
        return made;
      };
      this.firstButton = button("first", "To the start", () => this.step(-this.frames));
      this.backButton = button("back", "A forward back", () => this.step(-1));
      this.playButton = button("play", "Play", () => (this.timer === null ? this.play() : this.pause()));
      this.nextButton = button("forward", "A forward on", () => this.step(1));
      this.lastButton = button("last", "To the end", () => this.step(this.frames));
      this.scrub = node("input", "dv-scrub");
      this.scrub.type = "range";
      this.scrub.min = 0;
      this.scrub.setAttribute("aria-label", "Forward");
      this.scrub.addEventListener("input", () => {
        this.pause();
        this.go(Number(this.scrub.value));
      });
      const choice = (label, options) => {
        const select = node("select", "dv-select");
        select.setAttribute("aria-label", label);
        for (const [value, text] of options) {
          const option = node("option", "", text);
          option.value = value;
          select.append(option);
        }
        return select;
      };
      this.speed = choice("Speed", [["0.5", "½×"], ["1", "1×"], ["2", "2×"], ["4", "4×"], ["10", "10×"]]);
      this.speed.value = "1";
      this.colours = choice("Colour of the tokens", Object.entries(COLOURS));
      this.colours.addEventListener("change", () => this.colour(this.colours.value));
      const label = node("label", "dv-label", "colour: ");
      label.append(this.colours);
      const buttons = node("span", "dv-buttons");
      buttons.append(this.firstButton, this.backButton, this.playButton, this.nextButton, this.lastButton);
      bar.append(buttons, this.scrub, this.speed, label);
      return bar;
    }

    _listen() {
      this.element.addEventListener("keydown", (event) => this._key(event));
      const slotOf = (event) => event.target.closest(".dv-token");
      this.text.addEventListener("pointerover", (event) => event.pointerType !== "touch" && this._look(slotOf(event)));
      this.text.addEventListener("pointerleave", () => this._look(this.chosen));
      this.text.addEventListener("focusin", (event) => this._choose(slotOf(event)));
      this.text.addEventListener("click", (event) => slotOf(event)?.focus());
    }

    _key(event) {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.tagName === "SELECT") return;
      const inText = this.text.contains(event.target);
      const moves = {
        ",": () => this.step(-1),
        ".": () => this.step(1),
        ArrowLeft: () => (inText ? this._move(-1) : this.step(-1)),
        ArrowRight: () => (inText ? this._move(1) : this.step(1)),
        ArrowUp: () => inText && this._moveBlock(-1),
        ArrowDown: () => inText && this._moveBlock(1),
        Home: () => (inText ? this._move(-Infinity) : this.step(-this.frames)),
        End: () => (inText ? this._move(Infinity) : this.step(this.frames)),
        " ": () => (this.timer === null ? this.play() : this.pause()),
      };
      if (!(event.key in moves) || (event.key === " " && event.target.tagName === "BUTTON")) return;
      if (moves[event.key]() === false) return;
      event.preventDefault();
    }

    // --- tokens ------------------------------------------------------------------------------------------------

    _reset(about) {
      this.pause();
      this.about = about;
      this.slots = new Map();
      this.blocks = new Map();
      this.frame = 0;
      this.chosen = this.looked = null;
      this.text.replaceChildren();
      this.detail.replaceChildren(node("p", "dv-hint", "Point at a token, or tap it, for its alternatives."));
      this.prompt.textContent = about.prompt || "";
      this.prompt.hidden = !about.prompt;
    }

    /* A block begins with the forward behind the last one that wrote into another. */
    _stepOf(position) {
      const block = Math.floor(position / this.about.block_size);
      const begun = this.blockBegun ??= new Map();
      if (this.tokens.length === 0) begun.clear();
      const before = this.tokens.map((token) => token.forward).filter((forward) => forward < this.frames);
      if (!begun.has(block)) begun.set(block, Math.max(0, ...before) + 1);
      return this.frames - begun.get(block);
    }

    /* The place of a position; with it, where a text is being written, those of its whole block. */
    _slot(position) {
      if (this.slots.has(position)) return this.slots.get(position);
      const size = this.about.verified ? 1 : this.about.block_size;
      const block = this.about.verified ? `forward ${this.frames}` : Math.floor(position / size);
      const number = this.about.verified ? this._forwardOf(position) : block;
      if (!this.blocks.has(number)) this._addBlock(number);
      const whole = this.live && !this.about.verified;
      const begin = whole ? Math.max(block * size, this.about.first ?? position) : position;
      const end = whole ? (block + 1) * size : position + 1;
      for (let at = begin; at < end; at += 1) this._addSlot(at, this.blocks.get(number));
      return this.slots.get(position);
    }

    _forwardOf(position) {
      const token = this.tokens.find((one) => one.position === position);
      return token ? token.forward : this.frames;
    }

    _addBlock(number) {
      const made = node("span", "dv-block");
      made.setAttribute("role", "group");
      made.setAttribute("aria-label", this.about.verified ? `forward ${number}` : `block ${number + 1}`);
      this.blocks.set(number, made);
      this.text.append(made);
    }

    _addSlot(position, block) {
      const previous = this.slots.get(position - 1);
      if (!previous && this.slots.size && !this.live) block.append(node("span", "dv-given", "…"));
      const made = node("span", "dv-token");
      made.setAttribute("role", "option");
      made.tabIndex = this.slots.size ? -1 : 0;
      made.position = position;
      this.slots.set(position, made);
      block.append(made);
    }

    /* Drafts behind a text that is being written, which the next forward checks. */
    _ghosts(drafts) {
      for (const ghost of this.text.querySelectorAll(".dv-ghost")) ghost.remove();
      for (const draft of drafts) this.text.append(node("span", "dv-ghost", visible(draft.text)));
    }

    _afterNews() {
      this._kinds();
      const known = (name) => this.tokens.some((token) => token[name] != null);
      const there = { confidence: known("confidence"), step: true, kl: known("kl"), verified: this.about.verified };
      for (const option of this.colours.options) option.hidden = option.disabled = !there[option.value];
      const usual = ["verified", "confidence", "step"].find((name) => there[name]);
      if (!there[this.by] || (!this.picked && this.tokens.length)) this.by = usual;
      this.colours.value = this.by;
      this.detail.classList.toggle("dv-roomy", known("alternatives")); // what is below must not move with each token
      this.scrub.max = this.frames;
      this.steps = Math.max(0, ...this.tokens.map((token) => token.step));
      const divergences = this.tokens.map((token) => token.kl).filter((value) => value != null);
      this.mostKl = divergences.length ? Math.max(quantile(divergences, 0.95), 1e-6) : 1;
      this._drawColours();
    }

    /* Of verified decoding: in each forward the last token is the model's own, the others are drafts that held. */
    _kinds() {
      if (!this.about.verified) return;
      const last = new Map();
      for (const token of this.tokens) {
        const other = last.get(token.forward);
        if (!other || other.position < token.position) last.set(token.forward, token);
      }
      for (const token of this.tokens) {
        const own = last.get(token.forward) === token;
        token.kind = !own ? "accepted" : token.refused && token.refused.length ? "replaced" : "own";
      }
    }

    _written() {
      return this.tokens.filter((token) => token.forward <= this.frame).length;
    }

    // --- drawing -----------------------------------------------------------------------------------------------

    _drawFrame() {
      for (const refused of this.text.querySelectorAll(".dv-refused")) refused.remove();
      for (const slot of this.slots.values()) this._drawSlot(slot);
      const written = this._written();
      const speed = this.frame ? (written / this.frame).toFixed(2) : "0.00";
      const all = this.live ? "" : ` of ${this.tokens.length}`;
      const frames = this.live ? "" : ` of ${this.frames}`;
      this.summary =
        `Forward ${this.frame}${frames}: ${written}${all} tokens, ${speed} tokens per forward so far`;
      this.status.textContent = this.summary + (this.about.decoding ? ` (${this.about.decoding})` : "");
      this.scrub.value = this.frame;
      this.scrub.setAttribute("aria-valuetext", `forward ${this.frame} of ${this.frames}`);
      this.firstButton.disabled = this.backButton.disabled = this.frame === 0;
      this.lastButton.disabled = this.nextButton.disabled = this.frame === this.frames;
      this.text.setAttribute("aria-label", `The text after forward ${this.frame}`);
      if (this.looked) this._look(this.looked);
    }

    _drawSlot(slot) {
      const token = slot.token;
      const shown = Boolean(token) && token.forward <= this.frame;
      const draft = Boolean(token) && token.kind === "accepted" && token.forward === this.frame + 1;
      slot.classList.toggle("dv-masked", !shown && !draft);
      slot.classList.toggle("dv-draft", draft);
      slot.classList.toggle("dv-fresh", shown && token.forward === this.frame && this.frame > 0);
      // A finished text keeps its lines: a mask is as wide as what will stand there.
      slot.textContent = token && (shown || draft || !this.live) ? visible(token.text) : "  ";
      slot.setAttribute("aria-label", this._spokenToken(token, shown, draft));
      if (shown && token.forward === this.frame && token.refused && this.by === "verified") {
        for (const one of [...token.refused].reverse()) slot.after(node("s", "dv-refused", visible(one.text)));
      }
    }

    _spokenToken(token, shown, draft) {
      if (draft) return `draft: ${token.text}`;
      if (!shown) return "masked";
      const value = this._value(token);
      return `${token.text.trim() || (token.text.includes("\n") ? "new line" : "space")}${value ? ", " + value : ""}`;
    }

    _value(token) {
      if (this.by === "confidence") return token.confidence == null ? "" : `confidence ${percent(token.confidence)}`;
      if (this.by === "step") return `step ${token.step + 1}`;
      if (this.by === "kl") return token.kl == null ? "KL not measured" : `KL ${token.kl.toFixed(3)} nats`;
      return KINDS[token.kind];
    }

    _drawColours() {
      for (const slot of this.slots.values()) {
        const share = slot.token ? this._share(slot.token) : null;
        slot.classList.toggle("dv-plain", share === null);
        if (share !== null) slot.style.setProperty("--dv-share", `${(100 * share).toFixed(1)}%`);
        for (const kind of Object.keys(KINDS)) {
          slot.classList.toggle(`dv-${kind}`, this.by === "verified" && slot.token?.kind === kind);
        }
      }
      this._drawLegend();
      this._drawFrame();
    }

    /* Where a token stands on the scale, from 0 (one end of the colours) to 1; null without a value. */
    _share(token) {
      if (this.by === "confidence") return token.confidence;
      if (this.by === "step") return this.steps ? 1 - token.step / this.steps : 1;
      if (this.by === "kl") return token.kl == null ? null : 1 - Math.min(1, Math.max(0, token.kl / this.mostKl));
      return null;
    }

    _drawLegend() {
      const chip = (text, name) => node("span", `dv-chip ${name}`, text);
      const scale = (low, high) => [node("span", "", low), node("span", "dv-scale"), node("span", "", high)];
      const parts = {
        confidence: () => scale("confidence 0 %", "100 %"),
        step: () => scale(this.about.verified ? `forward ${this.steps + 1}` : `step ${this.steps + 1} of its block`, "1"),
        kl: () => scale(`KL(teacher || student) ${this.mostKl.toFixed(2)} nats and above`, "0"),
        verified: () => Object.entries(KINDS).map(([kind, text]) => chip(text, `dv-${kind}`)),
      };
      const frame = this.about.verified ? "what one forward wrote" : "a block";
      this.legend.replaceChildren(...parts[this.by](), chip("masked", "dv-masked"), chip(frame, "dv-frame"));
    }

    _drawPlaying() {
      const [name, label] = this.timer === null ? ["play", "Play"] : ["pause", "Pause"];
      this.playButton.replaceChildren(icon(name));
      this.playButton.title = label;
      this.playButton.setAttribute("aria-label", label);
    }

    _say(before) {
      const fresh = this.tokens.filter((token) => token.forward === this.frame && this.frame > 0);
      const words = fresh.map((token) => token.text).join(" ").trim();
      this.spoken.textContent = this.summary + (this.frame === before + 1 && words ? `. New: ${words}` : "");
    }

    // --- one token ---------------------------------------------------------------------------------------------

    _choose(slot) {
      if (!slot) return;
      if (this.chosen) this.chosen.tabIndex = -1;
      for (const other of this.text.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
      this.chosen?.removeAttribute("aria-selected");
      this.chosen = slot;
      slot.tabIndex = 0;
      slot.setAttribute("aria-selected", "true");
      this._look(slot);
    }

    _move(by) {
      const all = [...this.text.querySelectorAll(".dv-token")];
      const at = Math.max(0, Math.min(all.length - 1, all.indexOf(document.activeElement) + by));
      all[at]?.focus();
    }

    _moveBlock(by) {
      const all = [...this.blocks.values()];
      const at = all.indexOf(document.activeElement.parentElement) + by;
      all[Math.max(0, Math.min(all.length - 1, at))]?.querySelector(".dv-token")?.focus();
    }

    _look(slot) {
      if (!slot || !slot.isConnected) return;
      this.looked = slot;
      const token = slot.token;
      if (!token || token.forward > this.frame) {
        const later = token && !this.live ? `, until forward ${token.forward}` : "";
        this.detail.replaceChildren(node("p", "dv-hint", `masked${later}`));
        return;
      }
      const block = Math.floor(token.position / this.about.block_size) + 1;
      const step = this.about.verified ? "" : `, step ${token.step + 1} of block ${block}`;
      const facts = [["position", token.position], ["written in", `forward ${token.forward}${step}`]];
      if (token.confidence != null) facts.push(["confidence", percent(token.confidence)]);
      if (token.kl != null) facts.push(["KL(teacher || student)", `${token.kl.toFixed(4)} nats`]);
      if (token.kind) facts.push(["drafts", KINDS[token.kind]]);
      if (token.refused && token.refused.length) facts.push(["refused", token.refused.map((one) => one.text).join("")]);
      const list = node("dl", "dv-facts");
      for (const [name, value] of facts) list.append(node("dt", "", name), node("dd", "", String(value)));
      const parts = [node("p", "dv-name", visible(token.text)), list];
      if (token.alternatives && token.alternatives.length) parts.push(this._alternatives(token));
      this.detail.replaceChildren(...parts);
    }

    _alternatives(token) {
      const table = node("table", "dv-alternatives");
      table.append(node("caption", "", "alternatives and their probabilities"));
      for (const one of token.alternatives) {
        const row = table.insertRow();
        const name = node("th", "", visible(one.text || `⟨${one.token_id}⟩`));
        name.scope = "row";
        const bar = node("td", "dv-bar-cell");
        const fill = node("span", "dv-fill");
        fill.style.width = `${100 * one.probability}%`;
        bar.append(fill);
        row.append(name, bar, node("td", "dv-number", percent(one.probability)));
        const same = one.token_id != null && token.token_id != null ? one.token_id === token.token_id : one.text === token.text;
        row.classList.toggle("dv-written", same);
      }
      return table;
    }
  }

  globalThis.DenoisingViewer = DenoisingViewer;
})();
