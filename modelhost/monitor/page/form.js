/** The form of one model: values for each input, the request as a line for a terminal, and the answer. */

import { askAny, keptKey, modelPath } from "./access.js";
import { announce } from "./announce.js";
import { readAnswer } from "./answers.js";
import { make, setText } from "./dom.js";
import { MADE_UP, bodyOf, checked, curlLine, firstShape, makeUp, readShape, written } from "./tensors.js";
import { counted, formatBytes, formatDuration } from "./units.js";

let made = 0;

export class InferForm {
  #name;
  #fields;
  #outputs;
  #version;
  #send = make("button", { type: "submit", class: "main" }, "Send");
  #problem = make("p", { class: "problem", role: "alert", hidden: true });
  #status = make("p", { class: "status", role: "status" });
  #answer = make("pre", { tabindex: "0", role: "region", "aria-label": "Answer", hidden: true });
  #line = make("pre", { tabindex: "0", role: "region", "aria-label": "The same request with curl" });
  #ending = null;

  constructor({ name, versions, inputs, outputs }) {
    this.#name = name;
    this.#outputs = outputs;
    this.#fields = inputs.map((input) => new Field(input, () => this.#showLine()));
    this.#version = make(
      "select",
      { id: `version-${++made}`, on: { change: () => this.#showLine() } },
      make("option", { value: "" }, "the newest"),
      ...versions.map((version) => make("option", { value: version }, version)),
    );
    this.element = this.#laidOut();
    this.#showLine();
  }

  /** Gives up a request that is under way. */
  close() {
    this.#ending?.abort();
  }

  #laidOut() {
    const copy = make("button", { type: "button", on: { click: () => this.#copy() } }, "Copy");
    const line = make("details", {}, make("summary", {}, "curl"), make("div", { class: "copied" }, this.#line, copy));
    return make(
      "form",
      { class: "infer", novalidate: true, on: { submit: (event) => this.#submit(event) } },
      make("h3", {}, "Send a request"),
      make("p", { class: "row" }, make("label", { for: this.#version.id }, "Version"), this.#version),
      ...this.#fields.map((field) => field.element),
      this.#problem,
      make("p", { class: "buttons" }, this.#send),
      this.#status,
      this.#answer,
      line,
    );
  }

  /** Returns what is sent, or null where a field is wrong, which then says so and is gone to. */
  #body() {
    const inputs = [];
    for (const field of this.#fields) {
      const input = field.read();
      if (input === null) return null;
      inputs.push(input);
    }
    return bodyOf(inputs, this.#outputs);
  }

  get #path() {
    const version = this.#version.value;
    return modelPath("/v2/models", this.#name, version === "" ? "/infer" : `/versions/${encodeURIComponent(version)}/infer`);
  }

  async #submit(event) {
    event.preventDefault();
    const body = this.#body();
    if (body === null || this.#ending !== null) return;
    this.#showLine(body);
    this.#ending = new AbortController();
    this.#send.disabled = true;
    this.#problem.hidden = true;
    this.#answer.hidden = true;
    setText(this.#status, "waiting for the answer");
    try {
      await this.#ask(body);
    } catch (error) {
      if (!this.#ending.signal.aborted) this.#fail(`No answer: ${error.message}`);
    } finally {
      this.#ending = null;
      this.#send.disabled = false;
    }
  }

  async #ask(body) {
    const began = performance.now();
    const headers =
      body.headerLength === null
        ? { "Content-Type": "application/json" }
        : { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(body.headerLength) };
    const response = await askAny(this.#path, { method: "POST", headers, body: body.blob, signal: this.#ending.signal });
    const { shown, size, isWhole } = await readAnswer(response);
    const took = formatDuration((performance.now() - began) / 1000);
    const length = isWhole ? formatBytes(size) : `more than ${formatBytes(size)}, cut`;
    const id = response.headers.get("x-request-id");
    setText(this.#status, `${response.status} ${response.ok ? "OK" : ""} in ${took}, ${length}${id === null ? "" : `, request ${id}`}`);
    this.#status.className = `status ${response.ok ? "good" : "critical"}`;
    setText(this.#answer, shown);
    this.#answer.hidden = false;
  }

  #fail(words) {
    setText(this.#status, "");
    setText(this.#problem, words);
    this.#problem.hidden = false;
  }

  #showLine(body = null) {
    const url = `${location.origin}${this.#path}`;
    const shown = body ?? bodyOf(this.#fields.map((field) => field.preview()), this.#outputs);
    setText(this.#line, curlLine(url, shown, keptKey() !== null));
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.#line.textContent);
      announce("Copied.");
    } catch {
      getSelection().selectAllChildren(this.#line); // where the browser does not let pages copy
    }
  }
}

/** One input: its shape, how its values come about, and the values where they are written. */
class Field {
  #input;
  #changed;
  #shape;
  #how;
  #text;
  #hint = make("p", { class: "faint hint" });
  #problem = make("p", { class: "problem", role: "alert", hidden: true });
  #values = null; // as JSON; made up once, so that what is shown is what is sent

  constructor(input, changed) {
    this.#input = input;
    this.#changed = changed;
    const id = `input-${++made}`;
    const change = { on: { change: () => this.#again() } };
    const initial = firstShape(input.shape).join(", ");
    this.#shape = make("input", { id: `${id}-shape`, type: "text", value: initial, autocomplete: "off", spellcheck: "false", ...change });
    const options = Object.entries({ ...MADE_UP, written: "as written below" });
    this.#how = make("select", { id: `${id}-how`, ...change }, ...options.map(([value, words]) => make("option", { value }, words)));
    this.#text = make("textarea", { id: `${id}-text`, rows: "3", spellcheck: "false", on: { input: () => this.#edited() } });
    this.#problem.id = `${id}-problem`;
    for (const element of [this.#shape, this.#text]) element.setAttribute("aria-describedby", this.#problem.id);
    this.element = make(
      "fieldset",
      {},
      make("legend", {}, make("strong", {}, input.name), ` ${input.datatype} [${input.shape.join(", ")}]`),
      make(
        "div",
        { class: "row" },
        make("label", { for: this.#shape.id }, "Shape"),
        this.#shape,
        make("label", { for: this.#how.id }, "Values"),
        this.#how,
        make("button", { type: "button", on: { click: () => this.#again() } }, "Again"),
      ),
      make("label", { for: this.#text.id }, "As JSON"),
      this.#text,
      this.#hint,
      this.#problem,
    );
    this.#fillIn();
  }

  /** Returns name, datatype, shape and data, or null and says what is wrong. */
  read() {
    try {
      const found = this.#read();
      this.#say("");
      return found;
    } catch (error) {
      this.#say(error.message);
      this.#text.focus();
      return null;
    }
  }

  /** The same for the line that shows the request, which need not be right yet. */
  preview() {
    try {
      return this.#read();
    } catch {
      return { ...this.#input, shape: firstShape(this.#input.shape), data: "[]" };
    }
  }

  #read() {
    const { name, datatype } = this.#input;
    return { name, datatype, shape: readShape(this.#shape.value), data: this.#values ?? checked(this.#text.value, datatype) };
  }

  #again() {
    this.#fillIn();
    this.#changed();
  }

  /** Makes values up anew, where they are not written by hand. */
  #fillIn() {
    if (this.#how.value === "written") {
      this.#values = null;
    } else {
      try {
        this.#makeUp();
        this.#say("");
      } catch (error) {
        this.#values = "[]";
        this.#say(error.message);
      }
    }
  }

  #makeUp() {
    const values = makeUp(this.#how.value, this.#input.datatype, readShape(this.#shape.value));
    const text = written(values);
    this.#values = JSON.stringify(values);
    this.#text.value = text ?? "";
    const count = counted(values.length, "value");
    setText(this.#hint, text === null ? `${count}, too many to be written out; what is written here is sent instead` : count);
  }

  #edited() {
    this.#how.value = "written";
    this.#values = null;
    setText(this.#hint, "as written");
    this.#changed();
  }

  #say(words) {
    setText(this.#problem, words);
    this.#problem.hidden = words === "";
    this.#text.setAttribute("aria-invalid", String(words !== ""));
  }
}
