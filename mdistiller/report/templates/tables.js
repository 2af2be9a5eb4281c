"use strict";
// Tables: sorted by a click on a heading, searched, and showing only the picked runs.
const tables = {
  order: {},  // id or place of a table -> [column, direction]; kept when the page gets news
  search: "",

  value(row, column) {
    const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
    const number = parseFloat(text.replace(/^[<+]\s*/, ""));
    return /^[<+\-–]?\s*[\d.]/.test(text) && !Number.isNaN(number) ? number : text;
  },

  compare(one, other) {
    if (typeof one === typeof other) return typeof one === "number" ? one - other : one.localeCompare(other);
    return typeof one === "number" ? -1 : 1;  // numbers before words and dashes
  },

  sort(table, column, direction) {
    const body = table.tBodies[0], rows = [...body.rows].filter(row => row.className !== "error");
    const follows = new Map(rows.map(row => [row, row.nextElementSibling?.className === "error" ? row.nextElementSibling : null]));
    rows.sort((a, b) => direction * tables.compare(tables.value(a, column), tables.value(b, column)));
    for (const row of rows) body.append(row, ...(follows.get(row) ? [follows.get(row)] : []));
    [...table.tHead.rows[0].cells].forEach((cell, place) => {
      if (place === column) cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
  },

  build(root) {
    [...root.querySelectorAll("table[data-sortable]")].forEach((table, place) => {
      const name = table.id || `table-${place}`;
      [...table.tHead.rows[0].cells].forEach((cell, column) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = cell.textContent;
        cell.replaceChildren(button);
        button.addEventListener("click", () => {
          const [last, before] = tables.order[name] ?? [-1, 0];
          const numeric = typeof tables.value(table.tBodies[0].rows[0], column) === "number";
          tables.order[name] = [column, last === column ? -before : numeric ? -1 : 1];
          tables.sort(table, ...tables.order[name]);
        });
      });
      if (tables.order[name] && table.tBodies[0].rows.length) tables.sort(table, ...tables.order[name]);
    });
    for (const input of root.querySelectorAll("input[type=search]")) {
      input.value = tables.search;
      input.addEventListener("input", () => { tables.search = input.value; tables.find(root); });
    }
  },

  find(root) {
    const words = tables.search.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of root.querySelectorAll("#results-table tbody tr")) {
      const text = row.textContent.toLowerCase();
      row.classList.toggle("unfound", !words.every(word => text.includes(word)));
      row.hidden = row.classList.contains("unfound") || row.classList.contains("unpicked");
    }
  },

  // Show what is picked, with the numbers of the picked seeds.
  show(data, root) {
    const shown = new Map(filters.entries(data).map(entry => [String(entry.number), entry]));
    for (const element of root.querySelectorAll("[data-entry]")) {
      const picked = shown.has(element.dataset.entry)
        && (element.dataset.seed === undefined || filters.has("seed", element.dataset.seed));
      element.classList.toggle("unpicked", !picked);
      element.hidden = !picked;
      if (picked && element.closest("#results-table")) tables.fill(element, shown.get(element.dataset.entry));
    }
    tables.find(root);
    const total = data.entries.length, runs = [...shown.values()].flatMap(filters.runs).length;
    root.querySelector("#picked").textContent = filters.any()
      ? `${shown.size} of ${total} configurations with ${runs} runs are shown, in tables and charts.` : "";
  },

  fill(row, entry) {
    const runs = filters.runs(entry), write = (name, text) => {
      const link = row.querySelector(`[data-cell=${name}] a`);
      link.dataset.all ??= link.textContent;  // of all seeds
      link.textContent = filters.picked.seed.size ? text : link.dataset.all;
    };
    write("last", numbers.plusMinus(runs.map(run => run.last)));
    write("best", numbers.plusMinus(runs.map(run => run.best)));
    write("seeds", String(runs.length));
  },
};
