/** What the thresholds of memory go by, where they follow what is learnt, in words. */

import { arrange, make } from "./dom.js";
import { counted, formatBytes, formatClock, formatNamed, nameWithoutUnit } from "./units.js";

/** Shows a policy in a list and returns it as a sentence. */
export function showPolicy(list, policy) {
  arrange(list, [...rows(policy)]);
  const { last } = policy;
  const why = last ? `; the last at ${formatClock(last.at)}: ${last.reason}` : "";
  return `Thresholds are ${policy.name}, ${counted(policy.changes, "change")}${why}.`;
}

function* rows(policy) {
  for (const name of ["warning", "critical"]) {
    const [found, fixed] = [policy, policy.fixed].map((one) => formatBytes(one[`${name}_bytes`]));
    yield row(name, found === fixed ? `${found}, as if fixed` : `${found}, if fixed ${fixed}`);
  }
  yield row("warning may be", policy.warning_between.map(formatBytes).join(" to "));
  yield row("room for activations", formatBytes(policy.activation_room_bytes));
  for (const [name, value] of Object.entries(policy.learnt)) yield row(nameWithoutUnit(name), formatNamed(name, value));
}

function row(name, value) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, value));
}
