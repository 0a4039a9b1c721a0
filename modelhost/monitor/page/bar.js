/** The memory bar: what the limit is made of, with baseline, warning and critical marked, and a legend with the figures. */

import { arrange, draw, make, onWidth, setText } from "./dom.js";
import { formatBytes } from "./units.js";

const HEIGHT = 30;
const LABEL = 20;
const STRIP = 7;

/** Disjoint parts of usage in their order, and what lies beside it: key, name, what it means. */
const PARTS = [
  ["host_bytes", "host", "the process itself, and what no model holds"],
  ["models_bytes", "models", "committed by loaded models"],
  ["loading_bytes", "loading", "what loads under way have taken of what they reserved"],
  ["activations_bytes", "activations", "claimed by runs under way"],
  ["weights_cached_bytes", "weights in page cache", "the kernel takes them back where it needs room"],
];

export class MemoryBar {
  #figure;
  #legend;
  #width = 0;
  #snapshot = null;
  #rows = new Map();

  constructor(figure, legend) {
    this.#figure = figure;
    this.#legend = legend;
    onWidth(figure, (width) => {
      this.#width = width;
      this.#draw();
    });
  }

  /** Shows a snapshot. */
  show(snapshot) {
    this.#snapshot = snapshot;
    this.#draw();
    this.#list();
  }

  #draw() {
    if (this.#snapshot === null || this.#width === 0) return;
    const { memory, bar } = this.#snapshot;
    const width = this.#width;
    const x = (bytes) => Math.max(0, Math.min(1, bytes / memory.limit_bytes)) * (width - 2) + 1;
    const top = LABEL;
    const parts = [
      hatching(),
      block(x(0), x(memory.limit_bytes), top, "track"),
      block(x(memory.warning_bytes), x(memory.critical_bytes), top, "zone-warning"),
      block(x(memory.critical_bytes), x(memory.limit_bytes), top, "zone-critical"),
    ];
    let from = 0;
    for (const [key, name] of PARTS) {
      const bytes = bar[key] ?? 0;
      if (bytes <= 0) continue;
      const left = x(from);
      const right = Math.min(width - 1, Math.max(x(from + bytes), left + 2));
      parts.push(block(left, right, top, `part-${key.replace("_bytes", "")}`, `${name}: ${formatBytes(bytes)}`));
      from += bytes;
    }
    parts.push(...this.#marks(memory, x, width));
    const coming = reservedBeyond(this.#snapshot);
    if (coming > 0) {
      const words = `reserved by loads, and not in use yet: ${formatBytes(coming)}`;
      parts.push(block(x(memory.usage_bytes), x(memory.usage_bytes + coming), top + HEIGHT - STRIP, "part-loading", words, STRIP));
    }
    const size = { width, height: LABEL * 2 + HEIGHT, viewBox: `0 0 ${width} ${LABEL * 2 + HEIGHT}` };
    this.#figure.replaceChildren(draw("svg", { ...size, role: "img", "aria-label": words(this.#snapshot) }, ...parts));
  }

  /** Two labels above and two below, so that thresholds that lie near each other leave room for both names. */
  *#marks(memory, x, width) {
    const below = HEIGHT + LABEL + 15;
    const rows = [
      ["limit", memory.limit_bytes, 13],
      ["critical", memory.critical_bytes, 13],
      ["warning", memory.warning_bytes, below],
      ["baseline", memory.baseline_bytes, below],
    ];
    const taken = new Map();
    for (const [name, bytes, y] of rows) {
      const at = x(bytes);
      yield draw("line", { x1: at, x2: at, y1: LABEL - 5, y2: LABEL + HEIGHT + 5, class: `mark ${name}` });
      const label = `${name} ${formatBytes(bytes)}`;
      const room = label.length * 6.6;
      const right = Math.min(taken.get(y) ?? width, Math.max(at, room));
      taken.set(y, right - room - 8);
      if (right >= room - 1) yield draw("text", { x: right, y, "text-anchor": "end", class: `label ${name}` }, label);
    }
  }

  #list() {
    const { bar, memory } = this.#snapshot;
    const figures = [
      ...PARTS.map(([key, name, meaning]) => [key, name, meaning, bar[key]]),
      ["available", "free for loads", "up to critical, less what is reserved", memory.available_bytes],
    ];
    for (const [key, name, meaning, bytes] of figures) {
      if (!this.#rows.has(key)) this.#rows.set(key, legendRow(key, name, meaning));
      const isAll = key !== "loading_bytes" || reservedBeyond(this.#snapshot) <= 0;
      const words = isAll ? formatBytes(bytes) : `${formatBytes(bytes)} of ${formatBytes(memory.reserved_bytes)} reserved`;
      setText(this.#rows.get(key).querySelector("dd"), words);
    }
    arrange(this.#legend, [...this.#rows.values()]);
  }
}

/** What loads have reserved beyond what the bar shows of them: it is not free, though nobody has it yet. */
function reservedBeyond({ memory, bar }) {
  return memory.reserved_bytes - bar.loading_bytes;
}

function block(left, right, top, style, title = null, height = HEIGHT) {
  const size = { x: left, y: top, width: Math.max(0, right - left), height, class: style };
  return draw("rect", size, title === null ? null : draw("title", {}, title));
}

/** Stripes: what can be taken back is told from what cannot without its colour too. */
function hatching() {
  const stripe = draw("path", { d: "M0 6L6 0M-1 1L1 -1M5 7L7 5", class: "stripe" });
  return draw("defs", {}, draw("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, stripe));
}

function legendRow(key, name, meaning) {
  const style = `swatch part-${key.replace("_bytes", "")}`;
  const swatch = draw("svg", { width: 12, height: 12, "aria-hidden": "true" }, draw("rect", { width: 12, height: 12, class: style }));
  return make("div", { title: meaning }, make("dt", {}, swatch, name), make("dd", {}));
}

/** The bar in words. */
function words({ memory, bar }) {
  const parts = PARTS.map(([key, name]) => `${name} ${formatBytes(bar[key] ?? 0)}`).join(", ");
  const marks = ["baseline", "warning", "critical"].map((name) => `${name} ${formatBytes(memory[`${name}_bytes`])}`).join(", ");
  return `${formatBytes(memory.usage_bytes)} of ${formatBytes(memory.limit_bytes)} in use: ${parts}; ${marks}`;
}
