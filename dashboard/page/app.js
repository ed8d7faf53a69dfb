// The page: one connection, one store, and the parts that show what is in it.

import { Control } from "/page/actions.js";
import { MainChart } from "/page/chart.js";
import { Connection } from "/page/connection.js";
import { $, eachFrame, h, say, setHidden, setText, table } from "/page/dom.js";
import {
  clock, fixed, isOwnZone, moment, number, ownZone, short, signed, useOwnZone, whole, zone,
} from "/page/format.js";
import { Panels } from "/page/panels.js";
import { Store, sideChanges } from "/page/store.js";
import { Tiles } from "/page/tiles.js";
import { Why } from "/page/why.js";

const ALERT_MS = 15 * 60_000;
const KEPT_MORE = 500;
const ZONE = "itb-zone";

// Before anything is drawn: the zone that was chosen on this page.
try {
  useOwnZone(localStorage.getItem(ZONE) === "own");
} catch {
  // Storage may be forbidden; times are UTC then.
}

class Page {
  constructor() {
    this.store = new Store();
    this.why = new Why(this);
    this.chart = new MainChart(this.store, (time) => this.why.open(time));
    this.tiles = new Tiles(this.store, this.chart);
    this.control = new Control(this);
    this.panels = new Panels(this);
    this.dismissed = 0;
    this.drawTiles = eachFrame(() => this.tiles.draw());
    this.drawLists = eachFrame(() => this.lists());
    this.connection = new Connection((message) => this.take(message), (what) => this.told(what));
    $("symbol").addEventListener("change", (event) => this.connection.show(event.target.value));
    $("theme").addEventListener("click", () => this.switchTheme());
    $("zone").addEventListener("click", () => this.switchZone());
    this.zone();
    $("alert-close").addEventListener("click", () => {
      this.dismissed = Number($("alert").dataset.time);
      setHidden($("alert"), true);
    });
    $("candles").parentElement.addEventListener("toggle", () => this.lists());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
    this.connection.open();
  }

  take(message) {
    const started = performance.now();
    this.store.take(message);
    const { kind } = message;
    if (kind === "hello") this.hello();
    else if (kind === "trouble") this.trouble(message.text);
    else if (kind === "snapshot") {
      this.trouble("");
      this.chart.draw();
      this.symbols();
      this.drawLists();
    } else if (kind === "rows") {
      this.chart.update(message.changed);
      this.announce(message.changed);
      this.trim();
      this.drawLists();
    } else if (kind === "whatif" || kind === "account" || kind === "releases") {
      this.chart.rule();
      this.chart.mark();
    } else if (kind === "notices") this.alert();
    else if (kind === "tickers") this.symbols();
    if (kind === "status" || kind === "account") this.control.draw();
    this.panels.took(kind, message.changed);
    this.drawTiles();
    if (kind === "rows" || kind === "snapshot") {
      // From the message to the frame that shows it: tests and the curious read these.
      requestAnimationFrame(() => setTimeout(() => {
        performance.measure(`itb-${kind}`, { start: started, end: performance.now() });
        if (performance.getEntriesByName("itb-rows").length > 1000) performance.clearMeasures("itb-rows");
      }));
    }
  }

  hello() {
    const { hello } = this.store;
    setText($("version"), hello.version);
    const mode = $("mode");
    setHidden(mode, false);
    setText(mode, hello.mode);
    this.control.offer();
    this.symbols();
    this.trouble(hello.trouble);
  }

  symbols() {
    const { hello, tickers, symbol } = this.store;
    if (hello === null) return;
    const select = $("symbol");
    if (select.options.length !== hello.symbols.length) {
      select.replaceChildren(...hello.symbols.map((one) => h("option", { value: one }, one)));
    }
    for (const option of select.options) {
      const [, score] = tickers[option.value] ?? [];
      const told = score === null || score === undefined ? "" : ` ${signed(score, 2)}`;
      setText(option, `${option.value} ${hello.interval}${told}`);
    }
    if (symbol !== null) {
      select.value = symbol;
      this.connection.symbol = symbol;
    }
  }

  told(what) {
    if (what === "login") location.assign("/login");
    else if (what === "closed") this.state("down", "disconnected");
  }

  trouble(text) {
    if (text) this.state("down", text);
    else this.state("up", "live");
  }

  state(kind, text) {
    $("connection").dataset.kind = kind;
    setText($("connection-text"), text);
  }

