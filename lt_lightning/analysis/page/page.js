"use strict";
// Charts of a report, from the data in the page. Each chart is a function without arguments that returns
// {traces, layout, told, columns, rows}: what plotly draws, the same in words, and as a table.

const data = JSON.parse(document.getElementById("data").textContent);
// Okabe and Ito's colours, told apart with every kind of colour vision; on dark paper without the blue that sinks into it.
const COLOURS = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"],
  dark: ["#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#F0E442"],
};
const SYMBOLS = ["circle", "square", "diamond", "triangle-down", "triangle-up", "pentagon", "x"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)");
const hidden = new Set();
const charts = [];
let printing = false;

// Small helpers

const isDark = () => dark.matches && !printing;
const colour = (n) => { const all = COLOURS[isDark() ? "dark" : "light"]; return all[n % all.length]; };
const faint = (hex) => `${hex}2e`;
const escaped = (text) => String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
const isKnown = (value) => typeof value === "number";
const digits = (value, count = 4) => (isKnown(value) ? String(Number(value.toPrecision(count))) : "–");
const percent = (share, count = 3) => (isKnown(share) ? `${digits(100 * share, count)}%` : "–");
const unique = (values) => [...new Set(values)];
const scaled = (value, scale) => (isKnown(value) ? scale * value : null);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function select(label, values, change, chosen) {
  const list = element("select", { onchange: (event) => change(event.target.value) });
  for (const value of values) list.append(new Option(value, value, false, value === chosen));
  return element("label", {}, label, list);
}

function say(text) { document.getElementById("told").textContent = text; }

// A chart: a figure with a heading, buttons, the drawing and its table

function addChart(parent, heading, build, controls = []) {
  const id = `chart-${charts.length}`;
  const drawing = element("div", { class: "chart", id, role: "img" });
  const body = element("div", { class: "scroll", role: "region", "aria-label": `Table: ${heading}`, tabindex: "0" });
  const caption = element("figcaption");
  const chart = { heading, drawing, build, body, caption, isOpen: false };
  const button = (text, label, act) =>
    element("button", { type: "button", "aria-label": `${label}: ${heading}`, title: label, onclick: act }, text);
  const tools = element("div", { class: "tools" }, ...controls, element("span", { class: "buttons" },
    button("+", "Zoom in", () => zoom(drawing, 0.6)),
    button("−", "Zoom out", () => zoom(drawing, 1 / 0.6)),
    button("Reset", "Reset zoom", () => reset(chart)),
    button("SVG", "Save as SVG", () => save(drawing, "svg", heading)),
    button("PNG", "Save as PNG", () => save(drawing, "png", heading))));
  const table = element("details", { ontoggle: (event) => { chart.isOpen = event.target.open; fillTable(chart); } },
    element("summary", {}, "Table of this chart"), body);
  parent.append(element("figure", { "aria-labelledby": `${id}-title` },
    element("h3", { id: `${id}-title` }, heading), tools, drawing, caption, table));
  charts.push(chart);
  return chart;
}

// Once all figures have their places, so that each is drawn in its final size; one by one, so that the first is soon seen.
function drawAll() {
  for (const chart of charts) {
    setTimeout(() => {
      if (!chart.made) show(chart);
      chart.drawing.on("plotly_legendclick", (event) => { toggle(event.data[event.curveNumber].name); return false; });
      chart.drawing.on("plotly_legenddoubleclick", () => false);
      document.getElementById("js-plotly-tester").setAttribute("aria-hidden", "true"); // in which plotly measures texts
      if (chart === charts.at(-1)) document.body.dataset.drawn = charts.length;
    });
  }
}

