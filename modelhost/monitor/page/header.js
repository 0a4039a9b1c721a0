/** The head of the page: is the host ready, how near is memory to its limit, what is wrong, and is this up to date. */

import { announce } from "./announce.js";
import { arrange, byId, make, setText } from "./dom.js";
import { formatBytes, formatClock, formatSpan } from "./units.js";

export class Header {
  #level = null;
  #readiness = null;
  #conditions = new Map();
  #state = { kind: "connecting" };
  #at = null; // of the last snapshot, by this machine's clock

  /** Shows a snapshot. */
  show({ host, memory }) {
    this.#at = Date.now() / 1000;
    setText(byId("version"), host.version);
    byId("version").title = `up for ${formatSpan(host.uptime_s)}, process ${host.pid}`;
    this.#showReadiness(host);
    this.#showLevel(memory);
    this.#showConditions(memory.conditions);
    setText(byId("memory-sentence"), sentence(memory));
    document.title = memory.level === "normal" ? "modelhost" : `${memory.level}: modelhost`;
    this.tick();
  }

  /** Shows what the stream is doing. */
  showState(state) {
    this.#state = state;
    const banner = byId("banner");
    const old = this.#at === null ? "" : ` What is shown is of ${formatClock(this.#at)}.`;
    if (state.kind === "waiting") setText(byId("banner-text"), `No figures come: ${state.reason}.${old}`);
    if (state.kind === "refused") setText(byId("banner-text"), `${sentenceOf(state.refusal.message)} Memory, statistics and events are not shown.`);
    banner.hidden = state.kind !== "waiting" && state.kind !== "refused" && !(state.kind === "connecting" && !banner.hidden);
    byId("try-now").hidden = state.kind !== "waiting";
    byId("enter-key").hidden = state.kind !== "refused";
    document.body.classList.toggle("old", this.#at !== null && !["live", "connecting"].includes(state.kind));
    if (state.kind === "waiting" && this.#readiness !== "no answer") {
      this.#readiness = "no answer";
      this.#pill(byId("readiness"), "no answer", "critical");
      announce("The host does not answer.");
    }
    this.tick();
  }

  /** Says how old the figures are; called each second. */
  tick() {
    const now = Date.now();
    const age = this.#at === null ? null : now / 1000 - this.#at;
    const { kind, until } = this.#state;
    const words = {
      connecting: age === null ? "connecting" : `connecting; figures of ${formatClock(this.#at)}`,
      live: age !== null && age > 5 ? `nothing new for ${formatSpan(age)}` : `live, ${age === null ? "" : formatClock(this.#at)}`,
      waiting: `trying again in ${Math.max(0, Math.ceil((until - now) / 1000))} s`,
      paused: `paused; figures of ${age === null ? "no time" : formatClock(this.#at)}`,
      refused: "no figures",
    };
    setText(byId("connection"), words[kind]);
    byId("connection").classList.toggle("is-old", kind !== "live" || age > 5);
  }

  #showReadiness({ ready, draining }) {
    const state = draining ? "draining" : ready ? "ready" : "starting";
    if (state === this.#readiness) return;
    if (this.#readiness !== null) announce(`The host is ${state}.`);
    this.#readiness = state;
    this.#pill(byId("readiness"), state, state === "ready" ? "good" : "warning");
  }

  #showLevel(memory) {
    if (memory.level === this.#level) return;
    if (this.#level !== null) announce(`Memory is ${memory.level}: ${sentence(memory)}.`);
    this.#level = memory.level;
    const pill = byId("level");
    pill.hidden = false;
    this.#pill(pill, `memory ${memory.level}`, memory.level === "normal" ? "good" : memory.level);
  }

  #showConditions(conditions) {
    const names = new Set(conditions.map(({ name }) => name));
    for (const name of this.#conditions.keys()) if (!names.has(name)) this.#conditions.delete(name);
    for (const { name, text, since } of conditions) {
      if (!this.#conditions.has(name)) {
        const when = since === undefined ? "" : ` since ${formatClock(since)}`;
        this.#conditions.set(name, make("li", {}, make("strong", {}, name.replaceAll("_", " ")), `${when}: `, make("span", {})));
        announce(`${name.replaceAll("_", " ")}: ${text}`);
      }
      setText(this.#conditions.get(name).lastElementChild, text);
    }
    arrange(byId("conditions"), [...this.#conditions.values()]);
    byId("conditions").hidden = conditions.length === 0;
  }

  #pill(element, words, style) {
    setText(element, words);
    element.className = `pill ${style}`;
  }
}

function sentence({ usage_bytes: usage, limit_bytes: limit, limit_source: source, available_bytes: available }) {
  return `${formatBytes(usage)} of ${formatBytes(limit)} (${source}) in use, ${formatBytes(available)} for loads`;
}

/** One of the host's messages as a sentence. */
function sentenceOf(message) {
  const words = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(words) ? words : `${words}.`;
}
