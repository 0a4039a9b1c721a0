/** The row of figures: what is asked and how fast it is answered, and what the pool has done since the start. */

import { arrange, make, setText } from "./dom.js";
import { counted, formatBytes, formatCount, formatDuration, formatRate } from "./units.js";

/** Name, its figure, and what stands below it. */
const TILES = [
  ["requests a second", ({ totals }) => formatRate(totals.requests_per_s), ({ totals }) => `${formatCount(totals.requests)} in all`],
  ["p99", ({ totals }) => time(totals.p99_ms), ({ totals }) => `median ${time(totals.p50_ms)}`],
  [
    "failures a second",
    ({ totals }) => formatRate(totals.failures_per_s),
    ({ totals }) => `${formatCount(totals.failures)} in all`,
    ({ totals }) => totals.failures_per_s > 0,
  ],
  ["under way", ({ totals }) => formatCount(totals.in_flight), ({ totals }) => `${formatCount(totals.waiting)} waiting`],
  ["loads", ({ totals }) => formatCount(totals.loads), ({ totals }) => counted(totals.cold_starts, "cold start")],
  ["evictions", ({ totals }) => formatCount(totals.evictions), ({ totals }) => counted(totals.refusals, "refusal")],
  ["weights cached", ({ memory }) => cached(memory.page_cache), ({ memory }) => pressure(memory.page_cache), ({ memory }) => memory.page_cache.is_thrashing],
];

export class Figures {
  #list;
  #tiles = TILES.map(([name]) => make("div", {}, make("dt", {}, name), make("dd", {}), make("dd", { class: "faint" })));

  constructor(list) {
    this.#list = list;
  }

  /** Shows a snapshot. */
  show(snapshot) {
    TILES.forEach(([, figure, below, isBad = () => false], index) => {
      const [, first, second] = this.#tiles[index].children;
      setText(first, figure(snapshot));
      setText(second, below(snapshot));
      this.#tiles[index].classList.toggle("bad", Boolean(isBad(snapshot)));
    });
    arrange(this.#list, this.#tiles);
  }
}

function time(ms) {
  return ms === null || ms === undefined ? "–" : formatDuration(ms / 1000);
}

function cached({ cached_share: share, weights_bytes: weights }) {
  return share === null || weights === 0 ? "–" : `${Math.round(share * 100)} %`;
}

function pressure({ is_thrashing: isThrashing, refaulted_bytes_per_s: refaulted, psi_some_avg10: psi }) {
  if (isThrashing) return `thrashing: ${formatBytes(refaulted)}/s read again`;
  if (refaulted > 0) return `${formatBytes(refaulted)}/s read again`;
  return psi === null || psi === undefined ? "no pressure known" : `pressure ${psi} %`;
}
