"use strict";
// Elements of the pages. Texts enter as text nodes only, so that none can become markup.
function fill(made, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === false || value === null) continue;
    if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (key.startsWith("on")) made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return made;
}
const el = (name, properties = {}, ...children) => fill(document.createElement(name), properties, children);
const card = (title, about, ...children) => el("section", { class: "card", "aria-label": title }, el("header", {}, el("h2", {}, title), about && el("span", { class: "soft" }, about)), ...children);
const compact = (value) => (value === null || value === undefined ? "" : Number(value.toPrecision(4)).toString().replace("-", "−"));
