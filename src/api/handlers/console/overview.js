// The overview: totals, plots of the last hour, pause and resume.

import { get } from "/console/api.js";
import { write } from "/console/confirm.js";
import { announce, attempt, facts, find, number } from "/console/page.js";
import { plot } from "/console/plot.js";

const HOUR_MS = 3_600_000;
/** The totals are read at every third refresh only, because they count against the rate limit. */
const TOTALS_EVERY = 3;

let samples = [];
let refreshes = 0;
let paused = false;

export function forget() {
  samples = [];
  refreshes = 0;
}

export async function open() {
  refreshes = 0;
  await refresh();
}

export async function refresh() {
  const after = () => (samples.length ? samples.at(-1).at + 1 : 0);
  const [since, wasPaused] = [after(), paused];
  const [history, status] = await Promise.all([get("/api/v1/admin/history", { since }), get("/api/v1/admin/status")]);
  // Another refresh may have ended first.
  const added = history.samples.filter(({ at }) => at >= after());
  samples = samples.concat(added).slice(-HOUR_MS / history.intervalMs);
  // If the flag changed meanwhile, the status is stale.
  if (paused === wasPaused) showPause(status.paused);
  showPlots(history);
  if (refreshes++ % TOTALS_EVERY === 0) await showTotals();
}

/** Shows everywhere whether writes are paused. */
export function showPause(isPaused) {
  paused = isPaused;
  const badge = find("pause-state");
  badge.hidden = !paused;
  badge.className = "badge bad";
  badge.textContent = paused ? "Writes are paused" : "";
  find("pause").textContent = paused ? "Resume writes" : "Pause writes";
  find("pause").disabled = false;
}

async function showTotals() {
  const [stats, health] = await Promise.all([get("/api/v1/stats", { limit: 1 }), get("/api/v1/health/deep", { limit: 50 })]);
  find("overview-health").textContent = health.status;
  find("totals").replaceChildren(...facts([
    ["Outstanding requests", number(stats.totalRequests)],
    ["Requests ever recorded", number(stats.lifetimeRequests)],
    ["Settled stroops", number(stats.settledStroopsTotal)],
    ["Settlements", number(stats.settlementsTotal)],
    ["Services", number(stats.totalServices)],
    ["Agents", number(stats.uniqueAgents)],
    ["API keys", number(stats.totalApiKeys)],
    ["Webhooks", number(stats.totalWebhooks)],
  ]).children);
}

function showPlots(history) {
  const seconds = history.intervalMs / 1000;
  const to = samples.at(-1)?.at ?? 0;
  const series = (name, value) => ({ name, points: samples.map((sample) => ({ at: sample.at, value: value(sample) })) });
  const share = (sample) => {
    const keyed = sample.replays + sample.commands;
    return keyed ? (100 * sample.replays) / keyed : null;
  };
  const plots = [
    ["Requests", "/s", [series("requests", (sample) => sample.requests / seconds)]],
    ["Commands committed", "/s", [series("commands", (sample) => sample.commands / seconds)]],
    ["Latency", "ms", [series("median", (sample) => sample.p50Ms), series("99 %", (sample) => sample.p99Ms)]],
    ["Replays (share of writes)", "%", [series("replays", share)]],
    ["Failed requests (5xx)", "/s", [series("failures", (sample) => sample.failures / seconds)]],
    [`Queue (capacity ${number(history.queueCapacity)})`, "", [series("queue", (sample) => sample.queueDepth)]],
  ];
  find("plots").replaceChildren(...plots.map(([title, unit, lines]) => plot(title, unit, lines, to - HOUR_MS, to)));
}

find("pause").addEventListener("click", () => {
  const pausing = !paused;
  const effects = pausing
    ? ["Every replica refuses writes of all tenants with 503 service_paused.", "Reads, deliveries and background jobs continue.",
        "Nothing is lost: clients repeat their requests with the same key after the pause."]
    : ["Every replica accepts writes of all tenants again."];
  const operation = {
    title: pausing ? "Pause writes" : "Resume writes",
    verb: pausing ? "Pause" : "Resume",
    effects,
    method: "POST",
    path: pausing ? "/api/v1/admin/pause" : "/api/v1/admin/unpause",
  };
  write(operation, (answer) => {
    showPause(answer.paused);
    announce(answer.paused ? "Writes are paused." : "Writes are resumed.");
  });
});

/** Repeats `refresh` while the overview is shown. */
setInterval(() => {
  if (!find("overview").hidden && !find("console").hidden && !document.hidden) attempt(refresh);
}, 10_000);
