/** What happened to memory, newest first. Kept by the events' numbers, which only ever grow within one host process. */

import { arrange, byId, make } from "./dom.js";
import { formatBytes, formatClock, formatNamed, nameWithoutUnit } from "./units.js";

const KEPT = 200;
const KNOWN = new Set(["id", "at", "kind", "level", "usage_bytes", "cause"]);

const KINDS = {
  level: ({ from, level }) => `level ${from ?? "?"} → ${level}`,
  recovery: ({ victims = [], freed_bytes: freed = 0, expected_bytes: expected = 0, shortfall_bytes: missing = 0 }) =>
    `${whoLeft(victims)}: ${formatBytes(Math.max(0, freed))} came back of ${formatBytes(expected)}` +
    (missing > 0 ? `, ${formatBytes(missing)} is missing` : ""),
  refusal: () => "a load was refused",
  growth: () => "memory grows",
  worker_crash: () => "a worker process ended",
  swap_failed: () => "new files were not taken",
};

export class Events {
  #found = new Map(); // by number; each with its element, once that is made
  #list;

  constructor(list) {
    this.#list = list;
  }

  /** Adds events that are new. */
  add(events) {
    const before = this.#found.size;
    for (const event of events) {
      if (!this.#found.has(event.id)) this.#found.set(event.id, [event, null]);
    }
    if (this.#found.size !== before) this.#show();
  }

  /** Forgets all of them. */
  clear() {
    this.#found.clear();
    this.#show();
  }

  #show() {
    const numbers = [...this.#found.keys()].sort((one, other) => other - one);
    for (const number of numbers.splice(KEPT)) this.#found.delete(number);
    for (const entry of this.#found.values()) entry[1] ??= item(entry[0]);
    arrange(this.#list, numbers.map((number) => this.#found.get(number)[1]));
    byId("events-empty").hidden = numbers.length > 0;
    this.#list.hidden = numbers.length === 0;
  }
}

function whoLeft(victims) {
  return victims.length === 1 ? `${victims[0]} left` : victims.length === 0 ? "clean-up" : `${victims.length} models left`;
}

function item(event) {
  const time = make("time", { datetime: new Date(event.at * 1000).toISOString() }, formatClock(event.at));
  const style = event.kind === "level" ? `at-${event.level}` : event.shortfall_bytes > 0 ? "at-warning" : "";
  const kind = make("span", { class: `kind ${style}` }, KINDS[event.kind]?.(event) ?? event.kind.replaceAll("_", " "));
  const cause = make("span", { class: "faint" }, `${event.cause} · ${formatBytes(event.usage_bytes)} in use`);
  const details = Object.entries(event).filter(([name]) => !KNOWN.has(name) && name !== "from");
  if (details.length === 0) return make("li", {}, make("div", {}, time, kind), cause);
  const list = details.map(([name, value]) =>
    make("div", {}, make("dt", {}, nameWithoutUnit(name)), make("dd", {}, formatNamed(name, value))),
  );
  const more = make("details", {}, make("summary", {}, cause), make("dl", { class: "facts" }, ...list));
  return make("li", {}, make("div", {}, time, kind), more);
}
