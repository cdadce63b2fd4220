// The newest flight records, by process. Times are microseconds since the first event.

const KEPT_RECORDS = 20_000; // of each process
const KEPT_PERIODS = 64;
const SETTLED_US = 300_000; // after so long without a record the engine is idle

export const SCHEDULE = 2;
export const FORWARD = 7;
export const DETOKENISE = 12;
const EXPOSED = 14;
const IDLE = 15;

/**
 * A record is {part, step, begin, end, rows}. Each lane has a process's, by end time; `gaps` the stretches in which the
 * device had nothing to do though there was work, `idle` those without work.
 */
export class Flight {
  /** Of what the feed's first event says. */
  constructor({ processes, parts, device_parts }) {
    this.parts = parts;
    this.deviceParts = new Set(device_parts);
    this.lanes = processes.map((name) => ({ name, records: [] }));
    this.device = this.lanes.find(({ name }) => name === "worker-0");
    this.coordinator = this.lanes.find(({ name }) => name === "coordinator-0");
    this.originUs = null;
    this.nowUs = 0;
    this.seen = 0;
    this.gaps = [];
    this.idle = [];
    this.periods = [];
  }

  /** Takes an event's columns; returns the new records of each lane. */
  add(event) {
    this.originUs ??= event.time_us;
    this.nowUs = event.time_us - this.originUs;
    const news = event.records.map((columns, index) => this.addLane(this.lanes[index], columns));
    for (const kept of [...this.lanes.map(({ records }) => records), this.gaps, this.idle]) {
      if (kept.length > KEPT_RECORDS) kept.splice(0, kept.length - KEPT_RECORDS);
    }
    return news;
  }

  addLane(lane, { part, step, begin_ns, duration_ns, num_rows }) {
    const news = [];
    for (let index = 0; index < part.length; index++) {
      const begin = this.nowUs + begin_ns[index] / 1e3;
      const end = begin + duration_ns[index] / 1e3;
      const record = { part: part[index], step: step[index], begin, end, rows: num_rows[index] };
      if (record.part === EXPOSED) this.gaps.push(record);
      else if (record.part === IDLE) this.idle.push(record);
      else news.push(record);
    }
    this.seen += part.length;
    if (lane === this.device) this.notePeriods(news);
    lane.records.push(...news);
    return news;
  }

  notePeriods(news) {
    for (const { part, begin } of news) {
      if (part !== FORWARD) continue;
      if (this.lastBegin !== undefined) this.periods.push(begin - this.lastBegin);
      this.lastBegin = begin;
    }
    this.periods.splice(0, this.periods.length - KEPT_PERIODS);
  }

  /** From a step's begin to the next one's: the median, which pauses do not move. */
  get periodUs() {
    const sorted = [...this.periods].sort((a, b) => a - b);
    return sorted[sorted.length >> 1] ?? 5_000;
  }

  /** Until when all that happened is known: the end of the newest step, or of all when nothing happens any more. */
  get horizonUs() {
    const ends = this.lanes.map(({ records }) => records.at(-1)?.end ?? -Infinity);
    const newest = Math.max(...ends);
    return this.nowUs - newest > SETTLED_US ? newest : (this.device?.records.at(-1)?.end ?? -Infinity);
  }

  /** The end of the last idle time between the two moments, or `begin`. */
  afterIdle(begin, end) {
    const last = this.idle.findLast((idle) => idle.end > begin && idle.end < end);
    return last ? last.end : begin;
  }

  /** What reaches into a stretch of time: {lanes: [records], gaps, idle}. */
  slice(begin, end) {
    const within = (records) => records.filter((record) => record.end > begin && record.begin < end);
    return { lanes: this.lanes.map(({ records }) => within(records)), gaps: within(this.gaps), idle: within(this.idle) };
  }
}