function show(chart) {
  const made = chart.build();
  const [ink, line] = isDark() ? ["#e6e9ec", "#3a424b"] : ["#1b1f24", "#e1e5ea"];
  const axis = { gridcolor: line, zeroline: false, linecolor: line, automargin: true, ticks: "outside", tickcolor: line };
  const layout = {
    font: { family: "system-ui, sans-serif", size: 13, color: ink },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 52, r: 12, t: printing ? 60 : 34, b: 44 },
    dragmode: touch.matches ? false : "zoom",
    hovermode: "closest", hoverlabel: { namelength: -1 },
    showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
    ...(printing ? { width: 620, height: 330, autosize: false } : { autosize: true }),
    ...made.layout,
    xaxis: { ...axis, ...made.layout.xaxis }, yaxis: { ...axis, ...made.layout.yaxis },
  };
  for (const trace of made.traces) trace.visible = hidden.has(trace.name) ? "legendonly" : true;
  Plotly.react(chart.drawing, made.traces, layout, { responsive: true, displayModeBar: false, doubleClick: "reset" });
  chart.made = made;
  chart.caption.textContent = made.caption;
  chart.drawing.setAttribute("aria-label", `${chart.heading}. ${made.told} The table below holds all its numbers.`);
  fillTable(chart);
}

function fillTable(chart) {
  chart.body.replaceChildren();
  if (!chart.isOpen) return;
  const cell = (value) => (isKnown(value) ? `<td>${digits(value, 6)}</td>` : `<td class="text">${escaped(value ?? "–")}</td>`);
  const kind = (n) => (chart.made.rows.some((row) => typeof row[n] === "string") ? ' class="text"' : "");
  const head = chart.made.columns.map((name, n) => `<th scope="col"${kind(n)}>${escaped(name)}</th>`).join("");
  const rows = chart.made.rows.map((row) => `<tr>${row.map(cell).join("")}</tr>`).join("");
  chart.body.innerHTML = `<table><thead><tr>${head}</tr></thead><tbody>${rows}</tbody></table>`;
}

const showAll = () => charts.forEach(show);

function zoom(drawing, factor) {
  const update = {};
  for (const name of ["xaxis", "yaxis"]) {
    const [from, to] = drawing._fullLayout[name].range;
    const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
    update[`${name}.range`] = [middle - half, middle + half];
  }
  Plotly.relayout(drawing, update);
}

function reset(chart) {
  const { xaxis = {}, yaxis = {} } = chart.made.layout;
  Plotly.relayout(chart.drawing, {
    ...(xaxis.range ? { "xaxis.range": [...xaxis.range] } : { "xaxis.autorange": true }),
    ...(yaxis.autorange ? { "yaxis.autorange": yaxis.autorange } : { "yaxis.autorange": true }),
  });
}

function save(drawing, format, heading) {
  const filename = heading.replace(/[^\w.-]+/g, "_");
  Plotly.downloadImage(drawing, { format, filename, width: 800, height: 500, scale: format === "png" ? 2 : 1 });
}

// Lines that several charts share can be hidden in all of them at once

function toggle(name) {
  if (!hidden.delete(name)) hidden.add(name);
  for (const box of document.querySelectorAll("#lines input")) if (box.value === name) box.checked = !hidden.has(name);
  for (const chart of charts) if (chart.made?.traces.some((trace) => trace.name === name)) show(chart);
  say(`${name} is ${hidden.has(name) ? "hidden" : "shown"}`);
}

function swatch(look) {
  const dash = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 4" }[look.dash];
  const made = element("span", { class: "swatch", "aria-hidden": "true" });
  made.innerHTML = `<svg width="28" height="10"><line x1="0" y1="5" x2="28" y2="5" stroke="${look.colour}" stroke-width="3" stroke-dasharray="${dash}"/></svg>`;
  return made;
}

function fillLegend() {
  const box = document.getElementById("lines");
  box.replaceChildren(box.firstElementChild);
  for (const name of [...data.lines.map((line) => line.label), ...referenceNames()]) {
    const input = element("input", { type: "checkbox", value: name, onchange: () => toggle(name) });
    input.checked = !hidden.has(name);
    box.append(element("label", {}, input, swatch(lineLook(name)), name));
  }
}

// How lines look: methods differ by colour and arms by marker; where that is not enough, each line by both

