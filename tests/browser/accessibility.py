"""What can be checked of a page's accessibility by looking at it as it is: scripts that return what is wrong."""

from __future__ import annotations

from typing import Final

#: Names of all that can be used, labels of fields, the order of headings, landmarks, tables with heads, ids once.
LABELS: Final = """
const wrong = [];
const seen = (element) => element.getClientRects().length > 0;
const named = (element) => {
  const by = element.getAttribute("aria-labelledby");
  const words = by ? by.split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ")
    : element.getAttribute("aria-label") ?? [...(element.labels ?? [])].map((one) => one.textContent).join(" ");
  return (words || (element.matches("input, select, textarea") ? "" : element.textContent)).trim() !== "";
};
const used = "button, a[href], input, select, textarea, dialog, [role=img], [role=region], [tabindex='0'], section";
for (const element of document.querySelectorAll(`${used}, table, fieldset`)) {
  if (element.matches("table, fieldset")) {
    const head = element.matches("table") ? "thead th[scope=col]" : "legend";
    if (!element.querySelector(head)) wrong.push(`${element.tagName} has no head`);
  } else if (seen(element) && !named(element)) wrong.push(`no name: ${element.outerHTML.slice(0, 120)}`);
}
let level = 0;
for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
  const found = Number(heading.tagName[1]);
  if (found > level + 1 && seen(heading)) wrong.push(`h${found} after h${level}: ${heading.textContent}`);
  level = found;
}
if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
for (const one of ["main", "header", "footer"]) if (!document.querySelector(one)) wrong.push(`no ${one}`);
if (!document.documentElement.lang || !document.title) wrong.push("no language, or no title");
const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
wrong.push(...ids.filter((id, index) => ids.indexOf(id) !== index).map((id) => `twice: ${id}`));
for (const element of document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")) {
  const to = ["aria-labelledby", "aria-describedby", "for"].map((name) => element.getAttribute(name) ?? "").join(" ");
  for (const id of to.split(" ").filter(Boolean)) if (!document.getElementById(id)) wrong.push(`leads nowhere: ${id}`);
}
if ([...document.querySelectorAll("[tabindex]")].some((one) => one.tabIndex > 0)) wrong.push("tabindex above 0");
return wrong;
"""

#: WCAG 2's contrast of all words that are seen, against what is behind them: 4.5, or 3 where they are large.
CONTRAST: Final = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const rgba = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = ([red, green, blue]) => {
  const linear = (part) => part <= 10.31 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = [red, green, blue].map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const found = rgba(getComputedStyle(one).backgroundColor);
    if (found[3] === 255) return found;
  }
  return rgba("white");
};
const wrong = [];
let count = 0;
for (const element of document.querySelectorAll("body, body *")) {
  const hasWords = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim() !== "");
  if (!hasWords && !element.matches("input, textarea, select")) continue;
  const isSeen = element.checkVisibility({ visibilityProperty: true });
  if (!isSeen || element.matches(".unseen, option, noscript, title")) continue;
  const style = getComputedStyle(element);
  const colour = rgba(element instanceof SVGElement ? style.fill : style.color);
  const [lighter, darker] = [luminance(colour), luminance(behind(element))].sort((one, other) => other - one);
  const ratio = (lighter + 0.05) / (darker + 0.05);
  const size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  count += 1;
  if (ratio < (isLarge ? 3 : 4.5)) {
    const words = element.textContent.trim().slice(0, 40);
    wrong.push(`${ratio.toFixed(2)}: ${element.tagName}.${element.getAttribute("class")} ${words}`);
  }
}
if (count < 30) wrong.push(`only ${count} found`);
return wrong;
"""
