/** What is to come of memory, in words. */

import { formatBytes, formatSpan } from "./units.js";

/** The forecast as one or two sentences. */
export function inWords(forecast, level) {
  if (forecast === null) return "";
  const { growth, place, to_warning_s: warning, to_critical_s: critical } = forecast;
  if (growth === null) return "Nothing is known to grow.";
  const grows =
    `What no model holds grows by ${formatBytes(growth.bytes_per_s * 3600)} an hour ` +
    `(${formatBytes(growth.seen_bytes)} in ${formatSpan(growth.seen_s)}); it sits in ${place ?? "an unknown place"}.`;
  const times = [];
  if (warning !== null && level === "normal") times.push(`warning in ${span(warning)}`);
  if (critical !== null) times.push(`critical in ${span(critical)}, with all models gone that can leave`);
  return times.length === 0 ? grows : `${grows} It reaches ${times.join(", and ")}.`;
}

function span({ expected, soonest, latest }) {
  return `${formatSpan(expected)} (${formatSpan(soonest)} to ${formatSpan(latest)})`;
}
