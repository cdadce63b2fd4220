// Draws the film: a lane for each process, a band where the device waits, and what belongs to the selected part's step.

import { DETOKENISE, FORWARD, SCHEDULE } from "./flight.js";
import { colourOf, duration, palette } from "./palette.js";

export const TOP = 26; // for the lengths of gaps
export const LANE = 62;
const NAME = 20; // of a lane, for its name
const BAR = LANE - NAME - 6;
const BOTTOM = 24; // for the time axis
const FONT = '11px system-ui, "DejaVu Sans", sans-serif';
const BOLD = '600 11px system-ui, "DejaVu Sans", sans-serif';
const FADED = 0.22; // what does not belong to the selected step
const GRID_PX = 110; // between two lines of the time axis, about

export function heightOf(numLanes) {
  return TOP + numLanes * LANE + BOTTOM;
}

export class Painter {
  /** `canvas`: {context, width, height}; `selected`: {take, lane, record} or null. */
  constructor({ context, width, height }, flight, film, selected) {
    Object.assign(this, { context, width, height, flight, film, selected, colours: palette() });
    this.scale = width / film.shownUs; // pixels a microsecond
  }

  paint() {
    const { context, film } = this;
    context.font = FONT;
    context.textBaseline = "middle";
    for (const take of film.takes) {
      const left = Math.max(0, this.x(take, take.begin));
      const right = Math.min(this.width, this.x(take, take.end));
      if (right <= left) continue;
      context.save();
      context.beginPath();
      context.rect(left, 0, right - left, this.height);
      context.clip();
      this.paintTake(take);
      context.restore();
    }
    this.paintSeams();
    this.paintNames();
  }

  /** Where a moment of a take lies. */
  x(take, time) {
    return this.width - (this.film.head - take.at - (time - take.begin)) * this.scale;
  }

  y(lane) {
    return TOP + lane * LANE + NAME;
  }

  paintTake(take) {
    this.paintIdle(take);
    this.paintGrid(take);
    this.paintGaps(take);
    take.lanes.forEach((records, lane) => {
      for (const record of records) this.paintRecord(take, lane, record);
    });
    if (this.selected?.take === take) this.paintWay(take);
  }

  paintIdle(take) {
    const { context, colours } = this;
    for (const { begin, end } of take.idle) {
      const x = Math.max(0, this.x(take, begin));
      const width = Math.min(this.width, this.x(take, end)) - x;
      context.fillStyle = colours.line;
      context.globalAlpha = 0.5;
      context.fillRect(x, TOP, width, this.height - TOP - BOTTOM);
      context.globalAlpha = 1;
      context.fillStyle = colours.soft;
      context.textAlign = "center";
      if (width > 70) context.fillText("no request", x + width / 2, TOP - 12);
    }
  }

  paintGrid(take) {
    const { context, colours } = this;
    const every = roundStep(GRID_PX / this.scale);
    const bottom = this.height - BOTTOM;
    context.fillStyle = colours.line;
    for (let time = 0; time < take.length; time += every) {
      context.fillRect(Math.round(this.x(take, take.begin + time)), TOP, 1, bottom - TOP);
    }
    context.fillStyle = colours.soft;
    for (let time = every; time < take.length; time += every) {
      const x = this.x(take, take.begin + time);
      context.textAlign = "center";
      context.fillText(axisLabel(time), x, bottom + BOTTOM / 2);
    }
  }

  paintGaps(take) {
    const { context, colours } = this;
    let free = -Infinity; // where the next label has room
    for (const gap of take.gaps) {
      const x = this.x(take, gap.begin);
      const width = Math.max(1.5, (gap.end - gap.begin) * this.scale);
      context.fillStyle = colours.gap;
      context.globalAlpha = 0.16;
      context.fillRect(x, TOP, width, this.height - TOP - BOTTOM);
      context.globalAlpha = 1;
      context.fillRect(x, TOP - 3, width, 3);
      const label = duration(gap.end - gap.begin);
      const half = context.measureText(label).width / 2;
      const middle = x + width / 2;
      if (middle - half < free) continue;
      context.textAlign = "center";
      context.fillText(label, middle, TOP - 12);
      free = middle + half + 10;
    }
  }

