// Small plots as SVG.

import { element } from "/console/page.js";

const WIDTH = 360;
const HEIGHT = 88;

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A figure that is easy to read: 1.2k instead of 1234. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  const scales = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];
  const [unit, name] = scales.find(([unit]) => value >= unit) ?? [1, ""];
  const scaled = value / unit;
  return `${scaled >= 100 || Number.isInteger(scaled) ? Math.round(scaled) : scaled.toFixed(scaled < 10 ? 2 : 1)}${name}`;
}

/** The largest value of the axis: 1, 2 or 5 times a power of ten. */
function axis(max) {
  if (max <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(max));
  return power * [1, 2, 5, 10].find((step) => step * power >= max);
}

/** Lines through the points of `values`; gaps where a value is null. */
function path(points, top, from, to) {
  let isDrawn = false;
  let text = "";
  for (const { at, value } of points) {
    if (value === null) {
      isDrawn = false;
      continue;
    }
    const x = ((at - from) / (to - from)) * WIDTH;
    const y = HEIGHT - (value / top) * HEIGHT;
    text += `${isDrawn ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    // A single point is drawn as a short line.
    if (!isDrawn) text += "h0.01";
    isDrawn = true;
  }
  return text;
}

/**
 * A figure with one line for each of `series`, which are `{name, points}`, over the time `from`–`to`. The text beside the title
 * is the newest value.
 */
export function plot(title, unit, series, from, to) {
  const all = series.flatMap(({ points }) => points.map(({ value }) => value)).filter((value) => value !== null);
  const max = Math.max(0, ...all);
  const top = axis(max);
  const newest = series.map(({ points }) => points.at(-1)?.value ?? null);
  const now = `${newest.map(short).join(" / ")}${unit ? ` ${unit}` : ""}`;
  const summary = `${title}: now ${now}, highest in the last hour ${short(max)} ${unit}`.trim();
  const drawing = shape("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": summary,
  });
  for (const y of [0, HEIGHT / 2, HEIGHT]) drawing.append(shape("line", { x1: 0, x2: WIDTH, y1: y, y2: y }));
  series.forEach(({ points }, index) => {
    drawing.append(shape("path", { d: path(points, top, from, to), class: index ? "second" : "first" }));
  });
  const names = series.length < 2 ? [] : [" (", series[0].name, " / ", element("span", { class: "second-name" }, series[1].name), ")"];
  return element(
    "figure",
    {},
    element("figcaption", {}, element("span", {}, title, ...names), element("b", {}, now)),
    drawing,
    element("div", { class: "scale", "aria-hidden": "true" }, element("span", {}, "1 h ago"), element("span", {}, `0 – ${short(top)} ${unit}`), element("span", {}, "now")),
  );
}
