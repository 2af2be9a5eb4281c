"use strict";
// The charts, each from the picked runs. Numbers in hover texts are those of the tables.

// {number of an entry and of its baseline -> gain}, with p-values, of all seeds; computed again for some seeds.
charts.gainsOf = (data, entries, over) => {
  const byNumber = new Map(data.entries.map(entry => [entry.number, entry]));
  if (over === "baseline") {
    const shown = new Set(entries.map(entry => entry.number));
    const pairs = data.gains.filter(gain => shown.has(gain.entry));
    return pairs.map(gain => {
      const [entry, baseline] = [byNumber.get(gain.entry), byNumber.get(gain.baseline)];
      if (!filters.picked.seed.size) return {...gain, entry, baseline};
      if (!filters.runs(baseline).length) return null;
      return {...numbers.gain(charts.bySeed(entry), charts.bySeed(baseline), data.critical), entry, baseline};
    }).filter(Boolean);
  }
  const baseline = byNumber.get(Number(over));
  const others = entries.filter(entry => entry !== baseline && entry.metric === baseline.metric
    && entry.pairs.some(pair => baseline.pairs.includes(pair)));
  return others.map(entry => ({
    ...numbers.gain(charts.bySeed(entry), charts.bySeed(baseline), data.critical), entry, baseline,
  }));
};

// An axis that holds all gains and zero; of intervals much longer than the others only a part.
charts.gainRange = points => {
  const ends = points.flatMap(row => [row.low ?? row.mean, row.high ?? row.mean]), means = points.map(row => row.mean);
  const halves = points.filter(row => row.low !== null).map(row => (row.high - row.low) / 2).sort((a, b) => a - b);
  const low = Math.min(0, ...means), high = Math.max(0, ...means);
  const room = Math.max(0.3 * (high - low), 2 * (halves[Math.floor(halves.length / 2)] ?? 0)), edge = 0.05 * room;
  return [Math.max(low - room, Math.min(low, ...ends) - edge), Math.min(high + room, Math.max(high, ...ends) + edge)];
};

charts.gains = (data, entries) => {
  const several = charts.pairs(entries).length > 1;
  const options = entries.map(entry => [entry.number, charts.named(entry, several)]);
  if (data.gains.length) options.unshift(["baseline", "the baseline of each EA variant"]);
  const over = options.length ? charts.menu("gain-over", options) : "";
  const found = over ? charts.gainsOf(data, entries, over) : [];
  const groups = Map.groupBy(found, gain => gain.entry.pairs[0]), rows = [];
  for (const [pair, gains] of groups) {
    if (groups.size > 1) rows.push({heading: pair});
    rows.push(...gains.sort((a, b) => b.mean - a.mean));
  }
  const most = charts.narrow() ? 20 : 60, points = rows.map((row, place) => ({...row, place})).filter(row => row.entry);
  const colour = row => row.low === null ? charts.colour("soft") : row.low > 0 ? charts.palette()[2]
    : row.high < 0 ? charts.palette()[1] : charts.palette()[0];
  const p = row => row.p == null ? "" : `<br>p ${row.p.toPrecision(2)}, after Holm's correction ${row.holm.toPrecision(2)}`;
  const trace = {
    type: "scatter", mode: "markers", x: points.map(row => row.mean), y: points.map(row => row.place),
    error_x: {type: "data", symmetric: false, thickness: 1.6, width: 4, color: charts.colour("soft"),
              array: points.map(row => row.high === null ? 0 : row.high - row.mean),
              arrayminus: points.map(row => row.low === null ? 0 : row.mean - row.low)},
    marker: {size: 10, color: points.map(colour), line: {width: 1.6, color: points.map(colour)},
             symbol: points.map(row => row.low === null ? "circle-open" : "circle")},
    text: points.map(row => `<b>${charts.text(row.entry.label)}</b> over ${charts.text(row.baseline.label)}<br>`
      + `${charts.text(row.entry.pairs[0])}<br>${row.mean >= 0 ? "+" : ""}${row.mean.toFixed(2)}`
      + (row.low === null ? "" : ` [${row.low.toFixed(2)}, ${row.high.toFixed(2)}]`)
      + `, ${row.seeds} common seed${row.seeds === 1 ? "" : "s"}${p(row)}`),
    hovertemplate: "%{text}<extra></extra>",
  };
  const metrics = [...new Set(points.map(row => row.entry.metric))].map(charts.text).join(", ");
  charts.draw("gains", "Gains with 95 % intervals", points.length ? [trace] : [], {
    height: 110 + 24 * rows.length,
    xaxis: {title: {text: `gain in points (${metrics}, last epoch)`}, range: charts.gainRange(points), zeroline: true, zerolinewidth: 2},
    yaxis: {tickvals: rows.map((_, place) => place), range: [rows.length - 0.3, -0.7], zeroline: false,
            ticktext: rows.map(row => row.heading ? "" : charts.text(charts.cut(row.entry.short, most)))},
    annotations: rows.map((row, place) => ({row, place})).filter(({row}) => row.heading).map(({row, place}) => ({
      text: `<b>${charts.text(row.heading)}</b>`, x: 0, xref: "paper", xanchor: "left", y: place, showarrow: false,
      bgcolor: charts.colour("card"), font: {color: charts.colour("text")},
    })),
  }, found.length > 0 || options.length > 1);
};

