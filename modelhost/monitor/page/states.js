/** Where a model stands, in words for people, and whether it is there, coming or away. */

const STATES = {
  queued: ["waits to load", "coming"],
  preparing: ["being prepared", "coming"],
  loading: ["loading", "coming"],
  trial: ["being tried", "coming"],
  ready: ["loaded", "there"],
  draining: ["leaving", "there"],
  unloading: ["leaving", "there"],
  unavailable: ["not loaded", "away"],
};

function of(state) {
  return STATES[String(state).toLowerCase()] ?? [String(state).toLowerCase(), "away"];
}

/** `loaded`, `not loaded`. */
export function stateInWords(state) {
  return of(state)[0];
}

/** `there`, `coming` or `away`. */
export function presence(state) {
  return of(state)[1];
}

/** Whether requests are answered without a load. */
export function isLoaded(state) {
  return String(state).toLowerCase() === "ready";
}
