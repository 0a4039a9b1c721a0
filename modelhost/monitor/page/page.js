/** The page put together: the stream feeds the views, and buttons tell the host what to do. */

import { Refused, askJson, keepKey, keptKey } from "./access.js";
import { announce, openNotices, tell } from "./announce.js";
import { MemoryBar } from "./bar.js";
import { byId, setAttribute, setText } from "./dom.js";
import { Events } from "./events.js";
import { Figures } from "./figures.js";
import { inWords } from "./forecast.js";
import { Header } from "./header.js";
import { History } from "./history.js";
import * as host from "./host.js";
import { Models } from "./models.js";
import { Panel } from "./panel.js";
import { Plots } from "./plots.js";
import { showPolicy } from "./policy.js";
import { isLoaded } from "./states.js";
import { Stream } from "./stream.js";
import { counted, formatBytes } from "./units.js";

const NO_KEY = "This host asks for an API key.";
const ACTIONS = {
  load: host.load,
  unload: host.unload,
  pin: (name) => host.pin(name, true),
  unpin: (name) => host.pin(name, false),
};

const header = new Header();
const bar = new MemoryBar(byId("bar"), byId("legend"));
const figures = new Figures(byId("tiles"));
const history = new History();
const plots = new Plots(byId("plots"), history);
const events = new Events(byId("events-list"));
const models = new Models({ onOpen: (name) => panel.open(name, models.versions(name)), act: (what, name) => act(() => ACTIONS[what](name)) });
const panel = new Panel((name) => models.actions(name));
const stream = new Stream({ onSnapshot, onEvent: (event) => events.add([event]), onOpen: () => loadHistory(), onState });

let latest = null;
let isPaused = false;

// --- what comes ----------------------------------------------------------------------------------------

function onSnapshot(snapshot) {
  if (latest !== null && isAnotherProcess(latest, snapshot)) {
    stream.forgetEvents();
    events.clear();
    loadHistory();
    announce("The host was started again.");
  }
  const isFirst = latest === null;
  latest = snapshot;
  const isNewSample = history.add(snapshot);
  header.show(snapshot);
  bar.show(snapshot);
  figures.show(snapshot);
  setText(byId("forecast"), inWords(snapshot.memory.forecast, snapshot.memory.level));
  events.add(snapshot.events);
  models.show(snapshot);
  panel.show(models.versions(panel.name), snapshot.at);
  byId("policy").hidden = snapshot.policy === null;
  if (snapshot.policy !== null) setText(byId("policy-sentence"), showPolicy(byId("policy-list"), snapshot.policy));
  if (isFirst || isNewSample) plots.show(snapshot.memory);
}

function isAnotherProcess(before, now) {
  const began = ({ at, host: { uptime_s: uptime } }) => at - uptime;
  return before.host.pid !== now.host.pid || began(now) - began(before) > 5;
}

async function loadHistory() {
  try {
    history.take(await askJson("/monitor/history"));
    plots.draw();
  } catch (error) {
    if (!(error instanceof Refused)) return; // the stream says that the host cannot be reached
    tell(`No history: ${error.message}`, { isFailure: true });
  }
}

function onState(state) {
  header.showState(state);
  if (state.kind !== "refused") return;
  if (state.refusal.status === 401) askForKey(keptKey() === null ? NO_KEY : state.refusal.message);
  else showNames();
}

/** What a key may see that is not for observing: which models there are. */
async function showNames() {
  try {
    models.showNames((await askJson("/v1/models")).models);
  } catch {
    // what is missing is said above already
  }
}

// --- what is done --------------------------------------------------------------------------------------

async function act(work) {
  try {
    const said = await work();
    await look(); // so that what is said and what is shown agree, and a second press means what it says
    tell(said);
  } catch (error) {
    if (!(error instanceof Refused)) {
      tell("The host does not answer.", { isFailure: true });
      return;
    }
    if (error.status === 403) models.forbidManaging(error.message);
    if (error.status === 401) askForKey(error.message);
    tell(error.message, { isFailure: true });
  }
}

/** Shows the host as it is now: the stream's next snapshot may be a second away. Where there is none to be had, the
 * stream says why. */
async function look() {
  const snapshot = await askJson("/monitor").catch(() => null);
  if (snapshot !== null && latest !== null && snapshot.at >= latest.at) onSnapshot(snapshot);
}

function askForKey(reason) {
  setText(byId("key-reason"), reason);
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

function useKey() {
  const key = byId("key").value.trim();
  byId("key").value = "";
  if (key === "") return;
  keepKey(key);
  showKey();
  models.forbidManaging(null);
  stream.start();
}

function forgetKey() {
  keepKey(null);
  location.reload(); // nothing of what the key has shown stays
}

function confirmCleanUp() {
  const idle = (latest?.models ?? []).filter(({ state, leases, pinned }) => isLoaded(state) && leases === 0 && !pinned);
  const bytes = idle.reduce((sum, model) => sum + model.committed_bytes, 0);
  const count = counted(idle.length, "model");
  setText(byId("cleanup-text"), `${count} idle and not pinned, with ${formatBytes(bytes)}. They leave now; each loads again when it is asked for.`);
  byId("cleanup-dialog").showModal();
}

// --- looking, or not -----------------------------------------------------------------------------------

/** Nobody looks at a page that is hidden or paused, and then the host does nothing for it. */
function follow() {
  const isWanted = !isPaused && !document.hidden;
  if (isWanted && !stream.isRunning) stream.start();
  if (!isWanted && stream.isRunning) stream.pause();
}

function togglePause() {
  isPaused = !isPaused;
  setAttribute(byId("pause"), "aria-pressed", String(isPaused));
  follow();
}

/** A link sends no key: where one is used, those at the foot would lead to refusals. */
function showKey() {
  byId("forget-key").hidden = keptKey() === null;
  for (const link of document.querySelectorAll("footer a")) link.hidden = keptKey() !== null;
}

function open() {
  openNotices();
  showKey();
  byId("pause").addEventListener("click", togglePause);
  byId("try-now").addEventListener("click", () => stream.tryNow());
  byId("enter-key").addEventListener("click", () => askForKey(keptKey() === null ? NO_KEY : "Another key may be for more."));
  byId("forget-key").addEventListener("click", forgetKey);
  byId("cleanup").addEventListener("click", confirmCleanUp);
  byId("cleanup-cancel").addEventListener("click", () => byId("cleanup-dialog").close());
  byId("cleanup-do").addEventListener("click", () => {
    byId("cleanup-dialog").close();
    act(host.cleanUp);
  });
  byId("key-form").addEventListener("submit", useKey);
  byId("key-later").addEventListener("click", () => byId("key-dialog").close());
  document.addEventListener("visibilitychange", follow);
  setInterval(() => header.tick(), 1000);
  follow();
}

open();
