"use strict";
// Asks the server for news every few seconds, and replaces what has changed. Filters, menus and places stay.
const live = {
  seconds: 4,
  tag: null,

  async ask() {
    const state = document.getElementById("live");
    try {
      const answer = await fetch("main", {headers: live.tag ? {"If-None-Match": live.tag} : {}, cache: "no-store"});
      if (answer.status === 200) {
        live.tag = answer.headers.get("ETag");
        live.replace(await answer.text());
      }
      state.textContent = answer.ok || answer.status === 304 ? "live" : `not read: ${(await answer.text()).slice(0, 200)}`;
    } catch {
      state.textContent = "the server has ended";
    }
    setTimeout(live.ask, 1000 * live.seconds);
  },

  replace(html) {
    const root = document.getElementById("main"), place = [scrollX, scrollY], held = document.activeElement?.id;
    const menus = [...root.querySelectorAll(".pick[open]")].map(menu => menu.id);
    const opened = [...root.querySelectorAll("details[open] > summary")].map(live.name);
    root.innerHTML = html;
    for (const summary of root.querySelectorAll("details > summary")) {
      summary.parentElement.open = opened.includes(live.name(summary));
    }
    page.start();
    for (const id of menus) document.getElementById(id)?.setAttribute("open", "");
    if (held) document.getElementById(held)?.focus({preventScroll: true});
    scrollTo(...place);
  },

  name(summary) { return `${summary.closest("section[id]")?.id}|${summary.textContent}`; },
};
setTimeout(live.ask, 1000 * live.seconds);
