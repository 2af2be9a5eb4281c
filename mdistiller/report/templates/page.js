"use strict";
// Puts the page together: once when it is opened, and again when a live page gets news.
const page = {
  data: null,

  start() {
    const root = document.getElementById("main");
    page.data = JSON.parse(document.getElementById("data").textContent);
    tables.build(root);
    if (document.getElementById("picks")) {
      filters.build(page.data, document.getElementById("picks"), page.show);
      charts.build(page.data, root);
      page.show();
    }
    page.sections(root);
  },

  show() {
    tables.show(page.data, document.getElementById("main"));
    charts.show(page.data);
    page.sections(document.getElementById("main"));
  },

  // Links to the sections that the page has now.
  sections(root) {
    const items = [...root.querySelectorAll("h2:not(.small)")].filter(heading => heading.offsetParent !== null).map(heading => {
      const link = document.createElement("a"), item = document.createElement("li");
      heading.id ||= `section-${heading.closest("section")?.id || heading.textContent.replace(/\W+/g, "-")}`;
      link.href = `#${heading.id}`;
      link.textContent = heading.textContent;
      item.append(link);
      return item;
    });
    document.getElementById("sections").replaceChildren(...items);
  },

  theme(name) {
    const button = document.getElementById("theme");
    if (name) document.documentElement.dataset.theme = name;
    button.setAttribute("aria-pressed", charts.dark());
    try {
      if (name) localStorage.setItem("theme", name);
    } catch { /* a page from disk may have no storage */ }
  },
};

(() => {
  let stored = null;
  try { stored = localStorage.getItem("theme"); } catch { /* no storage */ }
  page.theme(["light", "dark"].includes(stored) ? stored : "");
  const redraw = () => { if (page.data?.entries.length) charts.show(page.data); };
  document.getElementById("theme").addEventListener("click", () => { page.theme(charts.dark() ? "light" : "dark"); redraw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { page.theme(""); redraw(); });
  matchMedia("(max-width: 700px)").addEventListener("change", redraw);
  page.start();
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
})();
