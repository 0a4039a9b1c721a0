/** The plots of the last hour, one below the other on one axis of time, and the moment in them that is looked at. */

import { byId, draw, onWidth, setAttribute, setText } from "./dom.js";
import { counted, formatBytes, formatClock, formatDuration, formatRate } from "./units.js";

const LEFT = 62;
const RIGHT = 10;
const TITLE = 22;
const GAP = 12;
const MEMORY = 130;
const LANE = 9;
const LANE_GAP = 5;
const LANES_FROM = 11;
const SMALL = 56;
const SPANS_S = [300, 600, 900, 1800, 3600];
const LANES = [["loads", "fill-s2"], ["evictions", "fill-s0"], ["refusals", "fill-critical"]];

export class Plots {
  #history;
  #bounds = null;
  #width = 0;
  #moment = byId("moment");
  #isFollowing = true;
  #cursor = null;
  #x = null;

  constructor(figure, history) {
    this.figure = figure;
    this.#history = history;
    onWidth(figure, (width) => {
      this.#width = width;
      this.draw();
    });
    this.#moment.addEventListener("input", () => this.#look(Number(this.#moment.value)));
    figure.addEventListener("pointermove", (event) => this.#point(event));
    figure.addEventListener("pointerleave", () => this.#look(this.#history.length - 1));
  }

  /** Shows a snapshot's thresholds with the history. */
  show(memory) {
    this.#bounds = memory;
    this.draw();
  }

  /** Draws all of it anew: each five seconds, and where the width changes. */
  draw() {
    if (this.#width === 0 || this.#bounds === null) return;
    const history = this.#history;
    const at = history.column("at");
    const end = at.at(-1) ?? Date.now() / 1000;
    const covered = end - (at[0] ?? end);
    const span = SPANS_S.find((one) => one >= covered) ?? 3600;
    const width = this.#width;
    const x = (time) => LEFT + Math.max(0, 1 - (end - time) / span) * (width - LEFT - RIGHT);
    this.#x = x;
    const memoryTop = TITLE;
    const memoryEnd = memoryTop + MEMORY;
    const lanesEnd = memoryEnd + LANES_FROM + (LANES.length + 1) * (LANE + LANE_GAP);
    const rateTop = lanesEnd + GAP + TITLE;
    const timeTop = rateTop + SMALL + GAP + TITLE;
    const bottom = timeTop + SMALL;
    this.#cursor = draw("line", { class: "cursor", y1: memoryTop, y2: bottom, x1: 0, x2: 0 });
    const parts = [
      ...memoryPlot(history, this.#bounds, x, memoryTop, memoryEnd, width),
      ...lanes(history, x, memoryEnd + LANES_FROM),
      ...ratePlot(history, x, rateTop, width),
      ...timePlot(history, x, timeTop, width),
      ...times(end, span, x, bottom, width),
      this.#cursor,
    ];
    const height = bottom + 22;
    const label = `Memory, requests and times of the last ${Math.round(span / 60)} minutes. The slider below reads the figures out.`;
    this.figure.replaceChildren(
      draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...parts),
    );
    this.#moment.disabled = history.length === 0;
    this.#moment.max = String(Math.max(0, history.length - 1));
    this.#look(this.#isFollowing ? history.length - 1 : Math.min(Number(this.#moment.value), history.length - 1));
  }

  #point(event) {
    const at = this.#history.column("at");
    if (at.length === 0 || this.#x === null) return;
    const place = event.clientX - this.figure.getBoundingClientRect().left;
    let nearest = at.length - 1;
    while (nearest > 0 && this.#x(at[nearest - 1]) + this.#x(at[nearest]) > 2 * place) nearest -= 1;
    this.#look(nearest);
  }

  #look(index) {
    const sample = this.#history.sample(index);
    const readout = byId("readout");
    if (sample === undefined || this.#cursor === null) {
      setText(readout, "the first sample comes in a few seconds");
      return;
    }
    this.#isFollowing = index === this.#history.length - 1;
    this.#moment.value = String(index);
    const place = this.#x(sample.at).toFixed(1);
    setAttribute(this.#cursor, "x1", place);
    setAttribute(this.#cursor, "x2", place);
    const words = inWords(sample);
    setText(readout, words);
    setAttribute(this.#moment, "aria-valuetext", words);
  }
}

function inWords(sample) {
  const parts = [
    formatClock(sample.at),
    `${formatBytes(sample.usage_bytes)} in use, ${sample.level}`,
    `${formatRate(sample.perSecond)} requests/s`,
  ];
  if (sample.p99_ms !== null) parts.push(`p99 ${formatDuration(sample.p99_ms / 1000)}`);
  for (const [name, count] of [["failures", sample.failures], ...LANES.map(([lane]) => [lane, sample[lane]])]) {
    if (count > 0) parts.push(counted(count, name.slice(0, -1)));
  }
  return parts.join(" · ");
}

// --- the plots ---------------------------------------------------------------------------------------

function* memoryPlot(history, bounds, x, top, bottom, width) {
  const usage = history.column("usage_bytes");
  const most = Math.max(bounds.usage_bytes, ...usage);
  const high = bounds.limit_bytes <= 4 * most ? bounds.limit_bytes * 1.04 : most * 1.3;
  const y = (bytes) => bottom - (bytes / high) * (bottom - top);
  yield* title("memory", top, [["usage", "s0"], ["models", "s1"]]);
  yield* grid(powerOfTwo(high / 2.3), high, y, width, formatBytes);
  for (const name of ["baseline", "warning", "critical", "limit"]) {
    const bytes = bounds[`${name}_bytes`];
    if (bytes <= high) yield draw("line", { x1: LEFT, x2: width - RIGHT, y1: y(bytes), y2: y(bytes), class: `mark ${name}` });
  }
  const points = pointsOf(history, usage, x, y);
  yield draw("polygon", { points: joined([...area(points, y(0))]), class: "area fill-s0" });
  yield draw("polyline", { points: joined(pointsOf(history, history.column("models_bytes"), x, y)), class: "line s1" });
  yield draw("polyline", { points: joined(points), class: "line s0" });
}

function* lanes(history, x, top) {
  const at = history.column("at");
  const every = history.everyS;
  const rows = [["level", null], ...LANES];
  for (const [row, [name, style]] of rows.entries()) {
    const y = top + row * (LANE + LANE_GAP);
    yield draw("text", { x: LEFT - 6, y: y + LANE - 0.5, "text-anchor": "end", class: "axis" }, name);
    yield draw("line", { x1: LEFT, x2: x(at.at(-1) ?? 0), y1: y + LANE, y2: y + LANE, class: "grid" });
    for (const [from, to, level] of runs(history.column(name), name === "level")) {
      const left = x(at[from] - every);
      const size = { x: left.toFixed(1), y, width: Math.max(2, x(at[to]) - left).toFixed(1), height: LANE };
      yield draw("rect", { ...size, class: style ?? `fill-${["normal", "warning", "critical"][level]}` });
    }
  }
}

/** Stretches in which something is above zero; of levels each by itself. */
function* runs(column, byValue) {
  let from = -1;
  for (let index = 0; index <= column.length; index += 1) {
    const value = column[index] ?? 0;
    if (from >= 0 && (value === 0 || (byValue && value !== column[from]))) {
      yield [from, index - 1, column[from]];
      from = -1;
    }
    if (from < 0 && value > 0) from = index;
  }
}

function* ratePlot(history, x, top, width) {
  const rates = history.column("requests").map((count) => count / history.everyS);
  const failures = history.column("failures").map((count) => count / history.everyS);
  const [step, most] = scale(Math.max(1, ...rates));
  const y = (rate) => top + SMALL - (rate / most) * SMALL;
  yield* title("requests a second", top, [["all", "s0"], ["failed", "critical"]]);
  yield* grid(step, most, y, width, formatRate);
  const points = pointsOf(history, rates, x, y);
  yield draw("polygon", { points: joined([...area(points, y(0))]), class: "area fill-s0" });
  yield draw("polyline", { points: joined(points), class: "line s0" });
  if (failures.some((rate) => rate > 0)) {
    yield draw("polyline", { points: joined(pointsOf(history, failures, x, y)), class: "line critical" });
  }
}

function* timePlot(history, x, top, width) {
  const found = history.column("p99_ms");
  const [step, most] = scale(Math.max(1, ...found.filter((value) => value !== null)));
  const y = (ms) => top + SMALL - (ms / most) * SMALL;
  yield* title("time of a request", top, [["p99", "s3"]]);
  yield* grid(step, most, y, width, (ms) => formatDuration(ms / 1000));
  for (const points of stretches(history, found, x, y)) {
    yield points.length === 1
      ? draw("circle", { cx: points[0][0], cy: points[0][1], r: 1.6, class: "fill-s3" })
      : draw("polyline", { points: joined(points), class: "line s3" });
  }
}

/** Lines that end where nothing is known. */
function* stretches(history, column, x, y) {
  const at = history.column("at");
  let points = [];
  for (let index = 0; index <= column.length; index += 1) {
    const value = column[index] ?? null;
    if (value !== null) points.push([x(at[index]), y(value)]);
    else if (points.length > 0) {
      yield points;
      points = [];
    }
  }
}

function* title(words, top, series) {
  yield draw("text", { x: LEFT, y: top - 8, class: "title" }, words);
  let place = LEFT + words.length * 8.4 + 14;
  for (const [name, style] of series) {
    yield draw("line", { x1: place, x2: place + 14, y1: top - 12, y2: top - 12, class: `line ${style}` });
    yield draw("text", { x: place + 19, y: top - 8, class: "axis" }, name);
    place += 19 + name.length * 6.5 + 14;
  }
}

/** Lines at round figures, two or three of them. */
function* grid(step, high, y, width, format) {
  for (let value = 0; value <= high * 1.0001; value += step) {
    const words = value === 0 ? "0" : format(value).replace(/\.0(?= |$)/, "");
    yield draw("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" });
    yield draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end", class: "axis" }, words);
  }
}

/** A step of 1, 2 or 5 times a power of ten, and so many of them that the highest value is within. */
function scale(most) {
  const least = most / 2.3;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].find((one) => one * power >= least) * power;
  return [step, Math.ceil(most / step) * step];
}

/** As memory limits are. */
function powerOfTwo(bytes) {
  return 2 ** Math.ceil(Math.log2(bytes));
}

function* times(end, span, x, bottom, width) {
  const step = [60, 120, 300, 600, 900].find((one) => (span / one) * 62 <= width - LEFT - RIGHT) ?? 1800;
  const offset = new Date(end * 1000).getTimezoneOffset() * 60;
  for (let at = Math.ceil((end - span - offset) / step) * step + offset; at <= end; at += step) {
    yield draw("line", { x1: x(at), x2: x(at), y1: bottom, y2: bottom + 4, class: "axis-line" });
    const anchor = x(at) > width - 24 ? "end" : "middle";
    yield draw("text", { x: x(at), y: bottom + 16, "text-anchor": anchor, class: "axis" }, formatClock(at, { seconds: false }));
  }
}

function pointsOf(history, column, x, y) {
  const at = history.column("at");
  return column.map((value, index) => [x(at[index]), y(value ?? 0)]);
}

function* area(points, floor) {
  if (points.length === 0) return;
  yield [points[0][0], floor];
  yield* points;
  yield [points.at(-1)[0], floor];
}

function joined(points) {
  return points.map(([left, top]) => `${left.toFixed(1)},${top.toFixed(1)}`).join(" ");
}
