// How much of the host's work lies behind the device's, and how much in the gaps in which the device waited for it.

const LASTING = 0.96; // of the sums, per event: some five seconds
const WAITING = 20_000; // records whose step has not ended yet, at most

export class Overlap {
  constructor(flight) {
    this.flight = flight;
    this.steps = 0;
    this.lastStep = 0;
    this.processes = flight.lanes.map(({ name }) => ({ name, behind: 0, exposed: 0, other: 0 }));
    this.waiting = flight.lanes.map(() => []);
  }

  /** `news`: an event's new records of each lane, as `Flight.add` returns them. */
  add(news) {
    const { device, coordinator, deviceParts, gaps } = this.flight;
    const work = device.records.filter(({ part }) => deviceParts.has(part));
    const known = Math.min(work.at(-1)?.end ?? 0, coordinator?.records.at(-1)?.end ?? 0);
    const steps = news[this.flight.lanes.indexOf(device)].map(({ step }) => step);
    const numSteps = new Set(steps.filter((step) => step > this.lastStep)).size;
    if (!numSteps) return;
    this.lastStep = Math.max(...steps);
    this.steps = this.steps * LASTING + numSteps;
    news.forEach((records, index) => {
      const process = this.processes[index];
      for (const kind of ["behind", "exposed", "other"]) process[kind] *= LASTING;
      const waiting = this.waiting[index].concat(records.filter(({ part }) => !deviceParts.has(part)));
      for (const record of waiting) if (record.end <= known) count(process, record, work, gaps);
      this.waiting[index] = waiting.filter(({ end }) => end > known).slice(-WAITING);
    });
  }

  /** Microseconds per step of each process. */
  perStep() {
    const share = 1 / Math.max(this.steps, 1);
    return this.processes.map(({ name, behind, exposed, other }) => ({
      name,
      behind: behind * share,
      exposed: exposed * share,
      other: other * share,
    }));
  }
}

function count(process, record, work, gaps) {
  const behind = covered(record, work);
  const exposed = covered(record, gaps);
  process.behind += behind;
  process.exposed += exposed;
  process.other += Math.max(0, record.end - record.begin - behind - exposed);
}

/** How much of a record lies in stretches that are ascending and disjoint. */
export function covered({ begin, end }, stretches) {
  let low = 0;
  let high = stretches.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (stretches[middle].end > begin) high = middle;
    else low = middle + 1;
  }
  let sum = 0;
  for (; low < stretches.length && stretches[low].begin < end; low++) {
    sum += Math.min(end, stretches[low].end) - Math.max(begin, stretches[low].begin);
  }
  return sum;
}
