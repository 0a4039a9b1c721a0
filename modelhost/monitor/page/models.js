/** The table of models: those that are loaded or were asked for, and all of the repository where somebody looks for one. */

import { askJson } from "./access.js";
import { Actions } from "./actions.js";
import { arrange, byId, make, setAttribute, setText, unseen } from "./dom.js";
import { isLoaded, presence, stateInWords } from "./states.js";
import { formatAgo, formatBytes, formatCount, formatDuration, formatRate } from "./units.js";

const PAGE = 50;
const TYPING_MS = 200;

/** Key, heading, what is shown, what it is sorted by; columns with a class leave where there is no room. */
const COLUMNS = [
  { key: "name", heading: "Model", value: (model) => model.name, isName: true },
  { key: "state", heading: "State", text: (model) => stateInWords(model.state), value: ({ state }) => stateInWords(state) },
  { key: "committed", heading: "Memory", text: (model) => (presence(model.state) === "away" ? "–" : formatBytes(model.committed_bytes)), value: (model) => model.committed_bytes },
  { key: "cached", heading: "Weights in cache", text: (model) => weights(model), value: (model) => model.cached_bytes, style: "wide" },
  { key: "rate", heading: "Requests/s", text: (model) => formatRate(model.requests_per_s), value: (model) => model.requests_per_s },
  { key: "p50", heading: "p50", text: (model) => ms(model.p50_ms), value: (model) => model.p50_ms, style: "wide" },
  { key: "p99", heading: "p99", text: (model) => ms(model.p99_ms), value: (model) => model.p99_ms },
  { key: "failures", heading: "Failures", text: (model) => formatCount(model.failures), value: (model) => model.failures, style: "wide" },
  { key: "used", heading: "Last use", text: (model, now) => (model.last_used === undefined ? "–" : formatAgo(model.last_used, now)), value: (model) => model.last_used, style: "wide" },
];

export class Models {
  #models = []; // of the last snapshot
  #known = 0;
  #now = 0;
  #found = []; // of the repository
  #total = null; // how many the repository has of what is looked for; null where only the snapshot is shown
  #rows = new Map();
  #sortedBy = { key: "name", isDescending: false };
  #busy = new Set();
  #mayManage = true;
  #search = byId("search");
  #whole = byId("whole");
  #elsewhere = null; // the buttons of the panel
  #onOpen;
  #act;
  #typing = 0;