const arms = unique(data.lines.map((line) => line.arm));
const groups = unique(data.lines.map((line) => line.group));
const byGroup = groups.length > 1 && groups.length <= COLOURS.light.length;
const look = (n, m, dash) => ({ colour: colour(n), symbol: SYMBOLS[m % SYMBOLS.length], dash: DASHES[dash % DASHES.length] });

function lineLook(name) {
  const at = data.lines.findIndex((line) => line.label === name);
  if (at < 0) return { colour: isDark() ? "#c3cad1" : "#4b535c", symbol: "circle", dash: "dot" };
  const arm = arms.indexOf(data.lines[at].arm);
  return byGroup ? look(groups.indexOf(data.lines[at].group), arm, arm) : look(at, at, arm);
}

const labelOf = (group, arm) => (data.lines.find((line) => line.group === group && line.arm === arm) ?? { label: arm }).label;
const experiments = Object.keys(data.dense);
const withDense = experiments.length ? ", with the dense round" : "";
const referenceName = (experiment) => (experiments.length > 1 ? `dense, ${experiment}` : "dense");
const referenceNames = () => experiments.map(referenceName);

function trace(name, x, y, style, more = {}) {
  return {
    type: "scatter", mode: "lines+markers", name, x, y, legendgroup: name,
    line: { color: style.colour, dash: style.dash, width: 2 }, marker: { symbol: style.symbol, size: 7, color: style.colour },
    ...more,
  };
}

function band(name, x, low, high, style) {
  return {
    type: "scatter", mode: "lines", name, x: [...x, ...x.slice().reverse()], y: [...high, ...low.slice().reverse()],
    fill: "toself", fillcolor: faint(style.colour), line: { width: 0 }, hoverinfo: "skip", showlegend: false,
    legendgroup: name, meta: "band",
  };
}

// Ticks at 1, 2 and 5 times powers of ten; at the values themselves, or where plotly likes, if these are too few.
function logTicks(least, most) {
  const marks = [];
  for (let power = 6; power > -9; power--) for (const n of [5, 2, 1]) marks.push(Number(`${n}e${power}`));
  return marks.filter((mark) => least <= mark && mark <= most);
}

function densityAxis(densities) {
  const shares = unique(densities).map((share) => 100 * share);
  const [least, most] = [Math.min(...shares), Math.max(...shares)];
  const margin = Math.max(1.1, (most / least) ** 0.04);
  const marks = logTicks(least / margin, most * margin);
  const shown = marks.length > 1 ? marks : shares;
  return {
    type: "log", title: { text: "weights kept (%)" }, range: [Math.log10(most * margin), Math.log10(least / margin)],
    tickmode: "array", tickvals: shown, ticktext: shown.map((mark) => digits(mark, 3)),
  };
}

function logAxis(title, values) {
  const known = values.filter((value) => value > 0);
  const marks = known.length ? logTicks(Math.min(...known) / 1.5, Math.max(...known) * 1.5) : [];
  const ticks = marks.length > 2 ? { tickmode: "array", tickvals: marks, ticktext: marks.map((mark) => digits(mark, 3)) } : {};
  return { type: known.length ? "log" : "linear", title: { text: title }, ...ticks };
}

const scaleOf = (metric) => (data.fractions.includes(metric) ? 100 : 1);
const unitOf = (metric) => (scaleOf(metric) === 100 ? " (%)" : "");
const isLoss = (metric) => metric.endsWith("loss");

// 1. A metric against density

