// The conversation: one answer at a time, streamed, stopped by Esc.

import { Answer, make } from "./answer.js";
import { events, request } from "./api.js";

const EXAMPLES = ["What does os.path.join do?", "What is a decorator?", "What does json.dumps do?"];
const NEAR_END_PX = 60;

const at = (id) => document.getElementById(id);

export class Chat {
  constructor() {
    this.messages = [];
    this.abort = null; // AbortController of the answer that streams
    this.log = at("log");
    this.prompt = at("prompt");
    this.welcome = at("welcome");
    for (const text of EXAMPLES) {
      const button = at("examples").appendChild(make("button", "", text));
      button.type = "button";
      button.addEventListener("click", () => this.ask(text));
    }
    at("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    this.prompt.addEventListener("input", () => this.fit());
    at("stop").addEventListener("click", () => this.stop());
    at("new").addEventListener("click", () => this.restart());
  }

  /** Names from /v1/models. */
  async loadModels() {
    const { data } = await (await request("v1/models")).json();
    at("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
    at("served").textContent = data[0]?.id ?? "";
  }

  send() {
    const text = this.prompt.value.trim();
    if (!text || this.abort) return;
    this.prompt.value = "";
    this.fit();
    this.ask(text);
  }

  /** True when there was an answer to stop. */
  stop() {
    this.abort?.abort();
    return this.abort !== null;
  }

  restart() {
    this.stop();
    this.messages = [];
    this.log.replaceChildren(this.welcome);
    this.prompt.focus();
    this.say("New chat");
  }

  async ask(text) {
    if (this.abort) return;
    if (!this.messages.length) {
      this.log.replaceChildren();
      this.prompt.focus();
    }
    this.messages.push({ role: "user", content: text });
    this.log.append(make("div", "asked", text));
    const answer = new Answer(this.log, this.say, () => this.scroll());
    this.scroll(true);
    const mine = (this.abort = new AbortController());
    this.showState();
    this.say("Answering");
    const asked = this.messages;
    try {
      await this.stream(answer, mine.signal);
    } catch (error) {
      if (mine.signal.aborted) answer.end(undefined, "stopped");
      else answer.fail(error.message);
      this.say(mine.signal.aborted ? "Stopped" : error.message);
    }
    this.abort = null;
    if (answer.text.whole) asked.push({ role: "assistant", content: answer.text.whole });
    else asked.pop(); // it was not answered: the next message must not follow on it
    this.showState();
    this.scroll();
  }

  async stream(answer, signal) {
    let finish = null;
    let usage = null;
    const response = await request("v1/chat/completions", { body: this.body(), signal });
    for await (const { data } of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      answer.add(choice.delta);
      finish = choice.finish_reason ?? finish;
    }
    answer.end(usage?.completion_tokens, finish === "length" ? "length limit reached" : null);
    this.say("Answer complete");
  }

  body() {
    const system = at("system").value.trim();
    const body = {
      model: at("model").value,
      messages: system ? [{ role: "system", content: system }, ...this.messages] : this.messages,
      stream: true,
      stream_options: { include_usage: true },
    };
    if (at("temperature").value !== "") body.temperature = Number(at("temperature").value);
    if (at("max-tokens").value !== "") body.max_tokens = Number(at("max-tokens").value);
    return body;
  }

  showState() {
    // what has the focus may be about to go
    if (["stop", "send"].includes(document.activeElement.id)) this.prompt.focus();
    at("stop").hidden = !this.abort;
    at("send").hidden = Boolean(this.abort);
  }

  /** The field grows with its text, as far as its style lets it. */
  fit() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight}px`;
  }

  /** Follows the text, unless the reader has scrolled back. */
  scroll(always = false) {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    if (always || scrollHeight - scrollTop - clientHeight < NEAR_END_PX) this.log.scrollTop = scrollHeight;
  }

  say(text) {
    at("said").textContent = text;
  }
}
