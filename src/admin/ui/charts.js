// How the sums came to be what they are. The mirror gives sums; here they become rates.

import { get } from "./api.js";
import { byId, size } from "./words.js";

const SERVED_HERE = ["hit", "stale", "revalidated", "joined"];
const SPANS = { hour: 3600, day: 86_400 };
const FAILED = ["negative", "denied", "error"];

let span = "hour";
let charts = [];

export function start() {
  for (const button of document.querySelectorAll("[data-span]")) {
    button.addEventListener("click", () => {
      span = button.dataset.span;
      document.querySelectorAll("[data-span]").forEach((it) => it.setAttribute("aria-pressed", it === button));
      update();
    });
  }
  const anew = () => {
    charts.forEach((chart) => chart.destroy());
    charts = [];
    update();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", anew);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth) anew();
    width = innerWidth;
  });
  update();
}

export async function update() {
  let history;
  try {
    history = await get(`/api/v1/history?span=${span}`);
  } catch {
    return; // the line at the top says that the mirror does not answer
  }
  const of = (outcomes) => history.at.map((_, i) => outcomes.reduce((sum, outcome) => sum + (history.requests[outcome]?.[i] ?? 0), 0));
  const rate = (sums) => sums.map((sum, i) => (i ? Math.max(0, sum - sums[i - 1]) / (history.at[i] - history.at[i - 1]) : null));
  draw([
    [history.at, rate(of(SERVED_HERE)), rate(of(["miss"])), rate(of(FAILED))],
    [history.at, rate(history.sent_bytes), rate(history.fetched_bytes)],
    [history.at, history.cache_bytes],
  ]);
}

function draw(data) {
  if (!charts.length) {
    const bytes = (value) => (value === null ? "–" : size(value));
    const number = (value) => (value === null ? "–" : value.toFixed(value < 10 ? 2 : 0));
    charts = [
      chart("chart-requests", number, [["from the cache", "--good"], ["fetched", "--sea"], ["failed", "--bad"]], data[0]),
      chart("chart-bytes", bytes, [["to clients", "--good"], ["from upstreams", "--sea"]], data[1]),
      chart("chart-cache", bytes, [["kept", "--sea"]], data[2]),
    ];
    return;
  }
  charts.forEach((it, i) => it.setData(data[i]));
}

function chart(id, words, series, data) {
  const box = byId(id);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = { stroke: color("--soft"), grid: { stroke: color("--line") }, ticks: { stroke: color("--line") } };
  const lines = series.map(([label, name]) => ({ label, stroke: color(name), width: 1.5, value: (_, value) => words(value) }));
  return new uPlot({
    width: box.clientWidth,
    height: 180,
    scales: { x: { range: () => [Date.now() / 1000 - SPANS[span], Date.now() / 1000] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.05 : 1] } },
    axes: [axis, { ...axis, size: 70, values: (_, values) => values.map(words) }],
    series: [{}, ...lines],
  }, data, box);
}
