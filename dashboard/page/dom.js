// Elements are made here and nowhere else, and text is only ever text: what comes from the bus can
// name itself as it likes.

export const $ = (id) => document.getElementById(id);

// h("td", {class: "num", title: "x"}, "text", element, ["more"]); null and false are left out.
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "vars") {
      for (const [name, one] of Object.entries(value)) element.style.setProperty(name, one);
    } else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((one) => one !== null && one !== false));
  return element;
}

// Writes only what differs, so that nothing is laid out anew for nothing.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setHidden(element, hidden) {
  if (element.hidden !== hidden) element.hidden = hidden;
}

// A table with a caption for those who do not see it. columns: [title, class]; a title of "(x)" is
// only for those, too; rows: lists of strings, elements or null.
export function table(caption, columns, rows, options = {}) {
  const head = columns.map(([title, kind]) => h("th", { scope: "col", class: kind, role: "columnheader" },
    title.startsWith("(") ? h("span", { class: "hidden" }, title.slice(1, -1)) : title));
  const body = rows.map((row) =>
    h("tr", { role: "row" }, row.map((cell, n) => {
      const attributes = { class: columns[n][1] };
      if (n === 0 && options.rowHeads !== false) {
        return h("th", { ...attributes, scope: "row", role: "rowheader" }, cell ?? "");
      }
      return h("td", { ...attributes, role: "cell", "data-label": columns[n][0].toLowerCase() }, cell ?? "–");
    })));
  // Roles are named, since on a phone rows with a long text are laid out as lines.
  const stacks = columns.some(([, kind]) => /wide|tail/.test(kind));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { role: "table", class: stacks ? "stacks" : null },
      h("caption", { class: options.caption ? "" : "hidden" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
      h("tbody", { role: "rowgroup" }, body)));
}

export function say(text) {
  setText($("said"), text);
}

// At most one call per frame, whatever comes in between.
export function eachFrame(work) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      work();
    });
  };
}
