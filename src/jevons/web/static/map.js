// The fleet as cells: how long is queued there as tone, health as shape, the pool's fill as a bar.
import { at, count, ink, make, seconds, share } from "./format.js";

const STEPS = [["idle", 0], ["running, no queue", 0], ["queue < 0.1 s", 100], ["< 0.5 s", 500], ["< 2 s", 2000], ["≥ 2 s", Infinity]];
const HEALTHS = ["up", "stalled", "suspect", "down", "draining"];
const LABEL = 18;

const canvas = at("map");
let who = null, now = null, places = [], chosen = -1, groups = [], layout = { size: 10, columns: 1 };

function step(i) {
  const queued = now.queue_ms[i];
  if (now.running[i] + now.waiting[i] === 0) return 0;
  if (now.waiting[i] === 0 && queued === 0) return 1;
  return queued < 100 ? 2 : queued < 500 ? 3 : queued < 2000 ? 4 : 5;
}

function grouped() {
  const found = new Map();
  who.ids.forEach((_, i) => {
    const chip = who.chips[i] ? ` · ${who.chip_counts[i] > 1 ? who.chip_counts[i] + " × " : ""}${who.chips[i]}` : "";
    const role = who.roles[i] === "both" ? "" : ` · ${who.roles[i]}`;
    const name = `${who.models[i] || "no model yet"}${role}${chip}`;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(i);
  });
  groups = [...found].map(([name, members]) => ({ name, members })).sort((a, b) => a.name.localeCompare(b.name));
}

function cellSize(width, height) {
  let low = 2, high = 150;
  const fits = (size) => {
    const columns = Math.max(1, Math.floor(width / size));
    return groups.reduce((sum, g) => sum + LABEL + Math.ceil(g.members.length / columns) * size, 0) <= height;
  };
  while (high - low > 0.25) { const middle = (low + high) / 2; if (fits(middle)) low = middle; else high = middle; }
  return Math.max(2, Math.floor(low * 2) / 2);
}

let placed = "";

function place(width, height) {
  const key = `${width} ${height}`;
  if (key === placed) return layout;
  placed = key;
  const size = cellSize(width, height), columns = Math.max(1, Math.floor(width / size));
  places = new Array(who.ids.length);
  let y = 0;
  for (const group of groups) {
    group.y = y + 12;
    y += LABEL;
    group.members.forEach((i, n) => { places[i] = [(n % columns) * size, y + Math.floor(n / columns) * size]; });
    y += Math.ceil(group.members.length / columns) * size;
  }
  return { size, columns };
}

function paint() {
  if (!who || !now) return;
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
  }
  const to = canvas.getContext("2d");
  to.setTransform(scale, 0, 0, scale, 0, 0);
  to.clearRect(0, 0, width, height);
  layout = place(width, height);
  const { size } = layout, cell = size - (size >= 6 ? 1.5 : 0.5);
  const tones = STEPS.map((_, k) => ink(`--q${k}`)), line = ink("--ink"), soft = ink("--soft");
  to.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  to.fillStyle = soft;
  for (const g of groups) to.fillText(`${g.name}: ${count(g.members.length)}`, 0, g.y, width);
  const byTone = STEPS.map(() => []), ill = [];
  places.forEach((_, i) => (now.health[i] === 0 ? byTone[step(i)] : ill).push(i));
  byTone.forEach((members, k) => {
    to.fillStyle = tones[k];
    for (const i of members) to.fillRect(places[i][0], places[i][1], cell, cell);
  });
  for (const i of ill) sign(to, now.health[i], places[i][0], places[i][1], cell, line);
  if (size >= 10) bars(to, cell, line);
  if (size >= 64) words(to, cell);
  if (chosen >= 0 && places[chosen]) {
    to.strokeStyle = ink("--focus"); to.lineWidth = 2;
    to.strokeRect(places[chosen][0] - 1.5, places[chosen][1] - 1.5, cell + 3, cell + 3);
  }
}

function bars(to, cell, line) {
  const thick = Math.min(6, Math.max(2, Math.round(cell * 0.12))), track = ink("--line");
  places.forEach(([x, y], i) => {
    const room = who.blocks[i];
    if (!room) return;
    to.fillStyle = track; to.fillRect(x, y + cell - thick, cell, thick);
    to.fillStyle = line; to.fillRect(x, y + cell - thick, cell * Math.min(1, now.held[i] / room), thick);
  });
}

