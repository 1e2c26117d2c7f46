// Limits, health and the audit log.

import { get } from "/console/api.js";
import { write } from "/console/confirm.js";
import {
  announce, attempt, begin, element, facts, fillList, find, number, table, time, values,
} from "/console/page.js";

export async function openLimits() {
  const isNewest = begin(find("limits-form"));
  const { config } = await get("/api/v1/config");
  if (!isNewest()) return;
  const fields = Object.entries(config).map(([key, value]) => element("p", {},
    element("label", { for: `limit-${key}` }, key),
    element("input", { id: `limit-${key}`, name: key, type: "number", min: 1, required: true, value })));
  find("limits-form").replaceChildren(...fields, element("p", {}, element("button", { type: "submit" }, "Change…")));
  find("limits-form").onsubmit = (event) => {
    event.preventDefault();
    changeLimits(config, values(event.target));
  };
}

function changeLimits(config, wanted) {
  const changed = Object.entries(wanted).filter(([key, value]) => Number(value) !== config[key]);
  if (!changed.length) return announce("All limits already have these values.");
  const operation = {
    title: "Change limits",
    verb: "Change",
    effects: changed.map(([key, value]) => `${key} changes from ${config[key]} to ${value}, for all tenants and replicas.`),
    method: "PATCH",
    path: "/api/v1/config",
    body: Object.fromEntries(changed.map(([key, value]) => [key, Number(value)])),
  };
  return write(operation, async () => {
    await openLimits();
    announce("The limits were changed.");
  });
}

const status = (text) => element("span", { class: { ok: "good", warn: "warn", error: "bad" }[text] }, text);

export async function openHealth() {
  const isNewest = begin(find("check-list"));
  const report = await get("/api/v1/health/deep", { limit: 50 });
  if (!isNewest()) return;
  find("health-summary").textContent =
    `${report.node}, process ${report.pid}, up for ${number(report.uptimeSeconds)} s, ${report.memory.rssMb} MiB. Overall status: ${report.status}.`;
  const checks = report.checks.filter(({ name }) => name !== "jobs");
  find("check-list").replaceChildren(table("Parts of the service", [
    ["Part", ({ name }) => name],
    ["Status", (check) => status(check.status)],
    ["Detail", ({ detail }) => facts(Object.entries(detail).map(([name, value]) => [name, detailValue(name, value)]))],
  ], checks));
  const jobs = Object.entries(report.checks.find(({ name }) => name === "jobs").detail);
  find("job-list").replaceChildren(table("Background jobs of this replica", [
    ["Job", ([name]) => name],
    ["Last success", ([, { lastSuccessAt }]) => time(lastSuccessAt) || "never"],
    ["Last error", ([, { lastError }]) => lastError ?? "none"],
    ["Last error at", ([, { lastErrorAt }]) => time(lastErrorAt)],
  ], jobs));
  announce(`Health: ${report.status}`);
}

function detailValue(name, value) {
  if (value === null) return "unknown";
  if (name.endsWith("At")) return time(value);
  return typeof value === "object" ? Object.entries(value).map(([key, count]) => `${key} ${count}`).join(", ") || "none" : String(value);
}

export function openAudit(parameters) {
  for (const name of ["tenantId", "objectId", "operation", "actor"]) {
    if (parameters.get(name)) find("audit-form").elements[name].value = parameters.get(name);
  }
  return showAudit();
}

find("audit-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(showAudit);
});

function showAudit() {
  const filter = values(find("audit-form"));
  const load = (cursor) => get("/api/v1/audit", { ...filter, limit: 50, cursor });
  return fillList(find("audit-list"), load, (entries) => table("Changes, newest first", [
    ["When", ({ changedAt }) => time(changedAt)],
    ["Who", ({ actor, address }) => [actor, address].filter(Boolean).join(" from ")],
    ["Operation", ({ operation }) => operation, "word"],
    ["Tenant", ({ tenantId }) => tenantId ?? "", "code"],
    ["Object", ({ objectId }) => objectId ?? "", "code"],
    ["What changed", ({ before, after }) => difference(before, after)],
    ["Request", ({ requestId }) => requestId ?? "", "code"],
  ], entries), "changes");
}

/** The members that differ, one line each. A creation or deletion shows all members. */
function difference(before, after) {
  const text = (value) => (value === undefined ? "nothing" : JSON.stringify(value));
  if (before === null || after === null) {
    return Object.entries(before ?? after ?? {}).map(([name, value]) => element("div", {}, `${name}: ${text(value)}`));
  }
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  const lines = names
    .filter((name) => JSON.stringify(before[name]) !== JSON.stringify(after[name]))
    .map((name) => element("div", {}, `${name}: ${text(before[name])} → ${text(after[name])}`));
  return lines.length ? lines : "nothing";
}
