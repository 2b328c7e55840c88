"use strict";
// Curves. They are drawn when their experiment comes into view, and all of them for print.
const darkness = matchMedia("(prefers-color-scheme: dark)");
let isPrinting = false;
const isDark = () => darkness.matches && !isPrinting;
const colorOf = (number) => PALETTE[number % PALETTE.length][Number(isDark())];
const HEIGHT = 220;
const PRINTED_HEIGHT = 200;
const PRINTED_WIDTH = 460;

function setColors() {
  PALETTE.forEach((_, number) => document.documentElement.style.setProperty(`--c${number}`, colorOf(number)));
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
function tick(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return String(Number(value.toPrecision(3)).toExponential());
  return size >= 1e5 ? compact.format(value) : String(Number(value.toPrecision(6)));
}

// Numbers that the library can draw as they are, or else how to place them between 0 and 1: its axes
// count in steps, and steps that are too many, or too small beside the numbers, would never end.
function scaled(values, limit) {
  const [least, most] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const size = Math.max(Math.abs(least), Math.abs(most));
  const span = most - least;
  const isSound = size === 0 || (size < limit
    && (span === 0 ? size > 1e-25 : span > 1e-25 && span / size > 1e-9));
  const to = (v) => (most === least ? 0.5 : (v / 4 - least / 4) / (most / 4 - least / 4) || 0);
  const back = (place) => least * (1 - place) + most * place;
  return isSound || !values.length
    ? { least, most, isSound: true, to: (v) => v, back: (v) => v }
    : { least, most, isSound, to, back };
}

class Chart {
  constructor(place, chart, rows, colors) {
    Object.assign(this, { chart, rows, colors });
    this.hidden = new Set();
    this.curves = chart.curves.map(({ run, x, y }) => {
      let at = 0;
      return { run, y, x: x.map((step) => (at += step)) };
    });
    const values = this.curves.flatMap(({ y }) => y).filter((v) => v !== null);
    const sound = this.sound = {
      x: scaled(this.curves.flatMap(({ x }) => x), 1e15), y: scaled(values, 1e30),
    };
    for (const curve of this.curves) {
      curve.places = curve.x.map(sound.x.to);
      curve.heights = curve.y.map((v) => (v === null ? null : sound.y.to(v)));
    }
    const { least, most } = sound.y;
    const caption = element("figcaption", {}, element("bdi", {}, chart.key));
    if (sound.y.isSound && least > 0 && most / least > 20) {
      const box = element("input", { type: "checkbox" });
      box.addEventListener("change", () => { this.isLog = box.checked; this.draw(); });
      caption.append(element("label", {}, box, " logarithmic"));
    }
    this.canvas = element("div", {
      role: "img",
      "aria-label": `${chart.key} by ${chart.by}: ${chart.curves.length} curves`
        + (values.length ? `, from ${tick(least)} to ${tick(most)}` : ", without values"),
    });
    this.readout = element("p", { className: "readout" });
    const told = element("p", { className: "told" }, chart.told);
    this.figure = element("figure", {}, caption, this.canvas, this.readout, told);
    place.append(this.figure);
    this.draw();
  }

  draw() {
    this.plot?.destroy();
    this.focused = null;
    const width = isPrinting ? PRINTED_WIDTH : Math.max(this.canvas.clientWidth, 200);
    // A step that comes again is drawn beside its first: of one place the library takes one value.
    const tables = this.curves.map((curve) => {
      const all = curve.places;
      const span = Math.abs(all[all.length - 1] - all[0]) || 1;
      const places = [];
      for (const at of all) {
        const last = places[places.length - 1];
        const beside = last + Math.max(span * 1e-6, Math.abs(last) * 4e-16);
        places.push(last === undefined || at > last ? at : beside);
      }
      return [places, curve.heights];
    });
    const { sound } = this;
    const muted = isDark() ? "#9aa4af" : "#57606a";
    const grid = { stroke: isDark() ? "#2f3740" : "#e4e8ec", width: 1 };
    this.plot = new uPlot({
      width, height: isPrinting ? PRINTED_HEIGHT : HEIGHT,
      legend: { show: false },
      cursor: { y: false, points: { show: false } },
      focus: { alpha: 0.25 },
      scales: { x: { time: false, range: (_, from, to) => (from === to ? [from - 1, to + 1] : [from, to]) },
        y: this.isLog ? { distr: 3 } : {} },
      axes: [
        { stroke: muted, grid, ticks: grid, label: this.chart.by, labelSize: 18, labelFont: "12px system-ui",
          font: "11px system-ui", size: 32, values: (_, ticks) => ticks.map((at) => tick(sound.x.back(at))) },
        { stroke: muted, grid, ticks: grid, font: "11px system-ui", size: 60,
          values: (_, ticks) => ticks.map((at) => (at === null ? "" : tick(sound.y.back(at)))) },
      ],
      series: [{}, ...this.curves.map((curve) => ({
        stroke: colorOf(this.colors[curve.run]), width: 1.5, show: !this.hidden.has(curve.run),
        dash: this.colors[curve.run] >= PALETTE.length ? [5, 3] : undefined,
        points: { show: true, size: 5, filter: (u, series) => alone(u.data[series], curve.y.length <= 12) },
      }))],
      hooks: { setCursor: [(u) => this.tell(u)] },
    }, uPlot.join(tables), this.canvas);
  }

  show(run, isShown) {
    if (isShown) this.hidden.delete(run); else this.hidden.add(run);
    this.curves.forEach((curve, number) => {
      if (curve.run === run) this.plot.setSeries(number + 1, { show: isShown });
    });
  }

  focus(u, series) {
    if (series === this.focused) return;
    this.focused = series;
    u.setSeries(series, { focus: series !== null });
  }

  // Says which point is nearest to the pointer.
  tell(u) {
    const { left, top } = u.cursor;
    if (left < 0) {
      this.readout.textContent = "";
      this.focus(u, null);
      return;
    }
    const at = u.posToVal(left, "x");
    let nearest = null;
    this.curves.forEach((curve, number) => {
      if (this.hidden.has(curve.run)) return;
      const place = closest(curve, at);
      if (place === null) return;
      const distance = Math.abs(u.valToPos(curve.heights[place], "y") - top);
      if (nearest === null || distance < nearest.distance) nearest = { curve, number, place, distance };
    });
    if (nearest === null) return;
    const { curve, number, place } = nearest;
    this.focus(u, number + 1);
    const x = curve.x[place];
    const where = this.chart.by === "step" ? `step ${counted(Math.round(x))}` : `${tick(x)} s`;
    this.readout.replaceChildren(
      element("bdi", {}, this.rows[curve.run][0]), ` · ${where} · ${tick(curve.y[place])}`);
  }
}

// Points that no line leads to, or all of them.
function alone(values, isAll) {
  const places = [];
  values.forEach((value, place) => { if (value !== undefined) places.push(place); });
  return places.filter((place, i) => values[place] !== null && (isAll
    || ((values[places[i - 1]] ?? null) === null && (values[places[i + 1]] ?? null) === null)));
}

function closest({ places: x, heights: y }, at) {
  let from = 0, to = x.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (x[middle] < at) from = middle + 1; else to = middle;
  }
  for (let off = 0; off < x.length; off++) {
    const near = [from - 1 - off, from + off].filter((place) => (y[place] ?? null) !== null);
    if (near.length) return near.reduce((a, b) => (Math.abs(x[a] - at) <= Math.abs(x[b] - at) ? a : b));
  }
  return null;
}

const charts = [];
function build(section) {
  if (section.isBuilt) return;
  section.isBuilt = true;
  const place = section.querySelector("[data-charts]");
  const grid = section.querySelector("[data-grid]");
  const { table, drawn = [] } = data[grid.dataset.grid];
  const own = drawn.map((chart) => new Chart(place, chart, table.rows, table.colors));
  charts.push(...own);
  new Grid(grid, table, (run, isShown) => own.forEach((chart) => chart.show(run, isShown)));
}

setColors();
const sections = [...document.querySelectorAll(".experiment")];
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) build(target);
}, { rootMargin: "800px" });
sections.forEach((section) => watcher.observe(section));

const again = () => { setColors(); charts.forEach((chart) => chart.draw()); };
darkness.addEventListener("change", again);
addEventListener("beforeprint", () => { isPrinting = true; sections.forEach(build); again(); });
addEventListener("afterprint", () => { isPrinting = false; again(); });
let resizing;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { if (!isPrinting) charts.forEach((chart) => chart.draw()); }, 150);
});
