/** The buttons that load or unload a model, and pin it. */

import { make, setAttribute, unseen } from "./dom.js";
import { presence } from "./states.js";

export class Actions {
  #load;
  #unload;
  #pin;

  /** `act(what)` is told `load`, `unload`, `pin` or `unpin`. */
  constructor(name, act) {
    this.name = name;
    this.#load = button("Load", name, () => act("load"));
    this.#unload = button("Unload", name, () => act("unload"));
    this.#pin = button("Pin", name, () => act(this.#pin.getAttribute("aria-pressed") === "true" ? "unpin" : "pin"));
    this.elements = [this.#load, this.#unload, this.#pin];
  }

  /** Shows what can be done with the model as it is. A button that does nothing now stays, and keeps the focus. */
  show(model, isBusy, mayManage) {
    const isThere = presence(model.state) === "there";
    swap(isThere ? this.#load : this.#unload, isThere ? this.#unload : this.#load);
    setAttribute(this.#pin, "aria-pressed", String(Boolean(model.pinned)));
    for (const one of this.elements) {
      setAttribute(one, "aria-disabled", String(isBusy || !mayManage));
      setAttribute(one, "title", mayManage ? null : "the key is not for this: it takes one for manage");
    }
  }
}

function swap(hidden, shown) {
  const hadFocus = document.activeElement === hidden;
  hidden.hidden = true;
  shown.hidden = false;
  if (hadFocus) shown.focus({ preventScroll: true });
}

function button(words, name, act) {
  const listener = (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") !== "true") act();
  };
  return make("button", { type: "button", on: { click: listener } }, words, unseen(` ${name}`));
}
