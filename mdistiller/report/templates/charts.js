"use strict";
// Parts that all charts share: colours of the theme, looks of the configurations, drawing.
const charts = {
  most: 8,  // lines that a chart shows at first; the others wait in its legend
  palettes: {
    light: ["#0072B2", "#D55E00", "#009E73", "#B5559B", "#B97700", "#2A9DD6", "#6B7280", "#7B3F00"],
    dark: ["#56B4E9", "#FF8A4C", "#3ED6A5", "#E39CC9", "#F0B429", "#8FD3FF", "#B6BDC6", "#C89B7B"],
  },
  chosen: {},  // id of a menu -> value; kept when the page gets news
  logs: new Set(),  // names of charts with a logarithmic axis

  dark() {
    const asked = document.documentElement.dataset.theme;
    return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  },
  colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); },
  palette() { return charts.palettes[charts.dark() ? "dark" : "light"]; },
  narrow() { return document.documentElement.clientWidth < 700; },

  // Plotly reads its own markup in labels; names from records are only text.
  text(words) { return String(words).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); },
  cut(words, most) { return words.length > most ? `${words.slice(0, most - 1)}…` : words; },

  // A colour for each configuration: a method and its EA variant share one; the variant is solid, the method dashed.
  looks(entries) {
    const colours = new Map(), seen = new Map(), palette = charts.palette(), looks = new Map();
    for (const entry of entries) {
      const kind = `${entry.base}|${entry.weighted}`, place = seen.get(kind) ?? 0, name = `${entry.base}|${place}`;
      seen.set(kind, place + 1);
      if (!colours.has(name)) colours.set(name, colours.size);
      const number = colours.get(name), round = Math.floor(number / palette.length);
      const dash = entry.weighted ? ["solid", "longdash"][round % 2] : ["dot", "dashdot"][round % 2];
      looks.set(entry.number, {colour: palette[number % palette.length], dash});
    }
    return looks;
  },

  layout(extra) {
    const axis = {gridcolor: charts.colour("grid"), zerolinecolor: charts.colour("line"), automargin: true,
                  linecolor: charts.colour("line"), title: {standoff: 8}};
    const {xaxis = {}, yaxis = {}, ...rest} = extra, narrow = charts.narrow();
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: {color: charts.colour("text"), family: "system-ui, sans-serif", size: narrow ? 11 : 13},
      hoverlabel: {bgcolor: charts.colour("card"), bordercolor: charts.colour("line"), align: "left",
                   font: {color: charts.colour("text")}, namelength: -1},
      margin: {l: 10, r: 10, t: 14, b: 10}, height: 430, showlegend: false,
      legend: narrow ? {orientation: "h", y: -0.22, yanchor: "top", x: 0, font: {size: 10}, maxheight: 150}
        : {x: 1.01, y: 1, font: {size: 12}},
      xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis}, ...rest,
    };
  },

  // Draw a chart in its section, or hide the section if there is nothing to draw.
  draw(name, label, traces, layout, shown = traces.length > 0) {
    const section = document.getElementById(name), place = document.getElementById(`${name}-plots`);
    section.hidden = !shown;
    if (!shown) return;
    let plot = place.querySelector(".plot");
    if (!plot) {
      plot = document.createElement("div");
      plot.className = "plot";
      plot.setAttribute("role", "figure");
      place.append(plot);
    }
    plot.setAttribute("aria-label", label);
    const config = {responsive: true, displaylogo: false, displayModeBar: charts.narrow() ? false : "hover",
                    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
    Plotly.react(plot, traces, charts.layout(layout), config);
  },

  // Fill a menu with [value, words] and return the chosen value, which stays while it is offered.
  menu(id, options, preferred) {
    const select = document.getElementById(id), values = options.map(([value]) => String(value));
    select.replaceChildren(...options.map(([value, words]) => new Option(words, value)));
    const wanted = [charts.chosen[id], preferred, values[0]].map(String);
    select.value = wanted.find(value => values.includes(value)) ?? "";
    select.parentElement.hidden = options.length < 2;
    return select.value;
  },

  last(entry) { return filters.runs(entry).map(run => run.last); },
  bySeed(entry) { return Object.fromEntries(filters.runs(entry).map(run => [run.seed, run.last])); },
  pairs(entries) {
    const pairs = [...new Set(entries.flatMap(entry => entry.pairs))].filter(pair => filters.has("pair", pair));
    return pairs.map(pair => [pair, pair]);
  },
  // Those of a pair of networks, the best first: so each keeps its colour in all charts.
  ranked(entries, pair) {
    return entries.filter(entry => entry.pairs.includes(pair))
      .sort((a, b) => numbers.mean(charts.last(b)) - numbers.mean(charts.last(a)));
  },
  commonest(entries) {
    const count = pair => entries.filter(entry => entry.pairs.includes(pair)).length;
    return charts.pairs(entries).map(([pair]) => pair).sort((a, b) => count(b) - count(a))[0];
  },
  named(entry, several) { return several ? `${entry.label} (${entry.pairs[0]})` : entry.label; },

  // Everything again, after a change of filters, theme or width.
  show(data) {
    const entries = filters.entries(data);
    for (const draw of [charts.gains, charts.curves, charts.cost, charts.weights, charts.classes]) draw(data, entries);
  },

  build(data, root) {
    for (const select of root.querySelectorAll(".controls select")) {
      select.addEventListener("change", () => { charts.chosen[select.id] = select.value; charts.show(data); });
    }
    for (const button of root.querySelectorAll(".controls .log")) {
      const name = button.closest("section").id;
      button.setAttribute("aria-pressed", charts.logs.has(name));
      button.addEventListener("click", () => {
        charts.logs[charts.logs.has(name) ? "delete" : "add"](name);
        button.setAttribute("aria-pressed", charts.logs.has(name));
        charts.show(data);
      });
    }
  },
};