// The points of one configuration: epoch, mean and deviation over the picked seeds that have this epoch. The deviation
// of the mean weight is that of the weights within a batch.
charts.curveOf = (entry, key) => {
  const at = new Map();
  for (const run of filters.runs(entry)) {
    const curve = run.curves[key];
    curve?.x.forEach((epoch, place) => {
      if (curve.y[place] !== null) at.set(epoch, [...(at.get(epoch) ?? []), curve.y[place]]);
    });
  }
  const points = [...at.entries()].sort((a, b) => a[0] - b[0])
    .map(([x, values]) => ({x, y: numbers.mean(values), spread: numbers.deviation(values) || 0}));
  if (key !== "weight_mean") return points;
  const within = new Map(charts.curveOf(entry, "weight_std").map(point => [point.x, point.y]));
  return points.map(point => ({...point, spread: within.get(point.x) ?? 0}));
};

charts.curves = (data, entries) => {
  const key = charts.menu("curve-key", Object.entries(data.curves));
  const having = entries.filter(entry => filters.runs(entry).some(run => run.curves[key]));
  const pair = charts.menu("curve-pair", charts.pairs(having), charts.commonest(having));
  const shown = charts.ranked(having, pair), looks = charts.looks(shown), traces = [];
  const first = new Set(shown.slice(0, charts.most));
  for (const entry of shown) {
    const points = charts.curveOf(entry, key), {colour, dash} = looks.get(entry.number), name = charts.text(entry.short);
    const common = {x: points.map(point => point.x), legendgroup: String(entry.number), name,
                    visible: first.has(entry) || entry.method === "student alone" ? true : "legendonly"};
    if (points.some(point => point.spread)) {
      traces.push({...common, y: points.map(p => p.y + p.spread), mode: "lines", line: {width: 0}, hoverinfo: "skip",
                   showlegend: false},
                  {...common, y: points.map(p => p.y - p.spread), mode: "lines", line: {width: 0}, hoverinfo: "skip",
                   showlegend: false, fill: "tonexty", fillcolor: `${colour}26`});
    }
    traces.push({...common, y: points.map(point => point.y), mode: points.length > 30 ? "lines" : "lines+markers",
                 line: {color: colour, dash, width: 2}, marker: {size: 5, color: colour},
                 text: points.map(p => p.spread ? ` ± ${p.spread.toPrecision(3)}` : ""),
                 hovertemplate: `<b>${name}</b><br>epoch %{x}: %{y:.5g}%{text}<extra></extra>`});
  }
  const many = traces.length && charts.narrow() ? Math.min(24 * shown.length, 150) : 0;
  charts.draw("curves", `${data.curves[key]} over epochs, ${pair}`, traces, {
    height: 430 + many, showlegend: true, uirevision: `${key}|${pair}`,
    xaxis: {title: {text: "epoch"}, ...charts.whole(traces)},
    yaxis: {title: {text: charts.text(data.curves[key])}, type: charts.logs.has("curves") ? "log" : "linear"},
  }, Object.keys(data.curves).length > 0);
};

// Ticks at whole numbers for the axis of a few epochs, which would have fractions otherwise.
charts.whole = traces => Math.max(0, ...traces.flatMap(trace => trace.x)) <= 10 ? {dtick: 1} : {};

charts.costs = {  // words for the menu and the axis, the number of a run, and whether it is a time of seconds
  time: ["training time", run => run.seconds, true],
  rate: ["seconds per 1000 samples", run => run.rate ? 1000 / run.rate : null],
};

// The unit in which the longest of some times (in seconds) has at least two digits, and its seconds.
charts.unit = times => {
  const longest = Math.max(0, ...times);
  return longest < 600 ? ["seconds", 1] : longest < 36000 ? ["minutes", 60] : ["hours", 3600];
};

