// One answer in the conversation: its text as it comes, code set apart, and how fast it was.

/** Text between ``` fences becomes <pre>. Only the pieces that changed are written, and only as text. */
class Text {
  constructor(place) {
    this.place = place;
    this.whole = "";
  }

  add(piece) {
    this.whole += piece;
    this.whole.split(/^```/m).forEach((part, index) => {
      const isCode = index % 2 === 1;
      const text = isCode ? part.replace(/^[^\n]*\n?/, "") : part.replace(/^\n/, "");
      const node = this.place.children[index] ?? this.place.appendChild(make(isCode ? "pre" : "div", "text"));
      if (node.textContent !== text) node.textContent = text;
    });
  }
}

export class Answer {
  /** Appends itself to the log. `say` tells those who do not see the page; `onShown` hears of each change. */
  constructor(log, say, onShown) {
    this.element = log.appendChild(make("article", "answer streams"));
    this.element.setAttribute("aria-busy", "true");
    this.thought = null;
    this.text = new Text(this.element.appendChild(make("div", "body")));
    this.text.add("");
    this.facts = this.element.appendChild(make("div", "facts"));
    this.say = say;
    this.onShown = onShown;
    this.pending = { thought: "", content: "" }; // written once a frame, however fast tokens come
    this.frame = null;
    this.sentAt = performance.now();
    this.firstAt = this.lastAt = 0;
    this.pieces = 0;
  }

  /** A chunk's delta. */
  add(delta) {
    const thought = delta.reasoning_content ?? delta.reasoning;
    const piece = delta.content ?? "";
    if (!piece && !thought) return;
    this.lastAt = performance.now();
    this.firstAt ||= this.lastAt;
    this.pieces += 1;
    this.pending.thought += thought ?? "";
    this.pending.content += piece;
    this.frame ??= requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    const { thought, content } = this.pending;
    this.pending = { thought: "", content: "" };
    if (thought) {
      this.thought ??= this.element.insertBefore(make("div", "thought text"), this.element.firstChild);
      this.thought.textContent += thought;
    }
    if (content) this.text.add(content);
    this.tell(this.pieces);
    this.onShown();
  }

  /** `tokens`: as the server counted them, or undefined; `why`: what ended it, where that is worth a word. */
  end(tokens, why) {
    this.finish();
    this.tell(tokens ?? this.pieces, why);
    const copy = this.facts.appendChild(make("button", "", "Copy"));
    copy.type = "button";
    copy.addEventListener("click", async () => {
      copy.textContent = (await copied(this.text.whole)) ? "Copied" : "Not allowed";
      this.say(copy.textContent);
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    });
  }

  fail(message) {
    this.finish();
    this.element.appendChild(make("p", "refused", message));
  }

  finish() {
    this.flush();
    this.element.classList.remove("streams");
    this.element.removeAttribute("aria-busy");
  }

  tell(tokens, why) {
    const first = (this.firstAt - this.sentAt).toFixed(0);
    const seconds = (this.lastAt - this.firstAt) / 1e3;
    const facts = this.firstAt ? [`first token after ${first} ms`, `${tokens} tokens`] : [];
    if (tokens > 1 && seconds > 0) facts.push(`${rounded((tokens - 1) / seconds)} tokens/s`);
    if (why) facts.push(why);
    this.facts.replaceChildren(...facts.map((fact) => make("span", "", fact)));
  }
}

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Three digits are enough to read. */
export function rounded(value) {
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(value >= 10 ? 0 : 1);
}

/** True when the clipboard took it: browsers refuse over plain HTTP from other machines, where the old way remains. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.body.appendChild(make("textarea", "unseen"));
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
