// The live view: follows /engine/events, shows gauges and rates, and feeds the timeline.

import { make, rounded } from "./answer.js";
import { events, request } from "./api.js";
import { Flight } from "./flight.js";
import { Overlap } from "./overlap.js";
import { duration, palette, sized } from "./palette.js";
import { Timeline } from "./timeline.js";

const RATE_EVENTS = 6; // that rates are taken over: a second
const WAIT_EVENTS = 30; // that the share of gaps is taken over
const SPARK_EVENTS = 150; // in the small curve: half a minute
const RETRY_MS = 2_000;

const at = (id) => document.getElementById(id);
const percent = (share) => `${(share * 100).toFixed(share < 0.0995 && share >= 0.0005 ? 1 : 0)}%`;

export class Engine {
  constructor() {
    this.abort = null; // AbortController of the open stream
    this.history = []; // of the last events: {time_us, ...counters}
    this.rates = [];
    // a page that nobody sees watches nothing
    document.addEventListener("visibilitychange", () => (document.hidden ? this.abort?.abort() : this.connect()));
  }

  /** Follows the engine until it cannot; then tries again. */
  async connect() {
    this.abort?.abort();
    const mine = (this.abort = new AbortController());
    try {
      const response = await request("engine/events", { signal: mine.signal });
      this.showLink("live", "live");
      for await (const { event, data } of events(response)) this.take(event, JSON.parse(data));
      this.showLink("broken", "the server has stopped");
    } catch (error) {
      if (mine.signal.aborted) return;
      this.showLink("broken", error.status === 401 ? "needs a key" : error.message);
      if (error.status === 401) return; // until a key is given
    }
    setTimeout(() => this.abort === mine && !document.hidden && this.connect(), RETRY_MS);
  }

  take(kind, data) {
    if (kind === "description") this.describe(data);
    else if (kind === "engine") this.show(data);
  }

  /** Each connection begins anew: it may be another engine's, whose clock and counters are others. */
  describe(description) {
    this.history = [];
    this.flight = new Flight(description);
    this.overlap = new Overlap(this.flight);
    this.timeline ??= new Timeline();
    this.timeline.follow(this.flight);
  }

  show(event) {
    this.history.push({ time_us: event.time_us, ...event.engine });
    this.history.splice(0, this.history.length - WAIT_EVENTS);
    this.overlap.add(this.flight.add(event));
    this.showGauges(event.engine);
    this.showRate();
    this.showOverlap();
    at("records").textContent = this.flight.seen.toLocaleString("en");
    at("steps").dataset.records = this.flight.seen;
  }

  /** How a counter rose over the last events. */
  rise(name, numEvents) {
    const first = this.history.at(-numEvents) ?? this.history[0];
    return this.history.at(-1)[name] - first[name];
  }

  showGauges(engine) {
    at("running").textContent = engine.num_running;
    at("waiting").textContent = engine.num_waiting;
    const used = engine.num_blocks_used / Math.max(engine.num_blocks, 1);
    at("kv").textContent = percent(used);
    at("kv-bar").style.width = `${used * 100}%`;
    const hits = engine.prefix_cache_hits / Math.max(engine.prefix_cache_queries, 1);
    at("hits").textContent = engine.prefix_cache_queries ? percent(hits) : "–";
    at("hits-bar").style.width = `${hits * 100}%`;
  }

  showRate() {
    const seconds = this.rise("time_us", RATE_EVENTS) / 1e6;
    const rate = seconds > 0 ? this.rise("generation_tokens", RATE_EVENTS) / seconds : 0;
    this.rates.push(rate);
    this.rates.splice(0, this.rates.length - SPARK_EVENTS);
    at("rate").textContent = rate ? rounded(rate) : "0";
    this.drawSpark();
  }

  drawSpark() {
    const { context, width, height } = sized(at("spark"));
    const top = Math.max(1, ...this.rates);
    const x = (index) => width - ((this.rates.length - 1 - index) / (SPARK_EVENTS - 1)) * width;
    const y = (rate) => height - 2 - (rate / top) * (height - 6);
    const colours = palette();
    context.beginPath();
    this.rates.forEach((rate, index) => context.lineTo(x(index), y(rate)));
    context.strokeStyle = colours.forward;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(width, height);
    context.lineTo(x(0), height);
    context.globalAlpha = 0.12;
    context.fillStyle = colours.forward;
    context.fill();
    context.globalAlpha = 1;
  }

  showOverlap() {
    const processes = this.overlap.perStep();
    const most = Math.max(...processes.map(({ behind, exposed }) => behind + exposed), 1e-9);
    at("host").replaceChildren(...processes.filter(({ behind, exposed }) => behind + exposed > 0).map(
      (process) => processRow(process, most),
    ));
    const exposed = this.rise("step_exposed_ns", WAIT_EVENTS) / 1e3;
    const device = this.rise("step_device_ns", WAIT_EVENTS) / 1e3;
    const steps = this.rise("num_confirmed_steps", WAIT_EVENTS);
    if (!steps || !(device + exposed > 0)) return;
    at("verdict").replaceChildren(
      "A step takes ", make("strong", "", duration((device + exposed) / steps)), ". The device waits ",
      make("strong", "", duration(exposed / steps)), " of it: ",
      make("strong", "", percent(exposed / (device + exposed))), " is exposed.",
    );
  }

  showLink(state, text) {
    at("link").className = `link ${state}`;
    at("link").textContent = text;
  }
}

function processRow({ name, behind, exposed }, most) {
  const row = make("tr");
  const bar = make("div", "bar");
  for (const [kind, time] of [["behind", behind], ["exposed", exposed]]) {
    if (!time) continue;
    const part = bar.appendChild(make("i", kind));
    part.style.width = `${(time / most) * 100}%`;
  }
  const share = behind / (behind + exposed);
  row.append(make("td", "", name), make("td"), make("td", "", `${duration(behind + exposed)}, ${percent(share)} hidden`));
  row.children[1].append(bar);
  return row;
}
