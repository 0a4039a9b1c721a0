/** What the host can be told to do: load, unload, pin, clean up. Each says in words what came of it. */

import { askJson, modelPath } from "./access.js";
import { counted, formatBytes, formatDuration } from "./units.js";

/** Loads a model. */
export async function load(name) {
  const began = performance.now();
  const loaded = await askJson(modelPath("/v2/repository/models", name, "/load"), { method: "POST" });
  const took = formatDuration((performance.now() - began) / 1000);
  return `${name} is loaded after ${took}; it holds ${formatBytes(loaded.committed_bytes)}.`;
}

/** Unloads all versions of a model. */
export async function unload(name) {
  const { recovered } = await askJson(modelPath("/v2/repository/models", name, "/unload"), { method: "POST" });
  return `${name} is unloaded; ${gaveBack(recovered)}.`;
}

/** Pins a model until the host ends, or takes its pin away. */
export async function pin(name, pinned) {
  const path = modelPath("/monitor/models", name, "/pin");
  await askJson(path, { method: "POST", body: JSON.stringify({ pinned }) });
  return pinned ? `${name} is pinned until the host ends: it does not leave to make room.` : `${name} is not pinned any more.`;
}

/** Unloads everything idle. */
export async function cleanUp() {
  const { recovered } = await askJson("/memory/cleanup", { method: "POST" });
  if (recovered === null) return "Nothing was idle, so nothing left.";
  const left = counted(recovered.victims.length, "model");
  return `${left} left in ${formatDuration(recovered.duration_s)}; ${gaveBack([recovered])}.`;
}

function gaveBack(recovered) {
  const freed = recovered.reduce((sum, one) => sum + one.freed_bytes, 0);
  const expected = recovered.reduce((sum, one) => sum + one.expected_bytes, 0);
  return `${formatBytes(Math.max(0, freed))} came back of ${formatBytes(expected)} expected`;
}
