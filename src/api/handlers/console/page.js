// Builds parts of the page. Data is inserted as text only, never as HTML.

export const find = (id) => document.getElementById(id);

/** An element with attributes and children. Children are elements or text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

export function button(text, action, label) {
  return element("button", { type: "button", click: action, "aria-label": label }, text);
}

/** Shows what happened, and announces it to screen readers. */
export function announce(text) {
  find("status").textContent = text;
}

const two = (number) => String(number).padStart(2, "0");

/** Local time, to the second. The `datetime` of the element is exact. */
export function time(ms) {
  if (ms === null || ms === undefined) return "";
  const date = new Date(ms);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return element("time", { datetime: date.toISOString(), title: date.toISOString(), class: "time" }, element("span", {}, day), " ", element("span", {}, clock));
}

/** A whole number with separators. Amounts beyond 2^53 arrive as text. */
export function number(value) {
  return BigInt(value).toLocaleString("en").replaceAll(",", "\u202f");
}

/** Milliseconds of a `datetime-local` field, or `undefined` if it is empty. */
export function fieldTime(value) {
  const ms = value ? new Date(value).getTime() : NaN;
  return Number.isNaN(ms) ? undefined : ms;
}

/** The values of a form, trimmed. */
export function values(form) {
  return Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
}

/**
 * A table of `rows`. A column is `[name, cell, class]`, where `cell` makes the content from a row. Narrow screens show the table as
 * blocks, with the name beside each cell. The roles keep it a table for screen readers.
 */
export function table(caption, columns, rows) {
  const head = columns.map(([name, , kind]) => element("th", { scope: "col", role: "columnheader", class: kind }, name));
  const body = rows.map((row) => {
    const cells = columns.map(([name, cell, kind]) => {
      const content = cell(row);
      const parts = (Array.isArray(content) ? content : [content ?? ""]).filter((part) => part !== "");
      const shown = parts.length ? [element("div", {}, ...parts)] : [];
      return element("td", { class: kind, "data-name": name, role: "cell" }, ...shown);
    });
    return element("tr", { role: "row" }, ...cells);
  });
  return element(
    "table",
    { role: "table" },
    element("caption", {}, caption),
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...head)),
    element("tbody", { role: "rowgroup" }, ...body),
  );
}

/** Pairs of name and value. */
export function facts(pairs, kind = "facts") {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return element("dl", { class: kind }, ...shown.map(([name, value]) => (
    element("div", {}, element("dt", {}, name), element("dd", {}, value)))));
}

export function json(value) {
  return element("pre", { tabindex: "0" }, JSON.stringify(value, null, 2));
}

/** The fill of each element that began last. */
const newest = new WeakMap();

/** Begins to fill an element. Returns a function that says whether no other fill has begun since. */
export function begin(place) {
  const turn = {};
  newest.set(place, turn);
  return () => newest.get(place) === turn;
}

/**
 * Fills `place` with a list that arrives in pages: `load(cursor)` returns `{items, nextCursor}`, and `show(items)` makes an
 * element of all items so far. Pages that arrive after another fill has begun are dropped.
 */
export async function fillList(place, load, show, noun, isNewest = begin(place)) {
  let items = [];
  async function add(cursor) {
    const page = await load(cursor);
    if (!isNewest()) return;
    items = items.concat(page.items);
    const parts = [items.length ? show(items) : element("p", {}, `No ${noun}.`)];
    if (page.nextCursor) {
      const more = () => attempt(async () => {
        await add(page.nextCursor);
        (place.querySelector(".more") ?? place.querySelector("table")).focus();
      });
      parts.push(element("button", { type: "button", class: "more", click: more }, `More ${noun}`));
    }
    place.replaceChildren(...parts);
    place.querySelector("table")?.setAttribute("tabindex", "-1");
    announce(`${noun[0].toUpperCase()}${noun.slice(1)}: ${items.length}${page.nextCursor ? " or more" : ""}`);
  }
  await add();
}

/** Runs `work` and shows why it failed. */
export async function attempt(work) {
  try {
    await work();
  } catch (error) {
    announce(describe(error));
    if (error.isRefused) document.dispatchEvent(new Event("refused"));
    else if (!("status" in error)) throw error;
  }
}

/** The text that describes an error to the operator. */
export function describe(error) {
  const id = error.requestId ? ` (request ${error.requestId})` : "";
  if (error.code === "rate_limited") {
    return `Too many requests: ${error.message}. Wait a moment and try again.${id}`;
  }
  return `${error.code ?? "error"}: ${error.message}${id}`;
}

/** Offers the known tenants in all fields for a tenant. */
export function offerTenants(ids) {
  find("known-tenants").replaceChildren(...ids.map((id) => element("option", { value: id })));
}
