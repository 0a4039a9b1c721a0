/** Sizes, durations and times as people read them: the same words as the host's messages use (modelhost/units.py). */

const MB = 2 ** 20;

/** `18.4 MB`, with 1 MB = 2**20 bytes. */
export function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  return Math.abs(bytes) < MB ? `${(bytes / 1024).toFixed(1)} KB` : `${(bytes / MB).toFixed(1)} MB`;
}

/** `52.4 ms`, `1.5 s`: to three digits. */
export function formatDuration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds <= 0) return "0 s";
  if (seconds < 0.9995) return `${digits(Math.max(seconds * 1000, 0.001), 3)} ms`;
  return seconds < 999.5 ? `${digits(seconds, 3)} s` : `${Math.round(seconds)} s`;
}

/** `40 s`, `12 min`, `3.5 h`, `8 d`: to two digits or so. */
export function formatSpan(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size) return `${seconds < 99.5 * size ? digits(seconds / size, 2) : Math.round(seconds / size)} ${unit}`;
  }
  return `${Math.round(Math.max(0, seconds))} s`;
}

/** `28,500`. */
export function formatCount(count) {
  return count === null || count === undefined ? "–" : Math.round(count).toLocaleString("en-US");
}

/** `1 model`, `1,200 models`. */
export function counted(count, noun) {
  return `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** Something a second: `0`, `0.2`, `14.5`, `28,500`. */
export function formatRate(rate) {
  if (rate === null || rate === undefined) return "–";
  if (rate >= 100) return formatCount(rate);
  return rate === 0 ? "0" : rate < 0.1 ? "< 0.1" : rate.toFixed(1);
}

/** The time of day here, of Unix seconds. */
export function formatClock(at, { seconds = true } = {}) {
  const when = new Date(at * 1000);
  const parts = [when.getHours(), when.getMinutes(), when.getSeconds()].slice(0, seconds ? 3 : 2);
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

/** `just now`, `12 s ago`. */
export function formatAgo(at, now) {
  return at === null || at === undefined ? "never" : now - at < 2 ? "just now" : `${formatSpan(now - at)} ago`;
}

/** One value by what its name says it is, as details of events are shown. */
export function formatNamed(name, value) {
  if (typeof value === "number") {
    if (name.endsWith("bytes_per_s")) return `${formatBytes(value)} a second`;
    if (name.endsWith("_bytes") || name === "bytes") return formatBytes(value);
    if (name.endsWith("_ms")) return formatDuration(value / 1000);
    if (name.endsWith("_s") || name.endsWith("_seconds")) return formatDuration(value);
    if (name.endsWith("_share")) return `${(value * 100).toFixed(1)} %`;
    return Number.isInteger(value) ? formatCount(value) : digits(value, 4);
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null || value === undefined) return "–";
  return Array.isArray(value) ? value.map((one) => formatNamed("", one)).join(", ") : shown(value);
}

/** `freed_bytes` as `freed`: the unit is with the figure. */
export function nameWithoutUnit(name) {
  return name.replace(/_(bytes|s|ms|seconds)(?=$|_per_s$)/, "").replaceAll("_", " ");
}

function digits(value, count) {
  const rounded = Number(value.toPrecision(count));
  return rounded >= 1000 ? String(Math.round(rounded)) : String(rounded);
}

function shown(value) {
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
