// Three charts in SVG: seconds on a logarithmic axis, labelled where the lines end.
import { draw, seconds, share } from "./format.js";

const SPAN_S = 120;
const EDGE = { left: 46, right: 62, top: 8, bottom: 22 };

function decades(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  return Array.from({ length: to - from + 1 }, (_, i) => 10 ** (from + i));
}

const label = (s) => (s < 1 ? `${+(s * 1e3).toPrecision(1)} ms` : `${+s.toPrecision(1)} s`);

function apart(marks, least) {
  marks.sort((a, b) => a.y - b.y);
  for (let i = 1; i < marks.length; i++) marks[i].y = Math.max(marks[i].y, marks[i - 1].y + least);
  return marks;
}

export class Lines {
  // Percentiles over the last two minutes, and what is promised.
  constructor(box, what) { this.box = box; this.what = what; this.points = []; }

  add(now, times) {
    if (this.points.length && now < this.points.at(-1).now) this.points = [];
    this.points.push({ now, ...times });
    while (this.points[0].now < now - SPAN_S) this.points.shift();
    this.paint();
  }

  paint() {
    const width = this.box.clientWidth, height = this.box.clientHeight, last = this.points.at(-1);
    if (!width || !last) return;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}` });
    const told = this.points.flatMap((p) => [p.p50, p.p99]).filter((v) => v !== null);
    const target = last.target_s;
    const marks = decades(Math.min(target / 3, ...told), Math.max(target * 2, ...told));
    const low = Math.log10(marks[0]), high = Math.log10(marks.at(-1));
    const y = (v) => EDGE.top + (height - EDGE.top - EDGE.bottom) * (1 - (Math.log10(Math.max(v, marks[0])) - low) / (high - low));
    const x = (t) => EDGE.left + (width - EDGE.left - EDGE.right) * (1 - (last.now - t) / SPAN_S);
    for (const mark of marks) {
      svg.append(draw("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(mark), y2: y(mark) }));
      svg.append(draw("text", { x: EDGE.left - 6, y: y(mark) + 4, "text-anchor": "end" }, label(mark)));
    }
    for (const [ago, text] of [[120, "2 min ago"], [60, "1 min"], [0, "now"]]) {
      const anchor = ago === 120 ? "start" : "middle";
      svg.append(draw("text", { x: x(last.now - ago), y: height - 5, "text-anchor": anchor }, text));
    }
    svg.append(draw("line", { class: "slo", x1: EDGE.left, x2: width - EDGE.right, y1: y(target), y2: y(target) }));
    const ends = [{ y: y(target), name: "slo-t", text: `SLO ${seconds(target)}` }];
    for (const name of ["p50", "p90", "p99"]) {
      let path = "", open = false;
      for (const p of this.points) {
        if (p[name] === null) { open = false; continue; }
        path += `${open ? "L" : "M"}${x(p.now).toFixed(1)} ${y(p[name]).toFixed(1)}`;
        open = true;
      }
      if (path) svg.append(draw("path", { class: name, d: path }));
      if (last[name] !== null) ends.push({ y: y(last[name]), name, text: `${name} ${seconds(last[name])}` });
    }
    for (const end of apart(ends, 12)) svg.append(draw("text", { class: end.name, x: width - EDGE.right + 4, y: end.y + 4 }, end.text));
    if (!told.length) svg.append(nothing(width, height, "nothing in the last minute"));
    this.box.replaceChildren(svg);
    this.box.setAttribute("aria-label", last.p50 === null ? `${this.what}: nothing in the last minute` :
      `${this.what}: median ${seconds(last.p50)}, 99th percentile ${seconds(last.p99)}, ${share(last.within)} within ${seconds(target)}`);
  }
}

function nothing(width, height, text) {
  return draw("text", { class: "empty", x: width / 2, y: height / 2, "text-anchor": "middle" }, text);
}

export function scatter(box, words, pairs) {
  const width = box.clientWidth, height = box.clientHeight;
  if (!width) return;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}` });
  const all = pairs.flat().filter((v) => v > 0);
  const marks = decades(all.length ? Math.min(...all) : 0.01, all.length ? Math.max(...all) * 1.01 : 1);
  if (marks.length < 2) marks.push(marks[0] * 10);
  const low = Math.log10(marks[0]), high = Math.log10(marks.at(-1)), bottom = EDGE.bottom + 12, right = 14;
  const on = (v, from, to) => from + (to - from) * ((Math.log10(Math.max(v, marks[0])) - low) / (high - low));
  const x = (v) => on(v, EDGE.left, width - right), y = (v) => on(v, height - bottom, EDGE.top);
  for (const mark of marks) {
    svg.append(draw("line", { class: "grid", x1: EDGE.left, x2: width - right, y1: y(mark), y2: y(mark) }));
    svg.append(draw("line", { class: "grid", x1: x(mark), x2: x(mark), y1: EDGE.top, y2: height - bottom }));
    svg.append(draw("text", { x: EDGE.left - 6, y: y(mark) + 4, "text-anchor": "end" }, label(mark)));
    svg.append(draw("text", { x: x(mark), y: height - bottom + 14, "text-anchor": "middle" }, label(mark)));
  }
  svg.append(draw("line", { class: "as-told", x1: x(marks[0]), y1: y(marks[0]), x2: x(marks.at(-1)), y2: y(marks.at(-1)) }));
  svg.append(draw("text", { x: (EDGE.left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "predicted → measured ↑"));
  // One element for all: two of 256 points a second would be most of the page's work.
  const dots = pairs.filter(([p, m]) => p > 0 && m > 0).map(([p, m]) => `M${x(p).toFixed(1)} ${y(m).toFixed(1)}h0`);
  svg.append(draw("path", { class: "dots", d: dots.join("") }));
  const ratios = pairs.filter(([p, m]) => p > 0 && m > 0).map(([p, m]) => m / p).sort((a, b) => a - b);
  if (ratios.length) {
    const middle = ratios[ratios.length >> 1], near = ratios.filter((r) => r > 1 / 1.25 && r < 1.25).length / ratios.length;
    const told = `last ${ratios.length}: measured ${middle.toPrecision(2)} × predicted at the median, ${share(near)} within 25 %`;
    box.setAttribute("aria-label", told);
    words.textContent = told;
  } else {
    svg.append(nothing(width, height, "no request is finished yet"));
    box.setAttribute("aria-label", "no request is finished yet");
  }
  box.replaceChildren(svg);
}
