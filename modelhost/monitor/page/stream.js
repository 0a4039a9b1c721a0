/**
 * The host's stream of snapshots and events. It is read by fetch: an EventSource cannot send a key.
 *
 * It begins again by itself, later after each failure, and says what it is doing: `connecting`, `live`, `waiting` (with
 * the time of the next attempt), `paused`, or `refused` (with the refusal: only another key helps).
 */

import { ask, Refused } from "./access.js";

const SILENCE_MS = 15_000; // the host sends something each second
const LONGEST_WAIT_S = 30;
const LONGEST_MESSAGE = 8 << 20;

export class Stream {
  #ending = null;
  #lastId = null;
  #tryNow = () => {};

  constructor({ onSnapshot, onEvent, onOpen, onState }) {
    Object.assign(this, { onSnapshot, onEvent, onOpen, onState });
  }

  /** Begins, or begins again with another key. */
  start() {
    this.#ending?.abort();
    this.#ending = new AbortController();
    this.#run(this.#ending.signal);
  }

  /** Ends it; the host then does nothing for this page. */
  pause() {
    this.#ending?.abort();
    this.#ending = null;
    this.onState({ kind: "paused" });
  }

  get isRunning() {
    return this.#ending !== null;
  }

  /** Does not wait for the next attempt. */
  tryNow() {
    this.#tryNow();
  }

  /** Forgets which event came last: they are counted anew by another process. */
  forgetEvents() {
    this.#lastId = null;
  }

  async #run(ended) {
    for (let failures = 0; !ended.aborted; failures += 1) {
      let reason = "the host ended the stream";
      this.onState({ kind: "connecting" });
      try {
        for await (const message of this.#messages(ended)) {
          if (ended.aborted) return;
          failures = 0;
          this.#deliver(message);
        }
      } catch (error) {
        if (ended.aborted) return;
        if (error instanceof Refused && error.isAboutKey) {
          this.onState({ kind: "refused", refusal: error });
          return;
        }
        reason = error instanceof Refused ? error.message : "the host cannot be reached";
      }
      const waitS = Math.min(LONGEST_WAIT_S, 2 ** failures) * (0.8 + 0.4 * Math.random());
      this.onState({ kind: "waiting", until: Date.now() + waitS * 1000, reason });
      await this.#wait(waitS * 1000, ended);
    }
  }

  async *#messages(ended) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENCE_MS);
    const headers = this.#lastId === null ? {} : { "Last-Event-ID": this.#lastId };
    const signal = AbortSignal.any([ended, silence.signal]);
    try {
      const response = await ask("/monitor/stream?interval_s=1", { headers, signal });
      this.onOpen();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new Parser();
      for (let piece; !(piece = await reader.read()).done; ) {
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MS);
        yield* parser.feed(piece.value);
      }
    } finally {
      clearTimeout(timer);
      silence.abort(); // whoever stops reading lets the host know
    }
  }

  #deliver({ event, data, id }) {
    if (event === "snapshot") {
      this.onState({ kind: "live" });
      this.onSnapshot(JSON.parse(data));
    } else if (event === "memory") {
      if (id !== null) this.#lastId = id;
      this.onEvent({ id: id === null ? null : Number(id), ...JSON.parse(data) });
    }
  }

  #wait(ms, ended) {
    return new Promise((resolve) => {
      const over = () => {
        clearTimeout(timer);
        ended.removeEventListener("abort", over);
        resolve();
      };
      const timer = setTimeout(over, ms);
      ended.addEventListener("abort", over);
      this.#tryNow = over;
    });
  }
}

/** Server-sent events out of pieces of text. */
export class Parser {
  #rest = "";

  *feed(text) {
    const parts = (this.#rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = parts.pop();
    if (this.#rest.length > LONGEST_MESSAGE) throw new Error("a message without an end");
    for (const part of parts) {
      const message = parsed(part);
      if (message.data !== "") yield message;
    }
  }
}

function parsed(part) {
  const message = { event: "message", data: "", id: null };
  for (const line of part.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue; // a comment, or nothing that we are sent
    const value = line.slice(colon + 1).replace(/^ /, "");
    const field = line.slice(0, colon);
    if (field === "data") message.data += message.data === "" ? value : `\n${value}`;
    else if (field === "event" || field === "id") message[field] = value;
  }
  return message;
}
