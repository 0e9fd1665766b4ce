// The index of runs: sort by a column, filter by words, compare ticked runs. The state survives a reload.
"use strict";
(() => {
  const key = "postrain index " + location.pathname;
  const table = document.querySelector("table.listing"), body = table.tBodies[0];
  const filter = document.getElementById("filter"), count = document.getElementById("count");
  const panel = document.getElementById("compare"), rows = [...body.rows];
  const state = { filter: "", column: -1, down: false, ticked: [] };
  try { Object.assign(state, JSON.parse(sessionStorage.getItem(key) || "{}")); } catch { /* no storage: default state */ }
  const save = () => { try { sessionStorage.setItem(key, JSON.stringify(state)); } catch { /* no storage */ } };
  const value = (row, column) => row.cells[column].dataset.value;

  function sort() {
    if (state.column < 0) return;
    const sign = state.down ? -1 : 1;
    const order = (one, two) => {
      const a = value(one, state.column), b = value(two, state.column);
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    };
    [...rows].sort(order).forEach(row => body.append(row));
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      head.setAttribute("aria-sort", index !== state.column ? "none" : state.down ? "descending" : "ascending");
    });
  }

  function show() {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      visible += !row.hidden;
    }
    const all = rows.length === 1 ? "1 entry" : `${rows.length} entries`;
    count.textContent = visible === rows.length ? all : `${visible} of ${all}`;
  }

  function element(name, text, parent) {
    const made = document.createElement(name);
    made.textContent = text;
    parent.append(made);
    return made;
  }

  function compare() {
    const chosen = rows.filter(row => state.ticked.includes(row.dataset.path));
    panel.hidden = chosen.length < 2;
    panel.replaceChildren();
    if (panel.hidden) return;
    const kinds = new Set(chosen.map(row => row.dataset.kind));
    const quote = path => /^[\w@%+=:,./-]+$/.test(path) ? path : "'" + path.replaceAll("'", "'\\''") + "'";
    element("h2", `${chosen.length} compared`, panel);
    element("p", kinds.size > 1 ? "Only entries of one kind can be compared in a report."
      : "Before → after training. With intervals, curves and samples:", panel);
    if (kinds.size === 1) {
      const line = [panel.dataset.command, ...chosen.map(row => quote(row.dataset.path)), "--open"].join(" ");
      element("pre", line, panel).className = "command";
    }
    const found = chosen.map(row => JSON.parse(row.dataset.metrics));
    const names = [...new Set(found.flatMap(Object.keys))];
    if (!names.length) return;
    const scroll = element("div", "", panel);
    scroll.className = "scroll card";
    const made = element("table", "", scroll);
    made.className = "wide";
    const head = element("tr", "", element("thead", "", made));
    element("th", "metric", head);
    chosen.forEach(row => { const th = element("th", value(row, 1), head); th.title = row.dataset.path; });
    const lines = element("tbody", "", made);
    for (const name of names) {
      const line = element("tr", "", lines);
      element("th", name, line).scope = "row";
      found.forEach(metrics => element("td", metrics[name] ? metrics[name].join(" → ") : "–", line));
    }
  }

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (column === 0) return;
    head.querySelector("button").addEventListener("click", () => {
      state.down = state.column === column ? !state.down : column > 4;
      state.column = column;
      save(); sort();
    });
  });
  filter.addEventListener("input", () => { state.filter = filter.value; save(); show(); });
  for (const row of rows) {
    const box = row.querySelector("input");
    if (!box) continue;
    box.checked = state.ticked.includes(row.dataset.path);
    box.addEventListener("change", () => {
      state.ticked = rows.filter(one => one.querySelector("input:checked")).map(one => one.dataset.path);
      save(); compare();
    });
  }
  filter.value = state.filter;
  sort(); show(); compare();
})();