function againstDensity(state) {
  const { metric } = state;
  const [scale, traces, rows, told] = [scaleOf(metric), [], [], []];
  const densities = data.lines.flatMap((line) => (line.points[metric] ?? []).map((point) => point[0]));
  for (const line of data.lines) {
    const points = line.points[metric] ?? [];
    if (!points.length) continue;
    const style = lineLook(line.label);
    const [x, mean, low, high] = [0, 1, 2, 3].map((at) => points.map((point) => scaled(point[at], at ? scale : 100)));
    if (points.some((point) => point[2] !== point[3])) traces.unshift(band(line.label, x, low, high, style));
    const text = points.map((point) => (point[4] > 1 ? `<br>${digits(scaled(point[2], scale), 5)} to ${digits(scaled(point[3], scale), 5)}, ${point[4]} seeds` : ""));
    traces.push(trace(line.label, x, mean, style, {
      text, hovertemplate: `<b>${escaped(line.label)}</b><br>%{x:.3~g}% kept: %{y:.5~g}%{text}<extra></extra>`, meta: "line",
    }));
    points.forEach((point) => rows.push([line.label, percent(point[0]), ...point.slice(1, 4).map((value) => scaled(value, scale)), point[4]]));
    const [first, last] = [points[0], points.at(-1)];
    told.push(`${line.label}: ${digits(scaled(first[1], scale))} at ${percent(first[0])}, ${digits(scaled(last[1], scale))} at ${percent(last[0])}`);
  }
  for (const experiment of experiments) {
    const level = data.dense[experiment][metric];
    if (!isKnown(level) || !densities.length) continue;
    const name = referenceName(experiment);
    traces.push(trace(name, [100 * Math.max(...densities), 100 * Math.min(...densities)], [scale * level, scale * level], lineLook(name), {
      mode: "lines", hovertemplate: `<b>${escaped(name)}</b>: %{y:.5~g}<extra></extra>`, meta: "dense",
    }));
    told.unshift(`${name}: ${digits(scale * level)}`);
  }
  const where = /^(early_stop|best_checkpoint)_/.test(metric) ? "" : metric === "steps" || metric === "seconds" ? "" : " at the end";
  const title = metric === "early_stop_step" ? "early stop (step)" : `${metric}${where}${unitOf(metric)}`;
  return {
    traces, caption: "", told: `Lines of ${title} against the share of weights kept. ${told.join("; ")}.`,
    layout: {
      xaxis: densityAxis(densities.length ? densities : [1]),
      yaxis: { title: { text: title } },
    },
    columns: ["line", "kept", `mean ${title}`, "least", "most", "seeds"], rows,
  };
}

function addDensityCharts() {
  const parent = document.getElementById("density-charts");
  const names = { accuracy: "Accuracy", loss: "Loss", stop: "Early stop" };
  for (const [kind, first] of Object.entries(data.chosen)) {
    if (first === null) continue;
    const state = { metric: first };
    const heading = kind === "accuracy" && !data.fractions.includes(first) ? first : names[kind];
    const metrics = select("metric ", data.metrics, (metric) => { state.metric = metric; show(chart); }, first);
    const chart = addChart(parent, heading, () => againstDensity(state), [metrics]);
  }
}

// 2. Curves of a round

function fitsOf(lines) {
  const found = new Map();
  for (const line of lines) found.set(line[1], Math.max(found.get(line[1]) ?? 0, 1));
  return [...found.keys()].sort((a, b) => a - b);
}

function densityOf(group, round) {
  const line = data.lines.find((each) => each.group === group && each.arm === "ticket");
  const points = line?.points.steps ?? line?.points.seconds ?? [];
  return points[round]?.[0];
}

function roundSlider(label, rounds, start, change) {
  const told = (at) => `round ${rounds[at]}`;
  const output = element("output", {}, told(start));
  const slider = element("input", {
    type: "range", min: 0, max: rounds.length - 1, step: 1, value: start, "aria-valuetext": told(start),
    oninput: (event) => {
      const at = Number(event.target.value);
      output.textContent = told(at);
      event.target.setAttribute("aria-valuetext", told(at));
      change(rounds[at]);
    },
  });
  return element("label", {}, label, slider, output);
}

