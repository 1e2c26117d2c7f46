// Tenants, key lookup and settlements.

import { RequestError, get } from "/console/api.js";
import {
  announce, attempt, begin, describe, element, facts, fieldTime, fillList, find, json, number, offerTenants, table, time, values,
} from "/console/page.js";

export async function openTenants() {
  const load = (cursor) => get("/api/v1/admin/tenants", { limit: 100, cursor });
  const link = (section, tenant, text) => element("a", { href: `#${section}?tenantId=${encodeURIComponent(tenant)}` }, text);
  await fillList(find("tenant-list"), load, (tenants) => {
    offerTenants(tenants.map((tenant) => tenant.tenantId));
    return table("Tenants", [
      ["Tenant", ({ tenantId }) => tenantId, "code"],
      ["Outstanding requests", ({ requestsOutstanding }) => number(requestsOutstanding), "number"],
      ["Outstanding stroops", ({ outstandingStroops }) => number(outstandingStroops), "number"],
      ["Settled stroops", ({ settledStroops }) => number(settledStroops), "number"],
      ["Settlements", (tenant) => link("settlements", tenant.tenantId, number(tenant.settlements)), "number"],
      ["Webhooks", (tenant) => link("webhooks", tenant.tenantId, number(tenant.webhooks)), "number"],
      ["Services", ({ services }) => number(services), "number"],
      ["API keys", ({ apiKeys }) => number(apiKeys), "number"],
      ["Without a price", ({ unpricedRequests }) => number(unpricedRequests), "number"],
    ], tenants);
  }, "tenants");
}

/** Reads the tenants that the fields for a tenant offer. */
export async function learnTenants() {
  const { items } = await get("/api/v1/admin/tenants", { limit: 500 });
  offerTenants(items.map((tenant) => tenant.tenantId));
}

const settlementColumns = [
  ["Settled", ({ settledAt }) => time(settledAt)],
  ["Agent", ({ agent }) => agent],
  ["Service", ({ serviceId }) => serviceId],
  ["Requests", ({ requests }) => number(requests), "number"],
  ["Price", ({ priceStroops }) => number(priceStroops), "number"],
  ["Billed stroops", ({ billedStroops }) => number(billedStroops), "number"],
  ["Idempotency key", ({ idempotencyKey }) => idempotencyKey, "code"],
  ["Settlement", ({ id }) => id, "code"],
];

export function openSettlements(parameters) {
  if (parameters.get("tenantId")) find("settlements-tenant").value = parameters.get("tenantId");
  return showSettlements();
}

function showSettlements() {
  const { tenantId: tenant, since, ...filter } = values(find("settlements-form"));
  const load = (cursor) => get("/api/v1/settlements", { ...filter, since: fieldTime(since), limit: 50, cursor }, { tenant });
  const show = (settlements) => table(`Settlements of ${tenant}`, settlementColumns, settlements);
  return fillList(find("settlement-list"), load, show, "settlements");
}

find("settlements-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(showSettlements);
});

find("lookup-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(lookUp);
});

async function lookUp() {
  const { key, tenantId, address } = values(find("lookup-form"));
  const place = find("lookup-result");
  const isNewest = begin(place);
  try {
    const outcome = await get(`/api/v1/admin/idempotency/${encodeURIComponent(key)}`, { tenantId, address });
    if (isNewest()) showOutcome(place, outcome);
  } catch (error) {
    if (!isNewest()) return;
    if (!(error instanceof RequestError) || ![400, 404].includes(error.status)) throw error;
    const text = error.status === 404
      ? `There is no record of the key ${key}: no request with it was executed, its response was not stored, or the record has expired.`
      : describe(error);
    place.replaceChildren(element("p", { class: "error" }, text));
    announce(text);
  }
}

function showOutcome(place, outcome) {
  const isStored = outcome.method !== undefined;
  const state = !isStored
    ? "Executed. The record was deleted after it had expired; its settlements remain."
    : outcome.isLive
      ? "Executed. A repeated request gets the stored response."
      : "Executed. The record has expired: a repeated request is executed as a new one.";
  const parts = [
    element("h3", { tabindex: "-1" }, `Key ${outcome.key}`),
    facts([
      ["State", state],
      ["Caller", outcome.caller],
      ["Request", isStored ? `${outcome.method} ${outcome.path}` : null],
      ["Executed", isStored ? time(outcome.createdAt) : null],
      ["Expires", isStored ? time(outcome.expiresAt) : null],
      ["Request id", outcome.requestId],
      ["Status", isStored ? String(outcome.status) : null],
      ["Response", isStored ? (outcome.response === null ? "none" : json(outcome.response)) : null],
    ]),
  ];
  if (outcome.usage.length) {
    parts.push(table("Usage recorded or reset", [
      ["Agent", ({ agent }) => agent],
      ["Service", ({ serviceId }) => serviceId],
      ["Requests", ({ requests, clearedTotal }) => number(requests ?? -clearedTotal), "number"],
      ["Outstanding after", ({ total }) => number(total ?? 0), "number"],
    ], outcome.usage));
    if (/^\/api\/v1\/usage\/bulk\/?$/.test(outcome.path)) {
      parts.push(element("p", { class: "note" }, "It may include usage of other bulk requests of the same commit with the same totals."));
    }
  }
  if (outcome.settlements.length) parts.push(table("Settlements created", settlementColumns, outcome.settlements));
  place.replaceChildren(...parts);
  parts[0].focus();
  announce(`Key ${outcome.key}: ${state}`);
}
