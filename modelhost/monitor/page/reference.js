/** The page of the API at `/docs`: the host's own OpenAPI document in words, and nothing from elsewhere. */

import { askJson, keepKey, keptKey, Refused } from "./access.js";
import { byId, make, setText } from "./dom.js";

const REFERENCE = "#/components/schemas/";
const NOTHING = "none";

// --- the document in elements --------------------------------------------------------------------------

function show(page) {
  setText(byId("version"), page.info.version);
  byId("about").replaceChildren(...page.info.description.split("\n\n").map((text) => make("p", {}, ...words(text))));
  byId("about").hidden = false;
  byId("operations").replaceChildren(...Object.entries(byTag(page)).map(([tag, found]) => group(tag, found)));
  byId("schemas").append(...Object.entries(page.components.schemas).map(([name, schema]) => shownSchema(name, schema)));
  byId("schemas").hidden = false;
}

/** Operations by the first of their tags, in the order of the document. */
function byTag(page) {
  const found = {};
  for (const [path, item] of Object.entries(page.paths)) {
    for (const [method, operation] of Object.entries(item)) {
      const tag = operation.tags[0];
      (found[tag] ??= []).push({ path, method: method.toUpperCase(), operation });
    }
  }
  return found;
}

function group(tag, found) {
  const title = `tag-${tag}`;
  return make("section", { class: "card", "aria-labelledby": title },
    make("div", { class: "title" }, make("h2", { id: title }, tag)),
    ...found.map(shownOperation));
}

function shownOperation({ path, method, operation }) {
  return make("details", { id: operation.operationId, "data-words": `${method} ${path} ${operation.summary}`.toLowerCase() },
    make("summary", {}, make("span", { class: `method ${method.toLowerCase()}` }, method), " ", make("code", {}, path),
      make("span", { class: "faint" }, " ", ...words(operation.summary))),
    ...parameters(operation.parameters ?? []),
    ...body(operation.requestBody),
    make("h3", {}, "Try it"),
    make("pre", { tabindex: 0 }, command(path, method, operation)),
    make("h3", {}, "Answers"),
    table(["Status", "Meaning", "Content"],
      Object.entries(operation.responses).map(([status, response]) => [status, words(response.description), contents(response.content)])));
}

function parameters(found) {
  if (found.length === 0) return [];
  const rows = found.map(({ name, in: place, schema, description = "" }) => [make("code", {}, name), place, typeOf(schema), words(description)]);
  return [make("h3", {}, "Parameters"), table(["Name", "In", "Type", "Meaning"], rows)];
}

function body(found) {
  if (found === undefined) return [];
  return [make("h3", {}, found.required ? "Body" : "Body, where there is one"), make("p", {}, ...contents(found.content))];
}

/** Media types with links to their schemas. */
function contents(found) {
  return Object.entries(found).flatMap(([type, { schema }], index) => [
    index === 0 ? "" : ", ", make("code", {}, type), " ", ...typeOf(schema),
  ]);
}

function shownSchema(name, schema) {
  return make("details", { id: `schema-${name}`, "data-words": name.toLowerCase() },
    make("summary", {}, make("code", {}, name), make("span", { class: "faint" }, " ", ...words(schema.description ?? ""))),
    make("pre", { tabindex: 0 }, ...described(schema, "")));
}

function table(heads, rows) {
  const cell = (content) => make("td", {}, ...[content].flat());
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell))))));
}

/** Text with `code` in it, in elements. */
function words(text) {
  return text.split("`").map((part, index) => (index % 2 === 1 ? make("code", {}, part) : part));
}

// --- schemas -------------------------------------------------------------------------------------------

/** A type in a few words, with links to what has a name. */
function typeOf(schema) {
  if (schema.$ref !== undefined) {
    const name = schema.$ref.replace(REFERENCE, "");
    return [make("a", { href: `#schema-${name}` }, name)];
  }
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices !== undefined) return choices.flatMap((one, index) => (index === 0 ? typeOf(one) : [" or ", ...typeOf(one)]));
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum !== undefined) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  const names = [schema.type ?? "anything"].flat();
  if (schema.items === undefined) return [names.join(" or ")];
  const others = names.filter((name) => name !== "array");
  return ["array of ", ...typeOf(schema.items), ...others.map((name) => ` or ${name}`)];
}

/** What is in a schema, a line each, deeper where it has members of its own. */
function described(schema, indent) {
  const inner = schema.items ?? schema;
  const members = Object.entries(inner.properties ?? {});
  if (members.length === 0) return indent === "" ? typeOf(schema) : [];
  const required = new Set(inner.required ?? []);
  return members.flatMap(([name, member]) => [
    `${indent}${name}${required.has(name) ? "*" : ""}: `, ...typeOf(member),
    member.description === undefined ? "\n" : `  ${member.description}\n`,
    ...described(member, `${indent}    `),
  ]);
}

// --- what to type --------------------------------------------------------------------------------------

/** The call as a command, with the examples of the document. */
function command(path, method, operation) {
  const values = Object.fromEntries((operation.parameters ?? []).map(({ name, example }) => [name, example]));
  const target = path.replace(/{(\w+)}/g, (_, name) => encodeURIComponent(values[name]));
  const parts = ["curl -s"];
  const example = operation.requestBody?.content["application/json"]?.example;
  if (keptKey() !== null) parts.push('-H "Authorization: Bearer $KEY"');
  if (example !== undefined) parts.push(`-d '${JSON.stringify(example).replaceAll("'", "'\\''")}'`);
  else if (method !== "GET") parts.push(`-X ${method}`);
  return [...parts, `${location.origin}${target}`].join(" ");
}

// --- looking for one -----------------------------------------------------------------------------------

function find() {
  const wanted = byId("search").value.trim().toLowerCase().split(/\s+/);
  for (const entry of document.querySelectorAll("[data-words]")) {
    entry.hidden = !wanted.every((word) => entry.dataset.words.includes(word));
  }
  for (const section of document.querySelectorAll("#operations > section, #schemas")) {
    section.hidden = section.querySelector("[data-words]:not([hidden])") === null;
  }
}

/** Opens what the address names. */
function openNamed() {
  const named = byId(decodeURIComponent(location.hash.slice(1)) || NOTHING);
  if (named?.tagName !== "DETAILS") return;
  named.open = true;
  named.scrollIntoView();
}

async function load() {
  try {
    show(await askJson("/openapi.json"));
    byId("banner").hidden = true;
    openNamed();
  } catch (error) {
    setText(byId("banner-text"), error instanceof Refused ? error.message : "The host does not answer.");
    byId("key-form").hidden = !(error instanceof Refused && error.isAboutKey);
    byId("banner").hidden = false;
  }
}

function useKey(event) {
  event.preventDefault();
  keepKey(byId("key").value.trim() || null);
  byId("key").value = "";
  load();
}

byId("key-form").addEventListener("submit", useKey);
byId("search-form").addEventListener("submit", (event) => event.preventDefault());
byId("search").addEventListener("input", find);
addEventListener("hashchange", openNamed);
load();
