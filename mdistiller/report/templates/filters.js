"use strict";
// Which runs are shown: what is picked by method, pair and seed. An empty set means all of them.
const filters = {
  picked: {method: new Set(), pair: new Set(), seed: new Set()},
  words: {method: ["Method", "methods"], pair: ["Pair", "pairs"], seed: ["Seed", "seeds"]},

  // Each value once, in the order of the page; seeds by number.
  options(data) {
    const unique = values => [...new Set(values)];
    return {
      method: unique(data.entries.map(entry => entry.method)),
      pair: unique(data.entries.flatMap(entry => entry.pairs)),
      seed: unique(data.entries.flatMap(entry => entry.runs.map(run => String(run.seed)))).sort((a, b) => a - b),
    };
  },

  has(kind, value) { return !filters.picked[kind].size || filters.picked[kind].has(String(value)); },
  any() { return Object.values(filters.picked).some(set => set.size); },
  runs(entry) { return entry.runs.filter(run => filters.has("seed", run.seed)); },

  entries(data) {
    return data.entries.filter(entry => filters.has("method", entry.method)
      && entry.pairs.some(pair => filters.has("pair", pair)) && filters.runs(entry).length);
  },

  // Build the menus. `changed` is called after each click.
  build(data, place, changed) {
    const options = filters.options(data), opened = [...place.querySelectorAll("details[open]")].map(menu => menu.id);
    place.replaceChildren();
    for (const [kind, values] of Object.entries(options)) {
      for (const value of filters.picked[kind]) if (!values.includes(value)) filters.picked[kind].delete(value);
      place.append(filters.menu(kind, values, changed));
    }
    const all = document.createElement("button");
    all.type = "button";
    all.textContent = "Show all";
    all.addEventListener("click", () => {
      for (const set of Object.values(filters.picked)) set.clear();
      filters.build(data, place, changed);
      changed();
    });
    place.append(all);
    for (const id of opened) document.getElementById(id).open = true;
  },

  menu(kind, values, changed) {
    const menu = document.createElement("details"), summary = document.createElement("summary");
    const [title, words] = filters.words[kind], box = document.createElement("fieldset");
    const legend = document.createElement("legend");
    menu.className = "pick";
    menu.id = `pick-${kind}`;
    legend.textContent = `Show only these ${words}`;
    box.append(legend);
    const told = () => {
      const some = filters.picked[kind];
      summary.textContent = some.size ? `${title}: ${some.size === 1 ? [...some][0] : `${some.size} of ${values.length}`}`
        : `${title}: all ${values.length}`;
      menu.toggleAttribute("data-some", some.size > 0);
    };
    for (const [place, value] of values.entries()) {
      const label = document.createElement("label"), input = document.createElement("input");
      input.type = "checkbox";
      input.value = value;
      input.id = `${menu.id}-${place}`;  // so that it keeps the focus when a live page gets news
      input.checked = filters.picked[kind].has(value);
      input.addEventListener("change", () => {
        filters.picked[kind][input.checked ? "add" : "delete"](value);
        told();
        changed();
      });
      label.append(input, ` ${value}`);
      box.append(label);
    }
    told();
    menu.append(summary, box);
    return menu;
  },
};

// A menu closes with Escape, and when something else is clicked.
document.addEventListener("keydown", event => {
  const menu = event.key === "Escape" && document.querySelector(".pick[open]");
  if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
});
document.addEventListener("click", event => {
  for (const menu of document.querySelectorAll(".pick[open]")) if (!menu.contains(event.target)) menu.open = false;
});
