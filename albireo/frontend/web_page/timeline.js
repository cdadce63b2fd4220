// The timeline: moves the film, and tells what lies under the pointer or the keyboard's selection.

import { Film } from "./film.js";
import { covered } from "./overlap.js";
import { LANE, Painter, TOP, heightOf, paintHint } from "./paint.js";
import { colourOf, duration, onScheme, palette, sized } from "./palette.js";

const STEPS = [2, 4, 8, 16, 32, 64]; // shown at once
const STILL_S = 2; // between two pictures for those who want no motion
const REACH_PX = 3; // around the pointer
const MOST_FRAME_S = 0.1; // a tab that was in the background does not hurry

const NOT_DRAWN = new Set(["collective", "exposed", "idle"]); // or not as parts
const HINT = "Point at a part, or use the arrow keys.";

const at = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Timeline {
  constructor() {
    this.canvas = at("steps");
    this.isPaused = false; // by the button
    this.isHeld = false; // while someone looks
    this.selected = null;
    this.lastFrame = 0;
    this.listen();
    requestAnimationFrame((now) => this.frame(now));
  }

  /** Shows another recording. */
  follow(flight) {
    const steps = this.film?.steps;
    this.flight = flight;
    this.film = new Film(flight);
    if (steps) this.film.steps = steps;
    this.canvas.style.height = `${heightOf(flight.lanes.length)}px`;
    this.release();
    this.explainColours();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.release());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.release());
    at("pause").addEventListener("click", () => this.pause());
    at("closer").addEventListener("click", () => this.zoom(-1));
    at("wider").addEventListener("click", () => this.zoom(1));
    onScheme(() => this.explainColours());
  }

  frame(now) {
    requestAnimationFrame((next) => this.frame(next));
    if (!this.film) return;
    const seconds = Math.min(MOST_FRAME_S, (now - this.lastFrame) / 1e3);
    if (still.matches) {
      if (now - this.lastFrame < STILL_S * 1e3) return;
      if (!this.isPaused && !this.isHeld) this.film.jump();
    } else if (!this.isPaused && !this.isHeld) {
      this.film.advance(seconds);
    }
    this.lastFrame = now;
    this.draw();
  }

  draw() {
    if (!this.film.takes.length) {
      paintHint(sized(this.canvas));
      return;
    }
    new Painter(sized(this.canvas), this.flight, this.film, this.selected).paint();
    const { slowness } = this.film;
    const pace = slowness > 1.05 ? `slowed down ${slowness < 10 ? slowness.toFixed(1) : Math.round(slowness)}×` : "live";
    at("pace").textContent = still.matches ? `a picture every ${STILL_S} s` : pace;
  }

  pause() {
    this.isPaused = !this.isPaused;
    at("pause").setAttribute("aria-pressed", this.isPaused);
    at("pause").textContent = this.isPaused ? "Go on" : "Pause";
  }

  zoom(by) {
    const index = STEPS.indexOf(this.film.steps) + by;
    if (index in STEPS) this.film.steps = STEPS[index];
    at("closer").disabled = this.film.steps === STEPS[0];
    at("wider").disabled = this.film.steps === STEPS.at(-1);
  }

  release() {
    this.isHeld = false;
    this.select(null);
  }

  select(selected) {
    this.selected = selected;
    at("part").replaceChildren(...(selected ? this.describe(selected) : [HINT]));
    this.draw();
  }

  /** The pointer holds the film, so that what it points at stays. */
  point({ offsetX, offsetY }) {
    this.isHeld = true;
    const lane = Math.floor((offsetY - TOP) / LANE);
    const painter = new Painter({ width: this.canvas.clientWidth }, this.flight, this.film, null);
    let nearest = null;
    for (const take of this.film.takes) {
      const time = take.begin + (offsetX - painter.x(take, take.begin)) / painter.scale;
      const reach = REACH_PX / painter.scale;
      for (const record of take.lanes[lane] ?? []) {
        if (time < take.begin || time > take.end || record.begin > time + reach || record.end < time - reach) continue;
        const distance = Math.max(record.begin - time, time - record.end, 0);
        if (!nearest || distance < nearest.distance) nearest = { take, lane, record, distance };
      }
    }
    if (nearest?.record !== this.selected?.record) this.select(nearest);
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === " ") this.pause();
    else if (event.key === "+" || event.key === "=") this.zoom(-1);
    else if (event.key === "-") this.zoom(1);
    else if (event.key === "Escape" && this.selected) this.release();
    else if (event.key in moves) this.move(...moves[event.key]);
    else return;
    event.preventDefault();
  }

  /** Selects the next part in the lane, or the nearest one in the lane beside. At first it is the device's newest. */
  move(along, across) {
    this.isHeld = true;
    const { selected } = this;
    const { lanes } = this.flight;
    if (!selected) {
      const newest = lanes.map((_, lane) => this.visible(lane).at(-1)).findLast((each) => each);
      this.select(newest ?? null);
    } else if (along) {
      const parts = this.visible(selected.lane);
      const index = parts.findIndex(({ record }) => record === selected.record);
      if (index + along in parts) this.select(parts[index + along]);
    } else {
      for (let lane = selected.lane + across; lane in lanes; lane += across) {
        const parts = this.visible(lane);
        if (!parts.length) continue;
        const distance = (part) => Math.abs(place(part) - place(selected));
        this.select(parts.reduce((a, b) => (distance(b) < distance(a) ? b : a)));
        return;
      }
    }
  }

  /** The parts in a lane that are to be seen, from left to right. */
  visible(lane) {
    const { takes, head, shownUs } = this.film;
    const parts = takes.flatMap((take) => take.lanes[lane].map((record) => ({ take, lane, record })));
    return parts.filter((part) => place(part) < head && place(part) + part.record.end - part.record.begin > head - shownUs);
  }

  /** Part, process, step, microseconds, and what it was hidden behind. */
  describe({ take, lane, record }) {
    const { parts, deviceParts, lanes } = this.flight;
    const name = Object.assign(document.createElement("b"), { textContent: parts[record.part] });
    const length = record.end - record.begin;
    const facts = [` · ${lanes[lane].name}`];
    if (record.step) facts.push(` · step ${record.step}`);
    if (record.rows) facts.push(` · ${record.rows} ${record.rows === 1 ? "token" : "tokens"}`);
    facts.push(` · ${length < 1e4 ? length.toFixed(1) : Math.round(length).toLocaleString("en")} µs`);
    if (!deviceParts.has(record.part)) {
      const device = take.lanes[lanes.indexOf(this.flight.device)].filter(({ part }) => deviceParts.has(part));
      const exposed = covered(record, take.gaps);
      if (exposed > 0) facts.push(`, of which the device waited ${duration(exposed)}`);
      else if (covered(record, device) > 0) facts.push(", hidden behind the device");
    }
    return [name, ...facts];
  }

  explainColours() {
    if (!this.flight) return;
    const { parts, deviceParts } = this.flight;
    const drawn = parts.filter((name) => name && !NOT_DRAWN.has(name));
    const isDevice = (name) => deviceParts.has(parts.indexOf(name));
    const named = [...drawn.filter(isDevice), ...drawn.filter((name) => !isDevice(name))];
    const entries = [...named.map((name) => [name, colourOf(name)]), ["the device waits", palette().gap]];
    const items = entries.map(([name, colour]) => {
      const item = document.createElement("li");
      const swatch = item.appendChild(document.createElement("canvas"));
      swatch.width = swatch.height = 12;
      const context = swatch.getContext("2d");
      context.fillStyle = colour;
      context.fillRect(0, 0, 12, 12);
      item.append(name);
      return item;
    });
    at("legend").replaceChildren(...items);
    this.draw();
  }
}

/** Where a part begins on the film's axis. */
function place({ take, record }) {
  return take.at + record.begin - take.begin;
}
