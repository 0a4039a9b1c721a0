/** The panel of one model, over the page: what it holds and did, what it takes and gives, and a form to ask it. */

import { Refused, askJson, modelPath } from "./access.js";
import { arrange, byId, make, setText } from "./dom.js";
import { InferForm } from "./form.js";
import { isLoaded, stateInWords } from "./states.js";
import { formatAgo, formatBytes, formatCount, formatDuration, formatRate } from "./units.js";

const FACTS = [
  ["memory", (model) => formatBytes(model.committed_bytes)],
  ["weights in page cache", (model) => weights(model)],
  ["requests", (model) => `${formatCount(model.requests)}, ${formatRate(model.requests_per_s)}/s`],
  ["failures", (model) => formatCount(model.failures)],
  ["median, p99", (model) => `${ms(model.p50_ms)}, ${ms(model.p99_ms)}`],
  ["in use, waiting", (model) => `${formatCount(model.leases)}, ${formatCount(model.waiting)}`],
  ["loads", (model) => `${formatCount(model.loads)}, in ${formatDuration(model.load_seconds)}`],
  ["cold starts", (model) => formatCount(model.cold_starts)],
  ["evictions", (model) => formatCount(model.evictions)],
  ["last use", (model, now) => formatAgo(model.last_used, now)],
  ["pinned", (model) => (model.pinned ? "yes" : "no")],
];

export class Panel {
  #dialog = byId("panel");
  #name = null;
  #form = null;
  #facts = make("dl", { class: "facts" });
  #actions = make("p", { class: "buttons" });
  #pairs = new Map();
  #actionsOf;

  /** `actionsOf(name)` gives the buttons that load, unload and pin. */
  constructor(actionsOf) {
    this.#actionsOf = actionsOf;
    byId("panel-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => {
      if (this.#dialog.open) return; // for another model already
      this.#form?.close();
      this.#form = this.#name = null;
    });
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // what is around it
    });
  }

  /** Opens it for a model. */
  async open(name, versions) {
    this.#form?.close();
    this.#form = null;
    this.#name = name;
    this.#pairs.clear();
    this.#actions.replaceChildren(...this.#actionsOf(name));
    setText(byId("panel-title"), name);
    const rest = make("div", {}, make("p", { class: "empty" }, "looking at the model"));
    byId("panel-body").replaceChildren(this.#actions, this.#facts, rest);
    this.show(versions, Date.now() / 1000);
    this.#dialog.showModal();
    const found = await askJson(modelPath("/v2/models", name)).catch((error) => error);
    if (this.#name !== name) return; // closed, or another one
    if (found instanceof Error) {
      const words = found instanceof Refused ? found.message : "The host does not answer.";
      rest.replaceChildren(make("p", { class: "problem", role: "alert" }, words));
      return;
    }
    this.#form = new InferForm(found);
    rest.replaceChildren(this.#form.element, made(found.outputs));
  }

  get name() {
    return this.#name;
  }

  /** Shows the figures of all versions of the model that are known. */
  show(versions, now) {
    if (this.#name === null) return;
    const model = versions.length === 0 ? null : versions.length === 1 ? versions[0] : sum(versions);
    const state = model?.state ?? "unavailable";
    setText(byId("panel-state"), stateInWords(state));
    byId("panel-state").className = `pill ${isLoaded(state) ? "good" : ""}`;
    if (model === null) {
      this.#facts.replaceChildren();
      return;
    }
    for (const [name, value] of FACTS) {
      if (!this.#pairs.has(name)) this.#pairs.set(name, make("div", {}, make("dt", {}, name), make("dd", {})));
      setText(this.#pairs.get(name).lastElementChild, value(model, now));
    }
    arrange(this.#facts, [...this.#pairs.values()]);
  }
}

function made(outputs) {
  const items = outputs.map(({ name, datatype, shape }) => make("li", {}, make("strong", {}, name), ` ${datatype} [${shape.join(", ")}]`));
  return make("div", {}, make("h3", {}, "Outputs"), make("ul", { class: "outputs" }, ...items));
}

/** Several versions as one: sums, the newest use, the longest times. */
function sum(versions) {
  const total = { ...versions[0] };
  for (const one of versions.slice(1)) {
    for (const [key, value] of Object.entries(one)) {
      if (typeof value !== "number") continue;
      total[key] = /^p\d+_ms$|^last_used$/.test(key) ? Math.max(total[key] ?? 0, value) : (total[key] ?? 0) + value;
    }
    if (isLoaded(one.state)) total.state = one.state;
    total.pinned ||= one.pinned;
  }
  return total;
}

function weights({ cached_bytes: cached, weights_bytes: all }) {
  return all === null || all === undefined || all === 0 ? "not mapped" : `${formatBytes(cached)} of ${formatBytes(all)}`;
}

function ms(value) {
  return value === null || value === undefined ? "–" : formatDuration(value / 1000);
}