function addCurves() {
  const { lines, metrics, steps } = data.curves;
  if (!lines.length) return void (document.getElementById("curves").hidden = true);
  const shownGroups = unique(lines.map((line) => data.groups[line[0]]));
  const rounds = fitsOf(lines);
  const preferred = ["val/loss", "val/acc", "train/loss"].find((name) => metrics.includes(name)) ?? metrics[0];
  const state = { metric: preferred, group: shownGroups[0], round: rounds[Math.min(1, rounds.length - 1)] };
  const build = () => {
    const own = lines.filter((line) => line[3] === state.metric && data.groups[line[0]] === state.group);
    const [scale, traces, rows, told] = [scaleOf(state.metric), [], [], []];
    const seen = new Set();
    const add = (line, name, style) => {
      const [run, round, arm, , at, values] = line;
      const y = values.map((value) => scaled(value, scale));
      traces.push(trace(name, steps[at], y, style, {
        mode: steps[at].length > 30 ? "lines" : "lines+markers", showlegend: !seen.has(name), line: { color: style.colour, dash: style.dash, width: 1.6 },
        hovertemplate: `<b>${escaped(name)}</b>, round ${round}<br>${escaped(run)}<br>step %{x}: %{y:.5~g}<extra></extra>`, meta: "curve",
      }));
      seen.add(name);
      y.forEach((value, place) => rows.push([name, run, round, steps[at][place], value]));
      told.push(`${name} of ${run} ends at ${digits(y.at(-1))}`);
    };
    for (const line of own.filter((each) => each[1] === 0)) add(line, state.round ? "dense" : labelOf(state.group, line[2]), lineLook(state.round ? "dense" : labelOf(state.group, line[2])));
    if (state.round) for (const line of own.filter((each) => each[1] === state.round)) add(line, labelOf(state.group, line[2]), lineLook(labelOf(state.group, line[2])));
    return {
      traces, caption: `Round ${state.round}${shownGroups.length > 1 ? `, ${state.group}` : ""}.`, told: `Curves of ${state.metric} by step, of round ${state.round}${withDense}. ${told.join("; ")}.`,
      layout: {
        xaxis: { title: { text: "step" }, rangemode: "tozero" },
        yaxis: isLoss(state.metric) ? logAxis(state.metric, rows.map((row) => row[4])) : { title: { text: `${state.metric}${unitOf(state.metric)}` } },
      },
      columns: ["line", "run", "round", "step", state.metric], rows,
    };
  };
  const controls = document.getElementById("curves-controls");
  const redraw = (change) => (value) => { change(value); show(chart); };
  controls.append(select("Metric ", metrics, redraw((value) => (state.metric = value)), state.metric));
  if (shownGroups.length > 1) controls.append(select("Method ", shownGroups, redraw((value) => (state.group = value)), state.group));
  if (rounds.length > 1) controls.append(roundSlider("Round ", rounds, Math.min(1, rounds.length - 1), redraw((value) => (state.round = value))));
  const chart = addChart(document.getElementById("curves-charts"), `By step${withDense}`, build);
}

// 3. Inside: layers, pixels, overlap, movement

const heatScale = [[0, "#00224e"], [0.25, "#434e6c"], [0.5, "#7d7c78"], [0.75, "#bcae6c"], [1, "#fee838"]]; // cividis

const ofRun = (state) => (Object.keys(data.groups).length > 1 ? `${state.run}. ` : "");