  paintRecord(take, lane, record) {
    const { context, colours, flight, selected } = this;
    const x = this.x(take, record.begin);
    const width = Math.max(1, (record.end - record.begin) * this.scale);
    if (x > this.width || x + width < 0) return;
    const isDevice = flight.deviceParts.has(record.part);
    const inset = isDevice ? 0 : 4;
    const y = this.y(lane) + inset;
    context.globalAlpha = selected && record.step !== selected.record.step ? FADED : 1;
    context.fillStyle = colourOf(flight.parts[record.part]);
    fillRounded(context, x, y, width, BAR - 2 * inset, isDevice ? 4 : 2);
    if (record.part === FORWARD) this.nameStep(record, Math.max(x, 0), Math.min(x + width, this.width), y);
    context.globalAlpha = 1;
    if (selected?.record === record) {
      context.strokeStyle = colours.ink;
      context.lineWidth = 2;
      context.strokeRect(x - 1, y - 1, width + 2, BAR - 2 * inset + 2);
    }
  }

  nameStep({ step, rows }, left, right, y) {
    const { context, colours } = this;
    const [long, short] = [`step ${step} · ${rows} ${rows === 1 ? "token" : "tokens"}`, String(step)];
    context.fillStyle = colours.onBlue;
    context.textAlign = "center";
    const label = [long, short].find((text) => context.measureText(text).width + 12 < right - left);
    if (label) context.fillText(label, (left + right) / 2, y + BAR / 2);
  }

  /** From planning through the device to text: the selected step's way. */
  paintWay(take) {
    const { flight, selected } = this;
    const find = (part, records) => records.find((each) => each.part === part && each.step === selected.record.step);
    const device = flight.lanes.indexOf(flight.device);
    const work = (take.lanes[device] ?? []).filter(
      ({ part, step }) => flight.deviceParts.has(part) && step === selected.record.step,
    );
    if (!work.length) return;
    take.lanes.forEach((records, lane) => {
      const planned = find(SCHEDULE, records);
      const text = find(DETOKENISE, records);
      if (planned) this.paintLink(take, planned.end, lane, work[0].begin, device);
      if (text) this.paintLink(take, work.at(-1).end, device, text.begin, lane);
    });
  }

  /** A dashed line between two moments in two lanes, from edge to edge of their bars. */
  paintLink(take, begin, from, end, to) {
    const { context, colours } = this;
    const edge = (lane, other) => this.y(lane) + (other > lane ? BAR : 0);
    context.strokeStyle = colours.ink;
    context.lineWidth = 1;
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(this.x(take, begin), edge(from, to));
    context.lineTo(this.x(take, end), edge(to, from));
    context.stroke();
    context.setLineDash([]);
  }

  paintNames() {
    const { context, colours, flight } = this;
    context.textAlign = "left";
    flight.lanes.forEach(({ name }, lane) => {
      const label = name.startsWith("worker") ? `${name} · device` : name;
      const y = this.y(lane) - NAME / 2;
      context.font = BOLD;
      context.fillStyle = colours.paper;
      context.globalAlpha = 0.85;
      context.fillRect(6, y - 8, context.measureText(label).width + 10, 16);
      context.globalAlpha = 1;
      context.fillStyle = colours.soft;
      context.fillText(label, 11, y);
      context.font = FONT;
    });
  }

  paintSeams() {
    const { context, colours, film } = this;
    film.takes.forEach((take, index) => {
      const before = film.takes[index - 1];
      if (!before || take.skipped <= 1) return;
      const middle = (this.x(before, before.end) + this.x(take, take.begin)) / 2;
      if (middle < -40 || middle > this.width + 40) return;
      const width = this.x(take, take.begin) - this.x(before, before.end);
      context.fillStyle = colours.line;
      context.globalAlpha = 0.6;
      context.fillRect(middle - width / 2, TOP, width, this.height - TOP - BOTTOM);
      context.globalAlpha = 1;
      context.save();
      context.translate(middle, (this.height - BOTTOM + TOP) / 2);
      context.rotate(-Math.PI / 2);
      context.fillStyle = colours.soft;
      context.textAlign = "center";
      context.fillText(`${duration(take.skipped)} later`, 0, 0);
      context.restore();
    });
  }
}

function fillRounded(context, x, y, width, height, radius) {
  if (width < 2 * radius) {
    context.fillRect(x, y, width, height);
    return;
  }
  context.beginPath();
  context.roundRect(x, y, width, height, radius);
  context.fill();
}

/** In place of a film that has not begun. */
export function paintHint({ context, width, height }) {
  context.font = '13px system-ui, "DejaVu Sans", sans-serif';
  context.fillStyle = palette().soft;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText("No step yet: send a message, and its steps appear here.", width / 2, height / 2, width - 20);
}

/** 1, 2 or 5 times a power of ten, at least this. */
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= least);
}

function axisLabel(us) {
  if (us >= 1e6) return `${+(us / 1e6).toFixed(2)} s`;
  return us >= 1e3 ? `${+(us / 1e3).toFixed(2)} ms` : `${+us.toFixed(1)} µs`;
}
