// Rehearses the last minutes of traffic on another fleet or by another policy, beside the fleet as it is.
import { at, count, make, seconds, share } from "./format.js";

let isReady = false;

export function allow(is, view) {
  at("what-if").hidden = !is;
  if (!is || isReady) return;
  isReady = true;
  prepare(view.policy);
}

async function prepare(policy) {
  try {
    const told = await (await fetch("ui/what-if")).json();
    at("if-policy").replaceChildren(...told.policies.map((name) => make("option", name === policy ? { selected: "" } : {}, name)));
    at("if-model").replaceChildren(make("option", { value: "" }, "model of the catalog"), ...told.models.map((name) => make("option", {}, name)));
    at("chips").replaceChildren(...told.chips.map((name) => make("option", { value: `8x${name}` })));
  } catch {
    isReady = false;
  }
}

function difference(before, after, lessIsBetter) {
  if (before === null || after === null || before === 0) return "–";
  const by = after / before - 1;
  if (Math.abs(by) < 0.005) return "the same";
  return `${by > 0 ? "+" : "−"}${share(Math.abs(by))} ${(by < 0) === lessIsBetter ? "better" : "worse"}`;
}

const ROWS = [
  ["TTFT p50", (r) => r.ttft_s.p50, seconds, true], ["TTFT p99", (r) => r.ttft_s.p99, seconds, true],
  ["TPOT p50", (r) => r.tpot_s.p50, seconds, true], ["TPOT p99", (r) => r.tpot_s.p99, seconds, true],
  ["prompt tokens reused", (r) => Object.values(r.reuse_fraction).reduce((a, b) => a + b, 0), share, false],
  ["within the SLO", (r) => r.met_slo, share, false],
  ["busy", (r) => r.utilisation, share, null], ["instances", (r) => r.instances, count, null],
];

function result(told) {
  const head = make("tr", {}, make("th", { scope: "col" }, `${count(told.then.requests)} requests, rehearsed`), ...["as it is", told.name, "difference"].map((t) => make("th", { scope: "col" }, t)));
  const rows = ROWS.map(([name, of, form, less]) => make("tr", {}, make("th", { scope: "row" }, name),
    make("td", {}, told.now === null ? "unknown" : form(of(told.now))), make("td", {}, form(of(told.then))),
    make("td", {}, told.now === null || less === null ? "" : difference(of(told.now), of(told.then), less))));
  const lived = told.lived.ttft_p50_s === null ? "" : ` As it was lived: TTFT p50 ${seconds(told.lived.ttft_p50_s)}, ${share(told.lived.reuse)} of prompt tokens reused.`;
  const trust = told.then.trust.map((t) => (t.trust === "given" ? "step times are those the router learned of these workers" : `${t.chip}: ${t.trust}; ${t.note}`)).join("; ");
  at("if-result").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)),
    make("p", { class: "note" }, `${told.notes.join(" ")}${lived} How far to trust it: ${trust}.`));
}

at("if-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("if-run").disabled = true;
  at("if-result").replaceChildren(make("p", { class: "note" }, "Rehearsing …"));
  const ask = { minutes: Number(at("if-minutes").value), policy: at("if-policy").value };
  if (at("if-workers").value) ask.workers = Number(at("if-workers").value);
  if (at("if-fleet").value) { ask.fleet = at("if-fleet").value; if (at("if-model").value) ask.model = at("if-model").value; }
  try {
    const response = await fetch("ui/what-if", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(ask) });
    const told = await response.json();
    if (!response.ok) throw new Error(told.error.message);
    result(told);
  } catch (error) {
    at("if-result").replaceChildren(make("p", { class: "wrong" }, `Not rehearsed: ${error.message}`));
  }
  at("if-run").disabled = false;
});
