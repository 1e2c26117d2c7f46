// Finds what makes the visible part of a page hard to use with a keyboard, a screen reader, weak eyes or a small screen.
(() => {
  const found = [];
  const isVisible = (element) => element.checkVisibility();
  const all = (selector) => [...document.querySelectorAll(selector)].filter(isVisible);
  const shown = (element) => `${element.localName}#${element.id}.${element.className} "${element.textContent.slice(0, 40)}"`;

  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  ids.filter((id, index) => ids.indexOf(id) !== index).forEach((id) => found.push(`the id ${id} is not unique`));
  for (const field of all("input, select, textarea")) {
    const label = field.getAttribute("aria-label") || field.labels?.[0]?.textContent.trim();
    if (!label) found.push(`no label: ${shown(field)}`);
  }
  for (const control of all("button, a[href]")) {
    const name = control.getAttribute("aria-label") || control.textContent.trim();
    if (!name) found.push(`no name: ${shown(control)}`);
  }
  for (const [attribute] of [["aria-labelledby"], ["aria-describedby"], ["for"], ["list"]]) {
    for (const element of document.querySelectorAll(`[${attribute}]`)) {
      if (!document.getElementById(element.getAttribute(attribute))) found.push(`${attribute} leads nowhere: ${shown(element)}`);
    }
  }
  let last = 0;
  for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    const level = Number(heading.localName[1]);
    if (level > last + 1) found.push(`h${level} follows h${last}: ${shown(heading)}`);
    last = level;
  }
  for (const table of all("table")) {
    if (!table.caption?.textContent) found.push(`no caption: ${shown(table)}`);
    if (![...table.querySelectorAll("th")].every((cell) => cell.scope === "col" && cell.textContent)) found.push(`th: ${shown(table)}`);
  }
  for (const image of all("svg, img")) {
    if (!image.getAttribute("aria-label") && !image.alt) found.push(`no text for an image: ${shown(image)}`);
  }
  if (all("main").length !== 1) found.push("not exactly one main");
  if (!document.documentElement.lang || !document.title) found.push("no language or title");

  // Contrast of text and its background (WCAG 2.2, 1.4.3).
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const background = (element) => {
    for (let own = element; own; own = own.parentElement) {
      const [red, green, blue, alpha = 1] = parse(getComputedStyle(own).backgroundColor);
      if (alpha === 1) return [red, green, blue];
      if (alpha > 0) found.push(`a translucent background: ${shown(own)}`);
    }
    return [255, 255, 255];
  };
  const luminance = (color) => {
    const [red, green, blue] = color.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  let checked = 0;
  for (const element of all("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const isField = element.matches("input:not([type=checkbox]), select");
    if ((!hasText && !isField) || element.closest(":disabled")) continue;
    for (const part of [null, "::before"]) {
      const style = getComputedStyle(element, part);
      if (part && style.content === "none") continue;
      const ratio = contrast(parse(style.color).slice(0, 3), background(element));
      if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${part ?? ""} ${shown(element)}`);
      checked += 1;
    }
  }
  if (checked < 5) found.push(`only ${checked} texts were checked`);

  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) {
    const wide = all("body *").filter((element) => element.getBoundingClientRect().right > width + 0.5);
    found.push(`${document.documentElement.scrollWidth} pixels on ${width}: ${wide.slice(0, 3).map(shown).join(", ")}`);
  }
  return [...new Set(found)];
})()
