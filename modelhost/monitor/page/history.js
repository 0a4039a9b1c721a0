/** The last hour as columns: what the host remembers, and what snapshots add to it. */

const COLUMNS = [
  "at", "usage_bytes", "models_bytes", "cached_bytes", "level", "requests", "failures", "loads", "evictions", "refusals",
  "p99_ms",
];
const COUNTS = ["requests", "failures", "loads", "evictions", "refusals"];
const LEVELS = ["normal", "warning", "critical"];
const KEPT_S = 3600;

export class History {
  everyS = 5;
  #columns = empty();
  #before = null; // totals at the last sample

  /** Takes what the host remembers in place of all that is here. */
  take(found) {
    this.everyS = found.every_s;
    this.#columns = Object.fromEntries(COLUMNS.map((name) => [name, [...(found[name] ?? [])]]));
    this.#columns.level = this.#columns.level.map((level) => Math.max(0, typeof level === "number" ? level : LEVELS.indexOf(level)));
    this.#before = null;
  }

  /** Adds a snapshot, and says whether it made a sample. */
  add({ at, memory, bar, totals }) {
    if (this.#before === null) {
      this.#before = totals;
      return false;
    }
    if (at - (this.#columns.at.at(-1) ?? 0) < this.everyS) return false;
    const sample = {
      at,
      usage_bytes: memory.usage_bytes,
      models_bytes: bar.models_bytes,
      cached_bytes: bar.weights_cached_bytes,
      level: LEVELS.indexOf(memory.level),
      p99_ms: totals.p99_ms,
      ...Object.fromEntries(COUNTS.map((name) => [name, Math.max(0, totals[name] - this.#before[name])])),
    };
    for (const name of COLUMNS) this.#columns[name].push(sample[name] ?? null);
    this.#before = totals;
    this.#forget(at - KEPT_S);
    return true;
  }

  get length() {
    return this.#columns.at.length;
  }

  column(name) {
    return this.#columns[name];
  }

  /** The sample at an index, or undefined. */
  sample(index) {
    if (index < 0 || index >= this.length) return undefined;
    const sample = Object.fromEntries(COLUMNS.map((name) => [name, this.#columns[name][index]]));
    return { ...sample, level: LEVELS[sample.level], perSecond: sample.requests / this.everyS };
  }

  #forget(until) {
    const count = this.#columns.at.findIndex((at) => at >= until);
    if (count > 0) for (const name of COLUMNS) this.#columns[name].splice(0, count);
  }
}

function empty() {
  return Object.fromEntries(COLUMNS.map((name) => [name, []]));
}
