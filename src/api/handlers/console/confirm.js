// Asks for a confirmation of every write. No Idempotency-Key is sent, because the routes that the console writes to ignore it.

import { RequestError, send } from "/console/api.js";
import { attempt, button, describe, element, find } from "/console/page.js";

const dialog = find("confirm");
const go = find("confirm-go");
const cancel = find("confirm-cancel");
const problem = find("confirm-error");

/**
 * Shows what a write will do, and sends it if the operator agrees. Returns the response, or `undefined` if the operator cancels.
 *
 * `title` names the action, `verb` the button, and `effects` lists what will happen. `result(response)` may make an element that
 * is shown before the dialog closes, such as a key that is shown once. With `recover`, the dialog does not offer to repeat a write
 * that may have been executed: `recover.text` says what to do instead, and `recover.run` reads the current state.
 */
export function confirmWrite({ title, verb, effects, method, path, body, tenant, result, recover }) {
  const returnTo = document.activeElement;
  find("confirm-title").textContent = title;
  const lines = [`${method} ${path}`];
  if (tenant) lines.push(`X-Tenant-Id: ${tenant}`);
  if (body !== undefined) lines.push("", JSON.stringify(body, null, 2));
  find("confirm-text").replaceChildren(
    element("ul", {}, ...effects.map((effect) => element("li", {}, effect))),
    element("p", { class: "note" }, "The request:"),
    element("pre", {}, lines.join("\n")),
  );
  problem.textContent = "";
  go.textContent = verb;
  go.hidden = go.disabled = cancel.disabled = false;
  cancel.textContent = "Cancel";
  return new Promise((resolve) => {
    let answer;
    const close = () => {
      if (!dialog.open) return;
      dialog.close();
      document.onkeydown = null;
      find("confirm-text").replaceChildren();
      if (returnTo?.isConnected) returnTo.focus();
      resolve(answer && answer.value);
    };
    go.onclick = async () => {
      go.disabled = cancel.disabled = true;
      problem.textContent = "";
      try {
        answer = { value: await send(method, path, { body, tenant }) };
        const shown = result?.(answer.value);
        if (!shown) return close();
        find("confirm-text").replaceChildren(shown);
        find("confirm-title").textContent = `${title}: done`;
        go.hidden = true;
        cancel.textContent = "Close";
        cancel.disabled = false;
        find("confirm-title").focus();
      } catch (error) {
        if (!(error instanceof RequestError)) throw error;
        if (error.isRefused) {
          close();
          return document.dispatchEvent(new Event("refused"));
        }
        const isLost = recover && error.isUnknown;
        problem.textContent = isLost ? `${describe(error)} ${recover.text}` : describe(error);
        cancel.disabled = false;
        go.disabled = isLost || !error.isRetryable;
        if (!go.disabled) go.textContent = "Try again";
        (go.disabled ? cancel : go).focus();
        if (isLost) {
          go.hidden = true;
          cancel.textContent = "Close";
          attempt(recover.run);
        }
      }
    };
    cancel.onclick = close;
    // Escape must not hide a request in progress or a new key. The focus may be outside the dialog.
    document.onkeydown = (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      if (!cancel.disabled && !answer) close();
    };
    dialog.showModal();
    cancel.focus();
  });
}

/** Confirms and sends a write, then runs `done` with the response. Moves the focus to the section if its button is gone. */
export function write(operation, done) {
  return attempt(async () => {
    const answer = await confirmWrite(operation);
    if (answer !== undefined) await done(answer);
    if (document.activeElement === document.body) {
      document.querySelector("#content > section:not([hidden]) > h2")?.focus();
    }
  });
}

/** An element that shows a secret once, with a button that copies it. */
export function secretOnce(name, secret, ...more) {
  const field = element("input", { id: "secret", readonly: true, value: secret, spellcheck: "false" });
  const copy = button("Copy", async () => {
    field.select();
    await navigator.clipboard?.writeText(secret).catch(() => {});
    copy.textContent = "Copied";
  });
  return element(
    "div",
    {},
    element("p", {}, "Store it now. It is not shown again."),
    element("label", { for: "secret" }, name),
    field,
    element("p", { class: "actions" }, copy),
    ...more,
  );
}