charts.cost = (data, entries) => {
  const key = charts.menu("cost-key", Object.entries(charts.costs).map(([name, [words]]) => [name, words]));
  const [name, measure, time] = charts.costs[key];
  const costs = entry => filters.runs(entry).map(measure).filter(Number.isFinite);
  const having = entries.filter(entry => costs(entry).length), pair = charts.menu("cost-pair", charts.pairs(having),
    charts.commonest(having));
  const shown = charts.ranked(having, pair), looks = charts.looks(shown), at = new Map();
  const [unit, size] = time ? charts.unit(shown.flatMap(costs)) : ["", 1], words = time ? `${name} (${unit})` : name;
  for (const entry of shown) at.set(entry.number, [numbers.mean(costs(entry)) / size, numbers.mean(charts.last(entry))]);
  const lines = data.gains.filter(gain => at.has(gain.entry) && at.has(gain.baseline)).map(gain => ({
    x: [at.get(gain.baseline)[0], at.get(gain.entry)[0]], y: [at.get(gain.baseline)[1], at.get(gain.entry)[1]],
    mode: "lines", line: {color: looks.get(gain.entry).colour, width: 1}, opacity: 0.6, hoverinfo: "skip",
  }));
  const colours = shown.map(entry => looks.get(entry.number).colour);
  const points = {
    x: shown.map(entry => at.get(entry.number)[0]), y: shown.map(entry => at.get(entry.number)[1]),
    mode: shown.length > 16 || charts.narrow() ? "markers" : "markers+text", textposition: "top center",
    text: shown.map(entry => charts.text(charts.cut(entry.short, 26))), cliponaxis: false,
    error_y: {type: "data", array: shown.map(entry => numbers.deviation(charts.last(entry)) || null), width: 3,
              thickness: 1, color: charts.colour("soft")},
    marker: {size: 11, color: colours, symbol: shown.map(entry => entry.weighted ? "circle" : "circle-open"),
             line: {width: 2, color: colours}},
    customdata: shown.map(entry => [charts.text(entry.label), numbers.plusMinus(charts.last(entry)),
                                    charts.text(entry.device)]),
    hovertemplate: `<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{x:.4g} ${words}<br>%{customdata[2]}<extra></extra>`,
  };
  const metric = shown.length ? charts.text(shown[0].metric) : "";
  charts.draw("cost", `Accuracy against ${words}, ${pair}`, shown.length ? [...lines, points] : [], {
    xaxis: {title: {text: words}, type: charts.logs.has("cost") ? "log" : "linear"},
    yaxis: {title: {text: `${metric}, last epoch`}}, margin: {l: 10, r: 20, t: 30, b: 10},
  }, data.entries.some(entry => entry.runs.some(run => run.seconds !== null || run.rate)));
};

charts.weights = (data, entries) => {
  const picked = entries.filter(entry => entry.weights);
  const several = charts.pairs(picked).length > 1;
  const number = charts.menu("weight-entry", picked.map(entry => [entry.number, charts.named(entry, several)]));
  const entry = picked.find(one => String(one.number) === number);
  const seeds = entry ? entry.weights.seeds.filter(one => filters.has("seed", one.seed)) : [];
  if (!seeds.length) return charts.draw("weights", "", [], {});
  const epochs = seeds[0].epochs.filter(epoch => seeds.every(one => one.epochs.includes(epoch)));
  const {edges} = entry.weights, middles = edges.slice(1).map((edge, place) => (edge + edges[place]) / 2);
  const at = (one, epoch) => one.epochs.indexOf(epoch);
  const shares = middles.map((_, bin) => epochs.map(epoch =>
    numbers.mean(seeds.map(one => one.shares[at(one, epoch)][bin]))));
  const heat = {
    type: "heatmap", x: epochs, y: middles, z: shares, showscale: !charts.narrow(),
    colorbar: {title: {text: "% of images"}, thickness: 12},
    colorscale: [[0, charts.colour("card")], [1, charts.palette()[0]]],
    hovertemplate: "epoch %{x}, weight about %{y:.2f} nats: %{z:.1f} % of the images<extra></extra>",
  };
  const mean = {
    x: epochs, y: epochs.map(epoch => numbers.mean(seeds.map(one => one.mean[at(one, epoch)]))), mode: "lines+markers",
    line: {color: charts.palette()[1], width: 2.5}, hovertemplate: "epoch %{x}: mean weight %{y:.3f} nats<extra></extra>",
  };
  charts.draw("weights", `Weights over epochs, ${entry.label}`, [heat, mean], {
    xaxis: {title: {text: "epoch"}, showgrid: false, ...charts.whole([heat])}, yaxis: {title: {text: "weight (nats)"}, showgrid: false},
  });
};

charts.classes = (data, entries) => {
  const numbersShown = new Set(entries.map(entry => entry.number));
  const having = data.classes.filter(one => numbersShown.has(one.entry));
  const label = one => data.entries.find(entry => entry.number === one.entry).label;
  const number = charts.menu("class-entry", having.map(one => [one.entry, `${label(one)} over ${one.over}`]));
  const one = having.find(each => String(each.entry) === number);
  if (!one) return charts.draw("classes", "", [], {});
  let bars = one.classes.map((name, place) => [name, one.gains[place]]).filter(([, gain]) => gain !== null);
  if (bars.length > 40) {
    bars.sort((a, b) => b[1] - a[1]);
    bars = [...bars.slice(0, 20), ...bars.slice(-20)];
  }
  const words = `gain over ${one.over} (points)`;
  charts.draw("classes", `${label(one)}: ${words} by class`, [{
    type: "bar", x: bars.map((_, place) => place), y: bars.map(([, gain]) => gain),
    marker: {color: bars.map(([, gain]) => charts.palette()[gain < 0 ? 1 : 0])},
    text: bars.map(([name]) => charts.text(name)), textposition: "none",
    hovertemplate: "%{text}: %{y:+.2f} points<extra></extra>",
  }], {
    xaxis: {title: {text: one.classes.length > bars.length ? "classes with the highest and the lowest gains" : "class"},
            tickvals: bars.map((_, place) => place), ticktext: bars.map(([name]) => charts.text(charts.cut(name, 14)))},
    yaxis: {title: {text: charts.text(words)}}, height: 360,
  });
};
