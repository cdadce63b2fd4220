// The engine in slow motion. A step takes milliseconds and the eye wants seconds, so the film shows one stretch of time
// ("take") slowly, and goes on with the newest one. Where takes are not adjacent there is a seam that says what was left
// out. An engine that is slow enough is shown as it happens.

const PASS_S = 7; // from one edge to the other
const SEAM = 0.05; // of what is shown
const EASE_S = 0.25; // for changes of scale

export class Film {
  constructor(flight) {
    this.flight = flight;
    this.steps = 8; // shown at once
    this.takes = [];
    this.head = 0; // the right edge; takes begin at their `at`, on the same axis in microseconds
    this.shownUs = 0; // between the edges
  }

  get widthUs() {
    return this.steps * this.flight.periodUs;
  }

  /** How many times slower than the engine. */
  get slowness() {
    return Math.max(1, (PASS_S * 1e6) / this.shownUs);
  }

  /** Moves on by so much of the viewer's time; false where there is nothing to move on to. */
  advance(seconds) {
    const last = this.takes.at(-1);
    if (!last || this.head >= last.at + last.length) {
      if (!this.addTake()) return false;
    }
    this.shownUs += (this.widthUs - this.shownUs) * Math.min(1, seconds / EASE_S);
    const { at, length } = this.takes.at(-1);
    this.head = Math.min(at + length, this.head + (seconds * 1e6) / this.slowness);
    return true;
  }

  /** Shows the newest at once: for those who want no motion. */
  jump() {
    this.shownUs = this.widthUs;
    if (this.addTake()) this.toEnd();
  }

  toEnd() {
    const { at, length } = this.takes.at(-1);
    this.head = at + length;
  }

  addTake() {
    const { flight, widthUs } = this;
    const last = this.takes.at(-1);
    const end = flight.horizonUs;
    const begin = flight.afterIdle(Math.max(last?.end ?? -Infinity, end - widthUs), end);
    if (!(end > begin)) return false;
    const skipped = last ? begin - last.end : 0;
    if (!last) this.shownUs = widthUs;
    const at = last ? last.at + last.length + (skipped > 1 ? SEAM * this.shownUs : 0) : 0;
    this.takes.push({ begin, end, at, length: end - begin, skipped, ...flight.slice(begin, end) });
    // the first is there at once, and what is out of sight can go
    if (!last) this.head = at + (end - begin);
    this.takes = this.takes.filter((take) => take.at + take.length > this.head - 2 * this.shownUs);
    return true;
  }
}
