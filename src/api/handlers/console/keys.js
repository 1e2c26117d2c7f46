// API keys: list, create, rotate, revoke.

import { get } from "/console/api.js";
import { secretOnce, write } from "/console/confirm.js";
import { announce, button, element, facts, fieldTime, fillList, find, number, table, time, values } from "/console/page.js";

const OVERLAPS = [["1 hour", 3600], ["1 day", 86_400], ["7 days", 604_800], ["30 days", 2_592_000], ["none", 0]];

/** Only the response to the request that creates a key contains it. */
const recover = {
  text: "If the list has a new key, revoke it, and create another.",
  run: openKeys,
};

export async function openKeys() {
  const load = (cursor) => get("/api/v1/api-keys", { limit: 100, cursor });
  await fillList(find("key-list"), load, (keys) => table("Live keys of all tenants", [
    ["Prefix", ({ prefix }) => prefix, "code word"],
    ["Label", ({ label }) => label],
    ["Tenant", ({ tenantId }) => tenantId, "code"],
    ["Scopes", ({ scopes }) => scopes?.join(", ") ?? "all", "word"],
    ["Limit", ({ rateLimitPerWindow }) => (rateLimitPerWindow ? number(rateLimitPerWindow) : ""), "number"],
    ["Created", ({ createdAt }) => time(createdAt)],
    ["Last used", ({ lastUsedAt }) => time(lastUsedAt)],
    ["Expires", ({ expiresAt, rotated }) => (expiresAt ? [time(expiresAt), rotated ? " (rotated)" : ""] : "")],
    ["Actions", (key) => [
      key.rotated ? "" : button("Rotate…", () => rotate(key), `Rotate ${key.prefix}`),
      button("Revoke…", () => revoke(key), `Revoke ${key.prefix}`),
    ]],
  ], keys), "keys");
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const { label, tenantId, rateLimitPerWindow, expiresAt } = values(form);
  const scopes = new FormData(form).getAll("scopes");
  const body = { label };
  if (tenantId) body.tenantId = tenantId;
  if (scopes.length) body.scopes = scopes;
  if (rateLimitPerWindow) body.rateLimitPerWindow = Number(rateLimitPerWindow);
  if (fieldTime(expiresAt) !== undefined) body.expiresAt = fieldTime(expiresAt);
  const operation = {
    title: "Create an API key",
    verb: "Create",
    effects: [
      `A new key with the label "${label}" is created ${tenantId ? `for the tenant ${tenantId}` : "for a new tenant"}.`,
      scopes.length ? `It has only these scopes: ${scopes.join(", ")}.` : "It may do everything that its tenant may do.",
      "The key is shown once. If the response is lost, revoke the new key in the list, and create another.",
    ],
    method: "POST",
    path: "/api/v1/api-keys",
    body,
    recover,
    result: (made) => secretOnce("New key", made.key, facts([["Tenant", made.tenantId], ["Label", made.label]])),
  };
  write(operation, async () => {
    form.reset();
    await openKeys();
    announce("The key was created.");
  });
});

/** Asks for the overlap first, because the confirmation says exactly what will happen. */
function rotate(key) {
  const row = [...find("key-list").querySelectorAll("tr")].find((own) => own.cells[0].textContent === key.prefix);
  const select = element("select", { id: "overlap" }, ...OVERLAPS.map(([name, seconds]) => (
    element("option", { value: seconds, selected: seconds === 86_400 }, name))));
  const close = () => {
    choice.remove();
    row.querySelector("button").focus();
  };
  const next = button("Continue…", () => {
    close();
    confirmRotation(key, Number(select.value), select.selectedOptions[0].textContent);
  });
  const content = element("div", { class: "actions" },
    element("label", { for: "overlap" }, `How long ${key.prefix} remains valid beside the new key`), select, next, button("Cancel", close));
  const choice = element("tr", { class: "choice" }, element("td", { colspan: "9", "data-name": "Rotate" }, content));
  find("key-list").querySelectorAll(".choice").forEach((other) => other.remove());
  row.after(choice);
  select.focus();
}

function confirmRotation(key, overlapSeconds, overlap) {
  const operation = {
    title: `Rotate ${key.prefix}`,
    verb: "Rotate",
    effects: [
      `A new key with the label "${key.label}", the tenant ${key.tenantId}, and the same scopes and limit is created. It is shown once.`,
      overlapSeconds ? `${key.prefix} remains valid for ${overlap}, and is then refused.` : `${key.prefix} is refused at once.`,
      "A key can be rotated once. If the response is lost, revoke the new key in the list, and create another for the same tenant.",
    ],
    method: "POST",
    path: `/api/v1/api-keys/${key.prefix}/rotate`,
    body: { overlapSeconds },
    recover,
    result: ({ key: made, previous }) => secretOnce("New key", made, facts([
      ["Old key", previous.prefix], ["Valid until", time(previous.expiresAt)],
    ])),
  };
  write(operation, async () => {
    await openKeys();
    announce(`${key.prefix} was rotated.`);
  });
}

function revoke(key) {
  const operation = {
    title: `Revoke ${key.prefix}`,
    verb: "Revoke",
    effects: [
      `The key ${key.prefix} ("${key.label}") of the tenant ${key.tenantId} is deleted. Requests with it are refused at once, on other replicas within a second.`,
      "This cannot be undone. The tenant's data remains.",
    ],
    method: "DELETE",
    path: `/api/v1/api-keys/${key.prefix}`,
  };
  write(operation, async () => {
    await openKeys();
    announce(`${key.prefix} was revoked.`);
  });
}