function layersOf(state) {
  const { names, rounds, densities, dead } = data.layers[state.run];
  const rows = rounds.flatMap((round, at) => names.map((name, n) => [round, name, 100 * densities[at][n]]));
  const last = densities.at(-1);
  const order = names.map((name, n) => [name, last[n]]).slice(0, -1).sort((a, b) => a[1] - b[1]);
  const told = `Density of each layer by round. In round ${rounds.at(-1)} ${order[0][0]} is the sparsest with ${percent(order[0][1])}, ${order.at(-1)[0]} the densest with ${percent(order.at(-1)[1])}; ${dead.at(-1)[0]} units have no incoming and ${dead.at(-1)[1]} no outgoing weights.`;
  const common = { told, caption: ofRun(state), columns: ["round", "layer", "kept (%)"], rows };
  const xaxis = { title: { text: "round" }, tickformat: "d", ...(rounds.length < 12 ? { dtick: 1 } : {}) };
  if (names.length <= 9) {
    const traces = names.map((name, n) => trace(name, rounds, densities.map((each) => 100 * each[n]),
      n === names.length - 1 ? lineLook("dense") : look(n, n, n % 2), { hovertemplate: `<b>${escaped(name)}</b><br>round %{x}: %{y:.3~g}% kept<extra></extra>`, meta: "layer" }));
    return { ...common, traces, layout: { xaxis, yaxis: logAxis("kept in the layer (%)", rows.map((row) => row[2])) } };
  }
  const z = names.map((_, n) => densities.map((each) => Math.log10(each[n])));
  const marks = [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001];
  const traces = [{
    type: "heatmap", x: rounds, y: names, z, customdata: names.map((_, n) => densities.map((each) => percent(each[n]))), colorscale: heatScale,
    hovertemplate: "<b>%{y}</b><br>round %{x}: %{customdata} kept<extra></extra>", colorbar: { tickvals: marks.map(Math.log10), ticktext: marks.map((m) => percent(m)), thickness: 12 }, meta: "layers",
  }];
  return { ...common, traces, layout: { xaxis, yaxis: { autorange: "reversed", tickfont: { size: 10 } }, showlegend: false } };
}

function pixelsOf(state) {
  const { rounds, maps } = data.pixels[state.run];
  const at = Math.max(0, rounds.indexOf(state.round));
  const z = maps[at];
  const all = z.flat();
  const unseen = all.filter((count) => count === 0).length;
  return {
    traces: [{ type: "heatmap", z, colorscale: heatScale, zmin: 0, hovertemplate: "row %{y}, column %{x}: %{z} connections<extra></extra>", colorbar: { thickness: 12, title: { text: "kept", side: "top" } }, meta: "pixels" }],
    caption: `${ofRun(state)}Round ${rounds[at]}: connections that each pixel keeps, over all units and channels.`, told: `A map of the ${z.length} by ${z[0].length} pixels of an image, in round ${rounds[at]}: how many connections each keeps to the first layer, at most ${Math.max(...all)}; ${unseen} pixels keep none.`,
    layout: { showlegend: false, xaxis: { constrain: "domain", showgrid: false }, yaxis: { autorange: "reversed", scaleanchor: "x", constrain: "domain", showgrid: false } },
    columns: ["row", ...z[0].map((_, column) => column)], rows: z.map((row, n) => [n, ...row]),
  };
}

function overlapOf(state) {
  const own = data.overlap.filter((line) => line.group === state.group);
  const [traces, rows, told] = [[], [], []];
  own.forEach((line, n) => {
    const style = look(n, n, n);
    const x = line.points.map((point) => 100 * point[1]);
    const [mean, low, high, chance] = [2, 3, 4, 5].map((at) => line.points.map((point) => point[at]));
    if (line.points.some((point) => point[3] !== point[4])) traces.unshift(band(line.kind, x, low, high, style));
    const text = line.points.map((point) => `<br>by chance ${digits(point[5], 3)}${point[6] > 1 ? `; mean of ${point[6]} pairs` : ""}`);
    traces.push(trace(line.kind, x, mean, style, { text, hovertemplate: `<b>${escaped(line.kind)}</b><br>%{x:.3~g}% kept: %{y:.3f}%{text}<extra></extra>`, meta: "overlap" }));
    traces.push(trace(line.kind, x, chance, style, { mode: "lines", line: { color: style.colour, dash: "dot", width: 1.2 }, hoverinfo: "skip", showlegend: false, meta: "chance" }));
    line.points.forEach((point) => rows.push([line.kind, point[0], percent(point[1]), ...point.slice(2)]));
    told.push(`with ${line.kind} ${digits(mean.at(-1), 3)} in the last round, ${digits(chance.at(-1), 3)} by chance`);
  });
  return {
    traces, caption: "Kept by both over kept by either. Thin and dotted: masks that keep as many weights in each layer, by chance.",
    told: `Jaccard index of a ticket's masks with others, against density: ${told.join("; ")}.`,
    layout: { xaxis: densityAxis(own.flatMap((line) => line.points.map((point) => point[1]))), yaxis: { title: { text: "Jaccard index" }, range: [0, 1.02] } },
    columns: ["with", "round", "kept", "Jaccard index", "least", "most", "by chance", "pairs"], rows,
  };
}

