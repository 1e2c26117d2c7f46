// Webhooks of a tenant, their deliveries, and redelivery.

import { get } from "/console/api.js";
import { write } from "/console/confirm.js";
import { announce, attempt, begin, button, element, fillList, find, table, time, values } from "/console/page.js";

const DAY_MS = 86_400_000;

export function openWebhooks(parameters) {
  if (parameters.get("tenantId")) find("webhooks-tenant").value = parameters.get("tenantId");
  return showWebhooks();
}

find("webhooks-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(showWebhooks);
});

async function showWebhooks() {
  const { tenantId: tenant } = values(find("webhooks-form"));
  // Deliveries of another tenant may still be loading.
  begin(find("delivery-list"));
  find("delivery-list").replaceChildren();
  const load = (cursor) => get("/api/v1/webhooks", { limit: 50, cursor }, { tenant });
  await fillList(find("webhook-list"), load, (webhooks) => table(`Webhooks of ${tenant}`, [
    ["Webhook", ({ id }) => id, "code"],
    ["URL", ({ url }) => url],
    ["Events", ({ events }) => events.join(", ")],
    ["Created", ({ createdAt }) => time(createdAt)],
    ["State", ({ disabledAt }) => (disabledAt ? ["disabled since ", time(disabledAt)] : "enabled")],
    ["Actions", (webhook) => [
      button("Deliveries", () => attempt(() => showDeliveries(tenant, webhook, true)), `Deliveries of ${webhook.id}`),
      webhook.disabledAt ? button("Enable…", () => attempt(() => enable(tenant, webhook.id)), `Enable ${webhook.id}`) : "",
      button("Redeliver failed…", () => redeliverFailed(tenant, webhook), `Redeliver failed deliveries of ${webhook.id}`),
    ]],
  ], webhooks), "webhooks");
}

async function showDeliveries(tenant, webhook, moveFocus = false) {
  const place = find("delivery-list");
  const isNewest = begin(place);
  const list = element("div", {});
  const load = (cursor) => get(`/api/v1/webhooks/${webhook.id}/deliveries`, { limit: 50, cursor }, { tenant });
  await fillList(list, load, (deliveries) => table(`Deliveries to ${webhook.url}`, [
    ["Event", ({ type }) => type],
    ["Status", ({ status }) => element("span", { class: { failed: "bad", cancelled: "warn" }[status] }, status)],
    ["Attempts", ({ attempts }) => String(attempts), "number"],
    ["Last attempt", ({ lastAttemptAt }) => time(lastAttemptAt)],
    ["Next attempt", ({ nextAttemptAt }) => time(nextAttemptAt)],
    ["Response", ({ responseStatus, error }) => [responseStatus, error].filter((part) => part !== null).join(" ")],
    ["Delivery", ({ id }) => id, "code"],
    ["Actions", (delivery) => (isRepeatable(delivery)
      ? button("Redeliver…", () => redeliver(tenant, webhook, delivery), `Redeliver ${delivery.id}`)
      : "")],
  ], deliveries), "deliveries", isNewest);
  if (!isNewest()) return;
  const title = element("h3", { tabindex: "-1" }, `Deliveries of ${webhook.id}`);
  const reload = button("Reload", () => attempt(() => showDeliveries(tenant, webhook)), `Reload the deliveries of ${webhook.id}`);
  place.replaceChildren(title, list, reload);
  if (moveFocus) title.focus();
}

/** A PATCH enables a webhook, even if it changes nothing else. */
async function enable(tenant, id) {
  const { url, events } = await get(`/api/v1/webhooks/${id}`, {}, { tenant });
  const operation = {
    title: `Enable ${id}`,
    verb: "Enable",
    effects: [`New events are sent to ${url} again.`, "Deliveries that failed or were cancelled are not sent: redeliver them."],
    method: "PATCH",
    path: `/api/v1/webhooks/${id}`,
    body: { events },
    tenant,
  };
  await write(operation, async () => {
    await showWebhooks();
    announce(`${id} is enabled.`);
  });
}

/** Test deliveries are never repeated. */
function isRepeatable({ status, type }) {
  return status !== "pending" && type !== "webhook.test";
}

function redeliver(tenant, webhook, delivery) {
  send(tenant, webhook, { deliveryIds: [delivery.id] }, [
    `The delivery ${delivery.id} (${delivery.type}) is sent again to ${webhook.url}, with the same id.`,
  ]);
}

function redeliverFailed(tenant, webhook) {
  send(tenant, webhook, { failedSince: Date.now() - 7 * DAY_MS }, [
    `Up to 1000 deliveries that failed or were cancelled in the last seven days are sent again to ${webhook.url}.`,
  ]);
}

function send(tenant, webhook, body, effects) {
  const operation = {
    title: "Redeliver",
    verb: "Redeliver",
    effects: [...effects, "They are due at once and get all their attempts again."],
    method: "POST",
    path: `/api/v1/webhooks/${webhook.id}/redeliver`,
    body,
    tenant,
  };
  if (webhook.disabledAt) operation.effects.push("Nothing is sent while the webhook is disabled.");
  write(operation, async ({ resent, hasMore }) => {
    await showDeliveries(tenant, webhook);
    announce(`Deliveries sent again: ${resent}.${hasMore ? " There are more: repeat the action." : ""}`);
  });
}
