// Asks for the fleet twice a second and shows it. All that is shown is in /ui/data.
import * as chat from "./chat.js";
import { Lines, scatter } from "./charts.js";
import { at, count, joules, make, rate, seconds, share, usd } from "./format.js";
import * as map from "./map.js";
import * as whatIf from "./whatif.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");
const EVERY_MS = () => (calm.matches ? 2000 : 500);
const ttft = new Lines(document.querySelector("#ttft .chart"), "Time to first token");
const itl = new Lines(document.querySelector("#itl .chart"), "Gap between tokens");
const TIERS = [["device", "devices’ own pools"], ["dram", "dram"], ["disk", "disk"], ["peer", "other nodes"], ["remote", "object store"], ["computed", "computed"], ["untold", "not told by the engine"]];
let seen = null, began = null, held = false, isOver = false;

async function ask() {
  const answer = await fetch(seen === null ? "ui/data" : `ui/data?seen=${seen}`, { signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}

async function turn() {
  const due = performance.now() + EVERY_MS();
  try {
    if (!document.hidden) {
      const told = await ask();
      if (told.view.began !== began) {
        began = told.view.began;
        if (!told.view.workers.who) { seen = null; return setTimeout(turn, 0); }
      }
      seen = told.view.workers.version;
      show(told);
      linked(true, told.view.is_over ? "over" : "live, 2 a second");
    }
  } catch (error) {
    seen = null;
    linked(false, `no answer: ${error.message}; trying again`);
  }
  return setTimeout(turn, Math.max(100, due - performance.now()));
}

function linked(is, text) {
  const was = document.body.className;
  document.body.className = is ? "linked" : "lost";
  at("link").textContent = is ? text.replace("2 a second", calm.matches ? "every 2 s" : "2 a second") : text;
  if (was && was !== document.body.className) at("news").textContent = is ? "Connected." : "Connection lost.";
}

function show({ view, cost, can }) {
  at("source").textContent = view.source === "live" ? "Live" : "Rehearsal";
  const clock = view.source === "twin" ? ` · ${seconds(view.now_s)} simulated` : ` · up ${seconds(view.now_s)}`;
  at("title").textContent = `${view.title || "no model yet"} · policy ${view.policy}${clock}`;
  document.title = `${view.title || "jevons"} · jevons`;
  map.show(view.workers);
  figures(view);
  wanted(view.scaling);
  reuse(view.reuse);
  costs(view, cost);
  ttft.add(view.now_s, view.ttft);
  itl.add(view.now_s, view.itl);
  scatter(document.querySelector("#scatter .chart"), at("scatter-words"), view.scatter);
  if (!held) requests(view);
  chat.allow(can.includes("chat"), view.workers.who);
  whatIf.allow(can.includes("what-if"), view);
  at("snapshot-link").hidden = view.source !== "live";
  if (view.is_over && !isOver) at("news").textContent = "The rehearsal is over.";
  isOver = view.is_over;
}

function figures(view) {
  const s = map.summary(), r = view.reuse, known = r.computed + r.device + Object.values(r.tiers).reduce((a, b) => a + b, 0);
  at("no-workers").hidden = s.all > 0;
  const tiles = [
    ["Workers", `${count(s.up)} up`, `of ${count(s.all)} · ${count(s.busy)} busy · pools ${s.fill === null ? "filled: unknown" : `${share(s.fill)} full at the median`}${s.untold && s.fill !== null ? `, ${count(s.untold)} unknown` : ""}`],
    ["Requests", `${rate(view.rates.requests)} /s`, `${count(view.under_way)} under way · ${count(view.waiting_in_front)} in front · ${count(view.finished)} done`],
    ["Tokens out", `${rate(view.rates.output_tokens)} /s`, `${rate(view.rates.prompt_tokens)} /s of prompts`],
    ["TTFT p50", seconds(view.ttft.p50), `p99 ${seconds(view.ttft.p99)} · ${share(view.ttft.within)} within ${seconds(view.ttft.target_s)}`],
    ["Gap between tokens p50", seconds(view.itl.p50), `p99 ${seconds(view.itl.p99)} · ${share(view.itl.within)} within ${seconds(view.itl.target_s)}`],
    ["Prompt tokens reused", known ? share(1 - r.computed / known) : "–", known ? `${count(known - r.computed)} of ${count(known)} so far` : "none finished yet"],
  ];
  const box = at("figures");
  if (box.children.length !== tiles.length) {
    box.replaceChildren(...tiles.map(([name]) => make("div", {}, make("dt", {}, name), make("dd", {}, make("span"), make("small")))));
  }
  tiles.forEach(([, value, more], i) => {
    put(box.children[i].querySelector("span"), value);
    put(box.children[i].querySelector("small"), more);
    box.children[i].querySelector("small").title = more;
  });
}

function wanted(scaling) {
  const lines = scaling.map((s) => `${s.model} ${s.role}: ${count(s.wanted)} wanted, ${count(s.up)} up · ${s.reason}`);
  const box = at("wanted");
  if (box.children.length !== lines.length) box.replaceChildren(...lines.map(() => make("li", {})));
  lines.forEach((line, i) => put(box.children[i], line));
  box.hidden = !lines.length;
}

const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function reuse(r) {
  const parts = TIERS.map(([key, name], k) => [name, key in r ? r[key] : r.tiers[key] || 0, k, key]).filter(([, n, , key]) => n > 0 || key === "computed" || key === "device");
  const total = parts.reduce((sum, [, n]) => sum + n, 0);
  const tone = (k) => `var(--t${Math.min(5, k)})`;
  at("reuse-bar").replaceChildren(...parts.filter(([, n]) => n > 0).map(([, n, k]) => {
    const part = make("span");
    part.style.flex = `${n} 0 0`;
    part.style.background = tone(k);
    return part;
  }));
  at("reuse-table").tBodies[0].replaceChildren(...parts.map(([name, n, k]) => {
    const chip = make("i", { "aria-hidden": "true" });
    chip.style.background = tone(k);
    return make("tr", {}, make("td", {}, chip, name), make("td", {}, count(n)), make("td", {}, total ? share(n / total) : "–"));
  }));
}

function costs(view, cost) {
  const range = (value, form) => (value === null ? null : value.low === value.high ? form(value.base) : `${form(value.base)} (${form(value.low)} to ${form(value.high)})`);
  const rows = [
    ["chips an hour", range(cost.usd_per_hour, usd)],
    ["chips so far", range(cost.usd, usd)],
    ["energy of chips", cost.joules === null ? null : `${joules(cost.joules.low)} to ${joules(cost.joules.high)}`],
    ["reuse saved", range(cost.saved_usd, usd)],
    ["… of computing", cost.saved_s > 0 ? `${seconds(cost.saved_s)} of ${cost.saved_of}` : `0 s of ${cost.saved_of}`],
  ];
  at("costs").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", value === null ? { class: "unknown" } : {}, value === null ? "unknown" : value)]));
  put(at("basis"), cost.basis.join(" "));
}

const ROWS = 24;
const HEADS = ["", "prompt", "cached", "first token", "predicted", "", ""];

function newRow() {
  const cells = HEADS.map((what, i) => make("td", what ? { class: "n", "data-what": what } : i === 6 ? { class: "why" } : i === 5 ? { class: "state-cell" } : {}));
  cells[5].append(make("span"));
  return make("tr", {}, ...cells);
}

// Rows are kept and their texts changed: making them anew twice a second costs more than all else.
function requests(view) {
  const latest = view.requests.slice(-ROWS).reverse(), body = at("rows").tBodies[0];
  at("no-rows").hidden = latest.length > 0;
  while (body.rows.length < latest.length) body.append(newRow());
  while (body.rows.length > latest.length) body.deleteRow(-1);
  latest.forEach(([, , worker, decode, prompt, predictedCached, predicted, reason, cached, first, output, done], i) => {
    const state = done === null ? (first === null ? "waiting" : "running") : first === null && !output ? "ended" : "done";
    const late = first !== null && first > view.ttft.target_s, { cells } = body.rows[i];
    put(cells[0], decode ? `${worker} → ${decode}` : worker);
    put(cells[1], count(prompt));
    put(cells[2], cached === null ? `${count(predictedCached)}?` : count(cached));
    put(cells[3], first === null ? "–" : `${late ? "late: " : ""}${seconds(first)}`);
    cells[3].classList.toggle("late", late);
    put(cells[4], seconds(predicted));
    cells[5].firstChild.className = `state ${state}`;
    put(cells[5].firstChild, output === null ? state : `${state}, ${count(output)} out`);
    put(cells[6], reason);
  });
}

at("hold").addEventListener("click", () => {
  held = !held;
  at("hold").setAttribute("aria-pressed", String(held));
});

const THEMES = { auto: "◐ auto", light: "○ light", dark: "● dark" };
const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = localStorage.getItem("jevons-theme") || "auto";

function dress() {
  if (!(theme in THEMES)) theme = "auto";
  document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  at("theme").textContent = THEMES[theme];
  at("theme").setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system has them" : theme}`);
  map.repaint();
}

at("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  localStorage.setItem("jevons-theme", theme);
  dress();
});
dark.addEventListener("change", dress);
document.addEventListener("visibilitychange", () => { if (!document.hidden) turnNow(); });
let waking = false;
async function turnNow() { if (!waking) { waking = true; try { const told = await ask(); show(told); seen = told.view.workers.version; } catch { /* the next turn says so */ } waking = false; } }
addEventListener("resize", () => { ttft.paint(); itl.paint(); });

dress();
turn();
