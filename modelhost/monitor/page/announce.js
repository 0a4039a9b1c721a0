/** What is said aloud by screen readers, and the line that tells what came of an action. */

import { byId, setText } from "./dom.js";

const SHOWN_MS = 12_000;

let timer = 0;

/** Has screen readers say it, when they have time. */
export function announce(words) {
  setText(byId("announcement"), words);
}

/** Shows it at the foot of the page for a while; a failure until it is closed. */
export function tell(words, { isFailure = false } = {}) {
  const notice = byId("notice");
  clearTimeout(timer);
  // In front of an open dialog, which would otherwise cover it and keep screen readers away.
  (document.querySelector("dialog[open]") ?? document.body).append(notice);
  notice.classList.toggle("failure", isFailure);
  notice.hidden = false;
  setText(byId("notice-text"), words);
  if (!isFailure) timer = setTimeout(hide, SHOWN_MS);
}

function hide() {
  byId("notice").hidden = true;
  setText(byId("notice-text"), "");
}

/** Connects the line's button. */
export function openNotices() {
  byId("notice-close").addEventListener("click", hide);
}