  /** `onOpen(name)` opens the panel; `act(what, name)` does something and returns when it is done. */
  constructor({ onOpen, act }) {
    this.#onOpen = onOpen;
    this.#act = act;
    this.#heads();
    this.#search.addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.#lookUp(), TYPING_MS);
      this.#draw();
    });
    byId("search-form").addEventListener("submit", (event) => event.preventDefault());
    this.#whole.addEventListener("change", () => this.#lookUp());
    byId("models-more").addEventListener("click", () => this.#lookUp(this.#found.length));
  }

  /** Shows a snapshot. */
  show({ at, models, models_known: known }) {
    if (this.#now === 0 && known <= PAGE) {
      this.#whole.checked = true; // all of them have room
      this.#lookUp();
    }
    this.#models = models;
    this.#known = known;
    this.#now = at;
    this.#draw();
  }

  /** Shows names alone, where the key is for no more. */
  showNames(names) {
    this.#known = names.length;
    this.#models = names.map((name) => ({ name, state: "not known" }));
    this.#draw();
  }

  /** The versions of a model that the last snapshot has. */
  versions(name) {
    return this.#models.filter((model) => model.name === name && model.version !== undefined);
  }

  /** Notes that the key is not for loading, unloading and pinning. */
  forbidManaging(reason) {
    this.#mayManage = reason === null;
    setText(byId("cleanup"), "Clean up");
    setAttribute(byId("cleanup"), "title", reason);
    this.#draw();
  }

  /** Buttons that load or unload a model, and pin it, for elsewhere on the page; those before are not kept right. */
  actions(name) {
    this.#elsewhere = new Actions(name, (what) => this.#do(what, name));
    this.#showElsewhere();
    return this.#elsewhere.elements;
  }

  #showElsewhere() {
    const name = this.#elsewhere?.name;
    if (name === undefined) return;
    const found = this.#models.filter((one) => one.name === name);
    const model = found.find(({ state }) => isLoaded(state)) ?? found[0] ?? this.#found.find((one) => one.name === name);
    this.#elsewhere.show(model ?? { state: "unavailable" }, this.#busy.has(name), this.#mayManage);
  }

  // --- rows ----------------------------------------------------------------------------------------

  #heads() {
    const heads = COLUMNS.map(({ key, heading, style }) =>
      make("th", { scope: "col", class: style, "data-key": key }, make("button", { type: "button", on: { click: () => this.#sortBy(key) } }, heading)),
    );
    arrange(byId("models-head"), [...heads, make("th", { scope: "col" }, unseen("Actions"))]);
    this.#showOrder();
  }

  #sortBy(key) {
    const isDescending = this.#sortedBy.key === key ? !this.#sortedBy.isDescending : key !== "name" && key !== "state";
    this.#sortedBy = { key, isDescending };
    this.#showOrder();
    this.#draw();
  }

  #showOrder() {
    for (const head of byId("models-head").children) {
      const isSorted = head.dataset.key === this.#sortedBy.key;
      setAttribute(head, "aria-sort", isSorted ? (this.#sortedBy.isDescending ? "descending" : "ascending") : null);
    }
  }

  #draw() {
    const looked = this.#search.value.trim().toLowerCase();
    const fits = ({ name }) => name.toLowerCase().includes(looked);
    const own = this.#models.filter(fits);
    const names = new Set(own.map(({ name }) => name));
    const others = this.#total === null ? [] : this.#found.filter((model) => !names.has(model.name) && fits(model));
    const shown = this.#sorted([...own, ...others]);
    const rows = shown.map((model) => {
      const row = this.#rowOf(model.name, model.version ?? "");
      row.show(model, this.#now, this.#busy.has(model.name), this.#mayManage);
      return row.element;
    });
    arrange(byId("models-body"), rows);
    this.#forget(shown);
    this.#showElsewhere();
    this.#count(own, shown.length, looked);
  }

  #sorted(models) {
    const { key, isDescending } = this.#sortedBy;
    const { value } = COLUMNS.find((column) => column.key === key);
    const sign = isDescending ? -1 : 1;
    const compare = (one, other) => {
      const [first, second] = [value(one) ?? null, value(other) ?? null];
      if (first === second || (first === null && second === null)) return 0;
      if (first === null) return 1; // what is not known comes last, either way
      if (second === null) return -1;
      return sign * (typeof first === "string" ? first.localeCompare(second, "en", { numeric: true }) : first - second);
    };
    const byName = (one, other) => one.name.localeCompare(other.name, "en", { numeric: true }) || String(one.version).localeCompare(String(other.version), "en", { numeric: true });
    return models.sort((one, other) => compare(one, other) || byName(one, other));
  }

  #rowOf(name, version) {
    const key = JSON.stringify([name, version]);
    if (!this.#rows.has(key)) this.#rows.set(key, new Row(name, version, this.#onOpen, (what) => this.#do(what, name)));
    return this.#rows.get(key);
  }

  #forget(shown) {
    if (this.#rows.size < 2 * shown.length + 100) return;
    const kept = new Set(shown.map((model) => JSON.stringify([model.name, model.version ?? ""])));
    for (const key of this.#rows.keys()) if (!kept.has(key)) this.#rows.delete(key);
  }

  async #do(what, name) {
    if (this.#busy.has(name)) return;
    this.#busy.add(name);
    this.#draw();
    try {
      await this.#act(what, name);
    } finally {
      this.#busy.delete(name);
      this.#draw();
    }
  }

  #count(own, shown, looked) {
    const loaded = this.#models.filter(({ state }) => isLoaded(state)).length;
    setText(byId("models-count"), `${formatCount(loaded)} loaded, ${formatCount(this.#known)} in the repository`);
    const empty = byId("models-empty");
    empty.hidden = shown > 0 && loaded > 0;
    if (this.#known === 0) setText(empty, "The repository has no models. Put NAME.onnx or NAME/1/model.onnx into the models' directory; it is found when somebody asks for it.");
    else if (shown === 0 && looked !== "") setText(empty, `No model has “${this.#search.value.trim()}” in its name.`);
    else setText(empty, "No model is loaded: a model loads when it is asked for. Open one to send it a request, or load it.");
    byId("models-more").hidden = this.#total === null || this.#found.length >= this.#total;
  }

  // --- the repository ------------------------------------------------------------------------------

  async #lookUp(offset = 0) {
    const looked = this.#search.value.trim();
    if (looked === "" && !this.#whole.checked) {
      this.#total = null;
      this.#draw();
      return;
    }
    const query = new URLSearchParams({ search: looked, offset: String(offset), limit: String(PAGE) });
    let answer;
    try {
      answer = await askJson(`/monitor/models?${query}`);
    } catch {
      return; // that the host does not answer is said above, and who may not ask sees the names it may see
    }
    if (this.#search.value.trim() !== looked) return;
    this.#total = answer.total;
    const entries = answer.models.map(({ name, versions, state, pinned }) => ({ name, versions, state, pinned }));
    this.#found = offset === 0 ? entries : [...this.#found, ...entries];
    this.#draw();
  }
}

/** One row, whose cells are changed where their words change. */
class Row {
  #cells = COLUMNS.slice(1).map(({ style }) => make("td", { class: style }, ""));
  #actions;

  constructor(name, version, onOpen, act) {
    const open = make("button", { type: "button", class: "name", on: { click: () => onOpen(name) } }, name);
    const head = make("th", { scope: "row" }, open, version === "" ? null : make("span", { class: "faint" }, ` ${version}`));
    this.#actions = new Actions(name, act);
    this.element = make("tr", {}, head, ...this.#cells, make("td", { class: "row-actions" }, ...this.#actions.elements));
  }

  show(model, now, isBusy, mayManage) {
    const isKnown = model.requests !== undefined;
    COLUMNS.slice(1).forEach(({ text }, index) => setText(this.#cells[index], isKnown || index === 0 ? text(model, now) : "–"));
    setAttribute(this.element, "class", presence(model.state));
    this.#actions.show(model, isBusy, mayManage);
  }
}

function weights({ cached_bytes: cached, weights_bytes: all }) {
  return all ? `${formatBytes(cached)} of ${formatBytes(all)}` : "–";
}

function ms(value) {
  return value === null || value === undefined ? "–" : formatDuration(value / 1000);
}