const MOVES = { "relative to the start": 3, "mean |w at the end − w at the start|": 2, "changed sign (%)": 4 };

function movementOf(state) {
  const at = MOVES[state.measure];
  const scale = at === 4 ? 100 : 1;
  const found = Object.entries(data.movement[state.run]);
  const traces = found.map(([name, points], n) => trace(name, points.map((point) => 100 * point[1]), points.map((point) => scaled(point[at], scale)), look(n, n, n),
    { hovertemplate: `<b>${escaped(name)}</b><br>%{x:.3~g}% kept: %{y:.3~g}<extra></extra>`, meta: "movement" }));
  const told = found.map(([name, points]) => `${name}: ${digits(scaled(points.at(-1)[at], scale), 3)} in round ${points.at(-1)[0]}`);
  return {
    traces, caption: ofRun(state), told: `How far weights moved in training, ${state.measure}, against density. ${told.join("; ")}.`,
    layout: { xaxis: densityAxis(found.flatMap(([, points]) => points.map((point) => point[1]))), yaxis: { title: { text: state.measure }, rangemode: "tozero" } },
    columns: ["weights", "round", "kept", "mean |Δw|", "relative", "changed sign"], rows: found.flatMap(([name, points]) => points.map((point) => [name, point[0], percent(point[1]), ...point.slice(2)])),
  };
}

function addInside() {
  const runs = unique([data.layers, data.pixels, data.movement].flatMap((each) => Object.keys(each)));
  if (!runs.length) return void (document.getElementById("inside").hidden = true);
  const state = { run: runs[0], group: data.groups[runs[0]], measure: Object.keys(MOVES)[0], round: 0 };
  const parent = document.getElementById("inside-charts");
  const own = [];
  const add = (has, heading, build, controls = []) => {
    if (!has()) return;
    const chart = addChart(parent, heading, build, controls);
    own.push({ has, chart });
    return chart;
  };
  add(() => state.run in data.layers, "Density of layers", () => layersOf(state));
  if (state.run in data.pixels) {
    const { rounds } = data.pixels[state.run];
    state.round = rounds.at(-1);
    const slider = roundSlider("", rounds, rounds.length - 1, (round) => { state.round = round; show(pixels); });
    slider.querySelector("input").setAttribute("aria-label", "Round of the pixels");
    const pixels = add(() => state.run in data.pixels, "Pixels that the first layer still sees", () => pixelsOf(state), [slider]);
  }
  add(() => data.overlap.some((line) => line.group === state.group), "What masks have in common", () => overlapOf(state));
  if (state.run in data.movement) {
    const measures = select("measure ", Object.keys(MOVES), (value) => { state.measure = value; show(moved); }, state.measure);
    const moved = add(() => state.run in data.movement, "How far weights moved", () => movementOf(state), [measures]);
  }
  if (runs.length > 1) {
    document.getElementById("inside-controls").append(select("Run ", runs, (run) => {
      state.run = run;
      state.group = data.groups[run];
      for (const { has, chart } of own) {
        chart.drawing.closest("figure").hidden = !has();
        if (has()) show(chart);
      }
    }, state.run));
  }
}

// The page

document.getElementById("download").addEventListener("click", () => {
  const link = element("a", { href: URL.createObjectURL(new Blob([data.csv.text], { type: "text/csv" })), download: data.csv.name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
function print(on) {
  const configurations = document.querySelectorAll("#made details");
  if (configurations.length === 1) configurations[0].open = on;
  printing = on;
  showAll();
}
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));
dark.addEventListener("change", () => { fillLegend(); showAll(); });

fillLegend();
addDensityCharts();
addCurves();
addInside();
drawAll();