  // Signals beside the chart, and the newest candles as a table where that is open.
  lists() {
    const { store } = this;
    const changes = sideChanges(store.rows);
    const shown = changes.slice(-100).reverse();
    const digits = this.chart.digits ?? 2;
    setText($("signals-count"), changes.length ? whole(changes.length) : "");
    setHidden($("signals-empty"), changes.length > 0);
    setHidden($("signals"), changes.length === 0);
    const key = `${shown.length} ${shown[0]?.time} ${shown[0]?.side} ${isOwnZone()}`;
    if (key !== this.listed) {
      this.listed = key;
      const now = store.last?.time ?? 0;
      $("signals").replaceChildren(...shown.map((row) => h("li", {},
        h("button", { type: "button", class: "signal", onclick: () => this.why.open(row.time) },
          h("span", { class: `side ${row.side === "BUY" ? "up" : "down"}` },
            row.side === "BUY" ? "▲ BUY" : "▼ SELL"),
          h("span", { class: "num" }, signed(row.score, 2)),
          h("span", { class: "num" }, fixed(row.close, digits)),
          h("time", { datetime: new Date(row.time).toISOString() }, short(row.time, now)),
          h("span", { class: "hidden" }, ", why?")))));
    }
    if (!$("candles").parentElement.open) return;
    $("candles").replaceChildren(table("Newest candles", [
      ["Candle", ""], ["Open", "num"], ["High", "num"], ["Low", "num"], ["Close", "num"],
      ["Volume", "num"], ["Score", "num"], ["Side", ""],
    ], store.rows.slice(-30).reverse().map((row) => [
      moment(row.time), fixed(row.open, digits), fixed(row.high, digits), fixed(row.low, digits),
      fixed(row.close, digits), number(row.volume, 5),
      row.score === null ? row.invalid || "–" : signed(row.score, 3), row.side || "",
    ])).firstChild);
  }

  whyButton(time, text) {
    return h("button", { type: "button", class: "link", onclick: () => this.why.open(time) }, text,
      h("span", { class: "hidden" }, ", why?"));
  }

  // For those who hear the page: a side that changes, nothing else of a candle.
  announce(changed) {
    for (const row of changed) {
      if (!row.release || row.side === this.side) continue;
      this.side = row.side;
      if (row.side) say(`${row.side} ${this.store.symbol} at ${row.close}, score ${signed(row.score, 2)}, ${clock(row.time)}`);
    }
  }

  alert() {
    const { store } = this;
    const loud = store.notices.filter((one) => one.level === "alert");
    const last = loud[loud.length - 1];
    const strip = $("alert");
    if (!last || store.now() - last.time_ms > ALERT_MS || last.time_ms <= this.dismissed) {
      setHidden(strip, true);
      return;
    }
    strip.dataset.time = String(last.time_ms);
    setText($("alert-text"), `${clock(last.time_ms)} ${last.service}: ${last.text}`);
    setHidden(strip, false);
  }

  trim() {
    const { store } = this;
    const most = store.hello.candles + KEPT_MORE;
    if (store.rows.length <= most) return;
    store.rows = store.rows.slice(-store.hello.candles);
    store.places = new Map(store.rows.map((row, n) => [row.time, n]));
    this.chart.draw();
    this.panels.now.redraw();
  }

  switchTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("itb-theme", root.dataset.theme);
    } catch {
      // holds for this page alone then
    }
    this.paint();
  }

  zone() {
    const button = $("zone");
    const told = zone(Date.now());
    setText(button, isOwnZone() ? ownZone.split("/").pop().replaceAll("_", " ") : "UTC");
    const other = isOwnZone() ? "UTC" : ownZone;
    button.title = `Times are ${isOwnZone() ? `in ${told}` : "UTC"}. Switch to ${other}`;
    button.setAttribute("aria-label", button.title);
    button.disabled = ["UTC", "Etc/UTC"].includes(ownZone);
    setText($("zone-told"), isOwnZone()
      ? `Times are in your zone, ${told}; ids, and what services and explanations say, are UTC.` : "All times are UTC.");
  }

  switchZone() {
    useOwnZone(!isOwnZone());
    try {
      localStorage.setItem(ZONE, isOwnZone() ? "own" : "utc");
    } catch {
      // holds for this page alone then
    }
    this.zone();
    this.lists();
    this.alert();
    this.tiles.draw();
    this.chart.look(null);
    this.paint();
    this.panels.now.redraw();
  }

  paint() {
    this.chart.paint();
    this.panels.paint();
  }
}

new Page();
