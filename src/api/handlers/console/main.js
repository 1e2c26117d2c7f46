// Signing in, and which section is shown.

import { RequestError, get, signInWith } from "/console/api.js";
import { learnTenants, openSettlements, openTenants } from "/console/billing.js";
import { openKeys } from "/console/keys.js";
import { openAudit, openHealth, openLimits } from "/console/operations.js";
import * as overview from "/console/overview.js";
import { announce, attempt, describe, find } from "/console/page.js";
import { openWebhooks } from "/console/webhooks.js";

/** The function that fills each section. The parameters are in the fragment: `#webhooks?tenantId=public`. */
const SECTIONS = {
  overview: overview.open,
  tenants: openTenants,
  lookup: () => {},
  settlements: openSettlements,
  webhooks: openWebhooks,
  keys: openKeys,
  limits: openLimits,
  health: openHealth,
  audit: openAudit,
};

const OPEN = "No admin key is configured, so every client on this machine is the operator. Set ADMIN_API_KEY to require a key.";
const FOREIGN = "The console cannot be used at this address: without REQUIRE_API_KEY, the service accepts operators only at localhost.";

const REFUSED = "The admin key is not accepted.";

/** Whether requests with the current key, or without one, are the operator's. The route counts against no quota. */
async function isOperator() {
  try {
    await get("/api/v1/admin/history", { since: Number.MAX_SAFE_INTEGER });
    return true;
  } catch (error) {
    if (error instanceof RequestError && error.status === 401) return false;
    throw error;
  }
}

async function enter() {
  find("sign-in").hidden = true;
  find("console").hidden = false;
  await attempt(async () => {
    const [{ version }] = await Promise.all([get("/api/v1/version"), learnTenants()]);
    find("version").textContent = version;
  });
  await show();
}

function leave(text) {
  signInWith(null);
  overview.forget();
  find("console").hidden = true;
  find("sign-out").hidden = true;
  find("notice").hidden = true;
  find("pause-state").hidden = true;
  find("sign-in").hidden = false;
  find("sign-in-error").textContent = "";
  // Remove the data that was read with the key.
  for (const id of ["totals", "plots", "tenant-list", "lookup-result", "settlement-list", "webhook-list", "delivery-list", "key-list",
    "limits-form", "health-summary", "check-list", "job-list", "audit-list", "known-tenants"]) find(id).replaceChildren();
  document.querySelectorAll("#console form").forEach((form) => form.reset());
  document.title = "Sign in – AgentPay Billing console";
  announce(text);
  find("admin-key").focus();
}

/** Shows the section that the fragment names. */
async function show() {
  if (find("console").hidden) return;
  const [name, query] = location.hash.slice(1).split("?");
  if (name === "content") return;
  const section = name in SECTIONS ? name : "overview";
  for (const own of Object.keys(SECTIONS)) find(own).hidden = own !== section;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${section}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = find(`${section}-title`);
  document.title = `${title.textContent} – AgentPay Billing console`;
  announce("");
  title.focus();
  await attempt(() => SECTIONS[section](new URLSearchParams(query)));
}

find("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = find("admin-key");
  signInWith(field.value);
  field.value = "";
  find("sign-in-error").textContent = "";
  try {
    if (await isOperator()) {
      find("sign-out").hidden = false;
      await enter();
    } else {
      signInWith(null);
      find("sign-in-error").textContent = REFUSED;
      field.focus();
    }
  } catch (error) {
    signInWith(null);
    find("sign-in-error").textContent = error.isRefused ? `${REFUSED} ${describe(error)}` : describe(error);
  }
});

find("sign-out").addEventListener("click", () => leave("You are signed out."));
document.addEventListener("refused", () => leave(`${REFUSED} Sign in again.`));
addEventListener("hashchange", show);

try {
  if (await isOperator()) {
    find("notice").textContent = OPEN;
    find("notice").hidden = false;
    await enter();
  } else {
    leave("");
  }
} catch (error) {
  find("notice").textContent = error.status === 403 ? FOREIGN : describe(error);
  find("notice").hidden = false;
}
