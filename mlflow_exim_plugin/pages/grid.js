"use strict";
// Tables that are sorted and searched. Whatever comes from the archive is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const counted = new Intl.NumberFormat("en").format;
const collator = new Intl.Collator("en", { numeric: true });

const shown = {
  text: String,
  id: String,
  status: String,
  param: String,
  long: String,
  number: (value) => (typeof value === "number" ? String(Number(value.toPrecision(6))) : value),
  time: (ms) => {
    const moment = new Date(ms);
    return isNaN(moment) ? `${ms} ms` : moment.toISOString().slice(0, 19).replace("T", " ");
  },
  duration: (ms) => {
    const s = ms / 1000;
    if (s < 60) return `${Number(s.toFixed(1))} s`;
    const minutes = Math.floor(s / 60);
    if (minutes < 60) return `${minutes} min ${Math.floor(s % 60)} s`;
    return `${counted(Math.floor(minutes / 60))} h ${minutes % 60} min`;
  },
};
const ALIGNED = new Set(["number", "duration"]);

class Grid {
  static FIRST = 50;
  static MORE = 500;

  constructor(place, { noun, columns, rows, colors = {} }, toggled) {
    Object.assign(this, { noun, columns, rows, colors, toggled });
    this.order = rows.map((_, row) => row);
    this.limit = Grid.FIRST;
    this.hidden = new Set();
    this.search = element("input", {
      type: "search", placeholder: `Search ${noun}s`, "aria-label": `Search ${noun}s`,
    });
    this.search.addEventListener("input", () => this.find());
    this.told = element("span", { className: "small", role: "status" });
    this.body = element("tbody");
    this.heads = columns.map((column, number) => this.head(column, number));
    const dot = this.hasDots ? [element("th", { className: "dot", scope: "col", "aria-label": "Curve" })] : [];
    this.more = element("p", { className: "more" });
    place.append(
      element("div", { className: "tools" }, this.search, this.told),
      element("div", { className: "scroll" }, element("table", {},
        element("thead", {}, element("tr", {}, ...dot, ...this.heads)), this.body)),
      this.more,
    );
    this.draw();
  }

  get hasDots() { return Object.keys(this.colors).length > 0; }

  head(column, number) {
    const button = element("button", { type: "button", title: column.name }, column.name);
    button.addEventListener("click", () => this.sort(number));
    const group = column.group ? [element("span", { className: "group" }, column.group)] : [];
    const isAligned = ALIGNED.has(column.type);
    return element("th", { scope: "col", className: isAligned ? "number" : "" }, ...group, button);
  }

  sort(number) {
    const head = this.heads[number];
    const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of this.heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const { keys, compare } = this.keys(number);
    const sign = way === "ascending" ? 1 : -1;
    // What has no value comes last either way.
    this.order.sort((a, b) => {
      const [one, two] = [keys[a], keys[b]];
      if (one === null || two === null) return (one === null) - (two === null) || a - b;
      return sign * compare(one, two) || a - b;
    });
    this.draw();
  }

  keys(number) {
    const values = this.rows.map((row) => row[number]);
    const numbers = values.map((v) => (v === null || v === "" || isNaN(v) ? null : Number(v)));
    const isText = this.columns[number].type === "param"
      ? values.some((v, row) => v !== null && v !== "" && numbers[row] === null)
      : !["number", "time", "duration"].includes(this.columns[number].type);
    if (!isText) return { keys: numbers, compare: (a, b) => (a < b ? -1 : a > b ? 1 : 0) };
    return { keys: values, compare: collator.compare };
  }

  find() {
    this.texts ??= this.rows.map((row) =>
      row.map((value, number) => (value === null ? "" : shown[this.columns[number].type](value)))
        .join("\n").toLowerCase());
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.isFound = (row) => words.every((word) => this.texts[row].includes(word));
    this.limit = Grid.FIRST;
    this.draw();
  }

  draw() {
    const found = this.isFound ? this.order.filter(this.isFound) : this.order;
    const drawn = found.slice(0, this.limit);
    this.body.replaceChildren(...drawn.map((row) => this.row(row)));
    const of = this.isFound && found.length < this.rows.length ? ` found of ${counted(this.rows.length)}` : "";
    const some = drawn.length < found.length ? `${counted(drawn.length)} of ` : "";
    this.told.textContent = `${some}${counted(found.length)} ${this.noun}${found.length === 1 ? "" : "s"}${of}`;
    this.more.replaceChildren(...this.buttons(found.length - drawn.length));
  }

  buttons(rest) {
    if (rest <= 0) return [];
    const all = this.limit + rest;
    return [Math.min(rest, Grid.MORE), rest].filter((n, i, list) => i === 0 || n !== list[0]).map((number) => {
      const button = element("button", { type: "button" }, `Show ${counted(number)} more`);
      button.addEventListener("click", () => {
        const first = this.limit;
        this.limit = number === rest ? all : this.limit + number;
        this.draw();
        this.body.rows[first]?.querySelector("button")?.focus({ preventScroll: true });
      });
      return button;
    });
  }

  row(row) {
    const cells = this.rows[row].map((value, number) => {
      const { type } = this.columns[number];
      const cell = element("td", { className: `${type}${ALIGNED.has(type) ? " number" : ""}` });
      if (value === null) return cell;
      cell.textContent = shown[type](value);
      if (type === "number") cell.title = String(value);
      if (type === "status" && /^(FAILED|KILLED)/.test(value)) cell.classList.add("failed");
      if (type === "text" || type === "long") cell.dir = "auto";
      return cell;
    });
    if (!this.hasDots) return element("tr", {}, ...cells);
    return element("tr", {}, element("td", { className: "dot" }, ...this.dot(row)), ...cells);
  }

  dot(row) {
    const color = this.colors[row];
    if (color === undefined) return [];
    const button = element("button", {
      type: "button", className: color >= PALETTE.length ? "dashed" : "",
      "aria-pressed": String(!this.hidden.has(row)), "aria-label": `Curve of ${this.rows[row][0]}`,
    });
    button.style.setProperty("--c", `var(--c${color % PALETTE.length})`);
    button.addEventListener("click", () => {
      const isHidden = !this.hidden.delete(row) && Boolean(this.hidden.add(row));
      button.setAttribute("aria-pressed", String(!isHidden));
      this.toggled(row, !isHidden);
    });
    return [button];
  }
}

// For bright and for dark pages; a further round of them is dashed.
const PALETTE = [
  ["#0a6ebd", "#5aaef5"], ["#d2520a", "#ff9a56"], ["#0d8a63", "#3ed3a3"], ["#b4447f", "#f09ac4"],
  ["#a97400", "#f2c14b"], ["#6b4fbb", "#b7a1ff"], ["#0f8b9d", "#5fd4e6"], ["#8a5a44", "#d3a590"],
  ["#5f7d00", "#b7d64e"], ["#555f6b", "#c3ccd6"],
];
