/** Elements made and changed by code. Words only ever become text nodes: names and errors are other people's. */

const SVG = "http://www.w3.org/2000/svg";

/** The element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A new element: attributes by name, `on` with listeners, then children: elements, or words. */
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same in a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) setAttribute(element, name, value);
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets an attribute; true is one without a value, false and null are none. Touches nothing that is so already. */
export function setAttribute(element, name, value) {
  const text = value === true ? "" : value === false || value === null || value === undefined ? null : String(value);
  if (element.getAttribute(name) === text) return;
  if (text === null) element.removeAttribute(name);
  else element.setAttribute(name, text);
}

/** Has an element say `text`, and touches nothing where it does: what is selected stays so. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Has `parent` hold these elements in this order, moving as few as that takes: one that is moved loses its focus. */
export function arrange(parent, elements) {
  const wanted = new Set(elements);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  const focused = document.activeElement;
  elements.forEach((element, index) => {
    if (parent.children[index] !== element) parent.insertBefore(element, parent.children[index] ?? null);
  });
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

/** Words that are heard and not seen. */
export function unseen(words) {
  return make("span", { class: "unseen" }, words);
}

/** Calls `draw(width)` at once and whenever the element's width changes. */
export function onWidth(element, drawn) {
  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth !== width && element.clientWidth > 0) drawn((width = element.clientWidth));
  }).observe(element);
}