// Where there is room: who it is and what it does, in the tone that can be read on the cell's.
function words(to, cell) {
  const dark = ink("--paper-on"), light = ink("--ink-on");
  places.forEach(([x, y], i) => {
    to.fillStyle = now.health[i] === 0 && step(i) >= 3 ? dark : light;
    const name = who.ids[i].split("/").pop(), free = cell - 12;
    to.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
    to.fillText(name.length > 14 ? `…${name.slice(-13)}` : name, x + 6, y + 18, free);
    to.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    to.fillText(`${now.running[i]} running`, x + 6, y + 33, free);
    to.fillText(`${now.waiting[i]} waiting`, x + 6, y + 47, free);
    if (cell >= 78 && now.queue_ms[i]) to.fillText(`queue ${seconds(now.queue_ms[i] / 1e3)}`, x + 6, y + 61, free);
  });
}

function sign(to, health, x, y, cell, line) {
  to.strokeStyle = line; to.lineWidth = 1;
  to.strokeRect(x + 0.5, y + 0.5, cell - 1, cell - 1);
  to.beginPath();
  if (health === 1) to.rect(x + cell * 0.35, y + cell * 0.35, cell * 0.3, cell * 0.3);
  if (health === 2) { to.moveTo(x, y + cell); to.lineTo(x + cell, y); }
  if (health === 3) { to.moveTo(x, y); to.lineTo(x + cell, y + cell); to.moveTo(x, y + cell); to.lineTo(x + cell, y); }
  if (health === 4) { to.moveTo(x, y + cell / 2); to.lineTo(x + cell, y + cell / 2); }
  to.stroke();
}

export function legend() {
  const items = STEPS.map(([label], k) => swatch(label, (to) => { to.fillStyle = ink(`--q${k}`); to.fillRect(0, 0, 14, 14); }));
  const signs = HEALTHS.slice(1).map((label, k) => swatch(label, (to) => sign(to, k + 1, 0, 0, 14, ink("--ink"))));
  const bar = swatch("pool filled", (to) => {
    to.fillStyle = ink("--q1"); to.fillRect(0, 0, 14, 14); to.fillStyle = ink("--ink"); to.fillRect(0, 11, 9, 3);
  });
  at("legend").replaceChildren(...items, ...signs, bar);
}

function swatch(label, paintIt) {
  const small = make("canvas", { width: 28, height: 28, "aria-hidden": "true" });
  const to = small.getContext("2d");
  to.scale(2, 2);
  paintIt(to);
  return make("li", {}, small, label);
}

function tell() {
  if (chosen < 0 || !now || !who.ids[chosen]) return;
  const i = chosen, room = who.blocks[i];
  const chip = who.chips[i] ? `${who.chip_counts[i]} × ${who.chips[i]}` : "chip unknown";
  const fill = room ? `${count(now.held[i])} of ${count(room)} blocks (${share(now.held[i] / room)})` : `${count(now.held[i])} blocks, of an unknown number`;
  at("chosen").textContent = `${who.ids[i]} · ${who.models[i]} · ${who.roles[i]} · ${chip} · ${HEALTHS[now.health[i]]} · ` +
    `${now.running[i]} running, ${now.waiting[i]} waiting · queue ${seconds(now.queue_ms[i] / 1e3)} · pool holds ${fill}`;
}

export function show(workers) {
  if (workers.who) { who = workers.who; grouped(); placed = ""; chosen = Math.min(chosen, who.ids.length - 1); }
  now = workers;
  paint();
  if (document.activeElement !== canvas) tell();
}

export function summary() {
  const busy = now.running.reduce((n, r, i) => n + (r + now.waiting[i] > 0), 0);
  const up = now.health.reduce((n, h) => n + (h === 0), 0);
  const fills = who.blocks.map((room, i) => (room ? now.held[i] / room : null)).filter((x) => x !== null).sort((a, b) => a - b);
  return { all: who.ids.length, up, busy, fill: fills.length ? fills[fills.length >> 1] : null, untold: who.ids.length - fills.length };
}

export const repaint = () => { legend(); paint(); };

function choose(i) {
  if (i < 0 || i >= places.length) return;
  chosen = i;
  paint();
  tell();
}

canvas.addEventListener("keydown", (event) => {
  const order = groups.flatMap((g) => g.members), where = order.indexOf(chosen), { columns } = layout;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity }[event.key];
  if (by === undefined || !order.length) return;
  event.preventDefault();
  choose(order[Math.max(0, Math.min(order.length - 1, where < 0 ? 0 : where + by))]);
});
canvas.addEventListener("pointermove", (event) => {
  const { size } = layout, x = event.offsetX, y = event.offsetY;
  const found = places.findIndex((p) => p && x >= p[0] && x < p[0] + size && y >= p[1] && y < p[1] + size);
  if (found >= 0 && found !== chosen) choose(found);
});
new ResizeObserver(paint).observe(canvas);
