// Values as people read them, and elements without markup in strings.
export const UNKNOWN = "unknown";

export function count(n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (n < 1e4) return Math.round(n).toLocaleString("en");
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (n >= size) return `${(n / size).toPrecision(3)} ${unit}`;
  }
  return String(n);
}

export function rate(n) {
  return n === null ? UNKNOWN : n >= 100 ? count(n) : n.toFixed(n >= 10 ? 1 : 2);
}

export function seconds(s) {
  if (s === null || s === undefined) return "–";
  if (s === 0) return "0";
  if (s < 0.0995) return `${(s * 1e3).toPrecision(s < 0.00995 ? 2 : 3)} ms`;
  if (s < 0.9995) return `${Math.round(s * 1e3)} ms`;
  if (s < 120) return `${s.toPrecision(3)} s`;
  return s < 7200 ? `${(s / 60).toFixed(1)} min` : `${(s / 3600).toFixed(1)} h`;
}

export function share(x) {
  return x === null || x === undefined ? "–" : `${(x * 100).toFixed(x > 0 && x < 0.0995 ? 1 : 0)} %`;
}

export function usd(x) {
  if (x === null || x === undefined) return UNKNOWN;
  if (x === 0) return "$0";
  if (x < 0.01) return `$${x.toPrecision(2)}`;
  return `$${x < 1000 ? x.toFixed(2) : count(x)}`;
}

export function joules(x) {
  if (x === null || x === undefined) return UNKNOWN;
  for (const [size, unit] of [[1e12, "TJ"], [1e9, "GJ"], [1e6, "MJ"], [1e3, "kJ"]]) {
    if (x >= size) return `${(x / size).toPrecision(3)} ${unit}`;
  }
  return `${x.toPrecision(3)} J`;
}

export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  fill(element, attributes, children);
  return element;
}

export function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  fill(element, attributes, children);
  return element;
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
}

export const at = (id) => document.getElementById(id);

export function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
