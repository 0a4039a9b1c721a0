/** Requests to the host, with the key where there is one. The key lives as long as the tab, and goes nowhere else. */

const KEPT_AS = "modelhost-key";
const PATIENCE_MS = 180_000;

/** What the host refused, in its own words. */
export class Refused extends Error {
  constructor(status, body, requestId) {
    super(typeof body?.error === "string" ? body.error : `the host answered ${status}`);
    this.status = status;
    this.body = body;
    this.requestId = requestId;
  }

  /** Whether it is about who asks. */
  get isAboutKey() {
    return this.status === 401 || this.status === 403;
  }
}

/** The key of this tab, or null. */
export function keptKey() {
  return sessionStorage.getItem(KEPT_AS);
}

/** Keeps a key for this tab; null forgets it. */
export function keepKey(key) {
  if (key === null) sessionStorage.removeItem(KEPT_AS);
  else sessionStorage.setItem(KEPT_AS, key);
}

/** Asks the host, and returns its answer whatever its status. */
export function askAny(path, { method = "GET", headers = {}, body, signal = AbortSignal.timeout(PATIENCE_MS) } = {}) {
  const key = keptKey();
  const sent = key === null ? headers : { ...headers, Authorization: `Bearer ${key}` };
  return fetch(path, { method, headers: sent, body, signal, credentials: "omit", cache: "no-store", redirect: "error" });
}

/** Asks the host, and returns an answer that is none of its errors. Throws Refused. */
export async function ask(path, options) {
  const response = await askAny(path, options);
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body, response.headers.get("x-request-id"));
}

/** The same, and returns the JSON of the answer. */
export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

/** The path of a model, whose name may be anything. */
export function modelPath(before, name, after = "") {
  return `${before}/${encodeURIComponent(name)}${after}`;
}
