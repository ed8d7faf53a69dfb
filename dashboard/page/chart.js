// The main chart: candles, and below them the score with its thresholds; marks and protection.

import {
  BaselineSeries, CandlestickSeries, ColorType, CrosshairMode, LineStyle, createChart,
  createSeriesMarkers,
} from "/page/vendor/lightweight-charts.mjs";
import { $, h, setHidden, setText } from "/page/dom.js";
import { clock, day, fixed, moment, number, priceDigits, signed } from "/page/format.js";
import { sideChanges } from "/page/store.js";

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: read("ink"), muted: read("muted"), line: read("line"), up: read("up"), down: read("down"),
    accent: read("accent"), upSoft: read("up-soft"), downSoft: read("down-soft"),
    card: read("card"), faint: read("faint"),
  };
}

export function chartOptions(c) {
  return {
    autoSize: true,
    layout: {
      background: { type: ColorType.Solid, color: "transparent" },
      textColor: c.muted,
      fontFamily: getComputedStyle(document.body).fontFamily,
      fontSize: 11,
      attributionLogo: false, // the page's foot names the author, with the link
      panes: { separatorColor: c.line, separatorHoverColor: c.line, enableResize: true },
    },
    grid: { vertLines: { color: c.faint }, horzLines: { color: c.faint } },
    rightPriceScale: { borderColor: c.line, scaleMargins: { top: 0.08, bottom: 0.08 } },
    timeScale: {
      borderColor: c.line, timeVisible: true, secondsVisible: false, rightOffset: 3, minBarSpacing: 0.02,
      tickMarkMaxCharacterLength: 11,
      tickMarkFormatter: (time, kind) => {
        const ms = time * 1000;
        // The chart's days begin at midnight UTC, which elsewhere is some other hour.
        if (kind < 3 && clock(ms) !== "00:00") return `${day(ms).slice(5)} ${clock(ms)}`;
        if (kind === 0) return day(ms).slice(0, 4);
        if (kind === 1) return day(ms).slice(0, 7);
        return kind === 2 ? day(ms).slice(5) : clock(ms, kind === 4);
      },
    },
    crosshair: {
      mode: CrosshairMode.Magnet,
      vertLine: { color: c.muted, labelBackgroundColor: c.accent },
      horzLine: { color: c.muted, labelBackgroundColor: c.accent },
    },
    localization: { timeFormatter: (time) => moment(time * 1000) },
    handleScroll: { vertTouchDrag: false },
  };
}

const seconds = (ms) => ms / 1000;

export class MainChart {
  // chosen: gets the open time of a candle that was clicked.
  constructor(store, chosen) {
    this.store = store;
    this.place = $("chart");
    this.lines = [];
    this.marks = { signals: true, trades: true };
    this.span = 240;
    this.follows = true;
    this.at = null; // time of the candle looked at, null: the newest
    const c = colours();
    this.chart = createChart(this.place, chartOptions(c));
    this.candles = this.chart.addSeries(CandlestickSeries, { priceLineVisible: true }, 0);
    this.score = this.chart.addSeries(BaselineSeries, {
      baseValue: { type: "price", price: 0 }, lineWidth: 1, priceLineVisible: false,
      priceFormat: { type: "custom", minMove: 0.01, formatter: (v) => signed(v, 2) },
      autoscaleInfoProvider: (original) => this.scoreRange(original),
    }, 1);
    const [upper, lower] = this.chart.panes();
    upper.setStretchFactor(3);
    lower.setStretchFactor(1);
    this.markers = createSeriesMarkers(this.candles, []);
    this.paint();
    this.chart.subscribeCrosshairMove((event) => {
      this.look(event.time === undefined ? null : event.time * 1000);
    });
    this.chart.subscribeClick((event) => {
      if (event.time !== undefined) chosen(event.time * 1000);
    });
    this.chart.timeScale().subscribeVisibleLogicalRangeChange((range) => {
      if (range === null) return;
      const newest = this.store.rows.length - 1;
      this.follows = range.to >= newest;
      setHidden($("latest"), this.follows);
    });
    $("latest").addEventListener("click", () => this.toNewest());
    this.place.addEventListener("keydown", (event) => this.key(event, chosen));
    for (const button of document.querySelectorAll("[data-span]")) {
      button.addEventListener("click", () => this.show(Number(button.dataset.span)));
    }
    for (const kind of ["signals", "trades"]) {
      $(`show-${kind}`).addEventListener("click", (event) => {
        this.marks[kind] = !this.marks[kind];
        event.currentTarget.setAttribute("aria-pressed", String(this.marks[kind]));
        this.mark();
      });
    }
  }

  // Colours again, as after a change of theme.
  paint() {
    const c = colours();
    this.chart.applyOptions(chartOptions(c));
    this.candles.applyOptions({
      upColor: c.up, downColor: c.down, wickUpColor: c.up, wickDownColor: c.down,
      borderVisible: false, priceLineColor: c.muted,
    });
    this.score.applyOptions({
      topLineColor: c.up, topFillColor1: c.upSoft, topFillColor2: "transparent",
      bottomLineColor: c.down, bottomFillColor1: "transparent", bottomFillColor2: c.downSoft,
    });
    this.rule();
    this.mark();
  }

  scoreRange(original) {
    const found = original();
    const release = this.store.release;
    let most = release ? 1.25 * Math.max(Math.abs(release.buy), Math.abs(release.sell)) : 0.1;
    if (found?.priceRange) {
      most = Math.max(most, Math.abs(found.priceRange.minValue), Math.abs(found.priceRange.maxValue));
    }
    return { priceRange: { minValue: -most, maxValue: most } };
  }

  candle(row) {
    if (row.open === null) return { time: seconds(row.time) };
    return {
      time: seconds(row.time), open: row.open, high: row.high, low: row.low, close: row.close,
    };
  }

  point(row) {
    return row.score === null
      ? { time: seconds(row.time) } : { time: seconds(row.time), value: row.score };
  }

  // Everything anew.
  draw() {
    const { rows } = this.store;
    this.digits = priceDigits(rows.slice(-300).map((row) => row.close));
    this.candles.applyOptions({
      priceFormat: { type: "price", precision: this.digits, minMove: 10 ** -this.digits },
    });
    this.candles.setData(rows.map((row) => this.candle(row)));
    this.score.setData(rows.map((row) => this.point(row)));
    this.rule();
    this.mark();
    this.show(this.span);
    this.look(null);
  }

  // These rows have changed.
  update(changed) {
    for (const row of changed) {
      const late = seconds(row.time) < (this.shown ?? 0);
      this.candles.update(this.candle(row), late);
      this.score.update(this.point(row), late);
      this.shown = Math.max(this.shown ?? 0, seconds(row.time));
    }
    if (changed.some((row) => row.side)) this.mark();
    if (this.at === null) this.look(null);
  }

  show(span) {
    this.span = span;
    for (const button of document.querySelectorAll("[data-span]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.span) === span));
    }
    const count = this.store.rows.length;
    this.shown = count ? seconds(this.store.last.time) : 0;
    const from = span === 0 ? 0 : Math.max(0, count - span);
    this.chart.timeScale().setVisibleLogicalRange({ from: from - 0.5, to: count + 2.5 });
  }

  toNewest() {
    const range = this.chart.timeScale().getVisibleLogicalRange();
    const width = range ? range.to - range.from : this.span;
    const count = this.store.rows.length;
    this.chart.timeScale().setVisibleLogicalRange({ from: count + 2.5 - width, to: count + 2.5 });
    this.chart.clearCrosshairPosition();
    this.look(null);
  }

  // Lines at the thresholds, and at entry, stop and target of what is held.
  rule() {
    for (const [series, line] of this.lines) series.removePriceLine(line);
    this.lines = [];
    const c = colours();
    const add = (series, price, color, title, style = LineStyle.Dashed) => {
      if (price === null || price === undefined) return;
      const line = series.createPriceLine({
        price, color, title, lineWidth: 1, lineStyle: style, axisLabelVisible: true,
      });
      this.lines.push([series, line]);
    };
    const { release } = this.store;
    if (release) {
      add(this.score, release.buy, c.up, "buy");
      add(this.score, release.sell, c.down, "sell");
    }
    const held = this.store.account ?? this.store.whatif;
    if (held && held.quantity && !held.is_dust) {
      add(this.candles, held.entry, c.accent, "entry", LineStyle.Dotted);
      add(this.candles, held.stop, c.down, "stop");
      add(this.candles, held.target, c.up, "target");
    }
    for (const order of this.store.account?.open ?? []) {
      if (order.leg === "stop" || order.leg === "target" || !order.price) continue;
      add(this.candles, Number(order.price), c.muted, `${order.leg} waits`, LineStyle.Dotted);
    }
  }

  mark() {
    const c = colours();
    const found = [];
    if (this.marks.signals) {
      for (const row of sideChanges(this.store.rows)) {
        const buys = row.side === "BUY";
        found.push({
          time: seconds(row.time), position: buys ? "belowBar" : "aboveBar",
          shape: buys ? "arrowUp" : "arrowDown", color: buys ? c.up : c.down,
        });
      }
    }
    if (this.marks.trades) {
      const held = this.store.account ?? this.store.whatif;
      const step = this.store.hello?.step_ms ?? 1;
      for (const trade of held?.trades ?? []) {
        const time = trade.open_time_ms ?? trade.market_ms - (trade.market_ms % step);
        if (!this.store.places.has(time)) continue;
        const buys = trade.side === "BUY";
        found.push({
          time: seconds(time), position: buys ? "belowBar" : "aboveBar",
          shape: "circle", color: c.accent, size: 1.4,
          text: buys ? "B" : "S",
        });
      }
    }
    found.sort((one, other) => one.time - other.time);
    this.markers.setMarkers(found);
  }

  // What is known of the candle under the pointer (or the newest one).
  look(time) {
    this.at = time;
    const row = (time === null ? this.store.last : this.store.row(time)) ?? null;
    const place = $("legend");
    if (row === null) {
      place.replaceChildren();
      return;
    }
    const digits = this.digits ?? 2;
    const part = (name, text, kind = "") =>
      h("span", { class: `part ${kind}` }, h("i", {}, name), ` ${text}`);
    const parts = [part("", moment(row.time))];
    if (row.gap) parts.push(part("", "the exchange has no such candle", "warn"));
    else {
      parts.push(
        part("O", fixed(row.open, digits)), part("H", fixed(row.high, digits)),
        part("L", fixed(row.low, digits)),
        part("C", fixed(row.close, digits), row.close >= row.open ? "up" : "down"),
        part("V", number(row.volume, 4)),
      );
    }
    if (row.score !== null) {
      const kind = row.side === "BUY" ? "up" : row.side === "SELL" ? "down" : "";
      parts.push(part("Score", `${signed(row.score, 3)} ${row.side}`, kind));
    } else if (row.invalid) parts.push(part("No score:", row.invalid, "warn"));
    place.replaceChildren(...parts);
  }

  key(event, chosen) {
    const { rows } = this.store;
    if (!rows.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const scale = this.chart.timeScale();
    const range = scale.getVisibleLogicalRange();
    const place = this.at === null ? rows.length - 1 : this.store.places.get(this.at) ?? 0;
    const zoom = (factor) => {
      const width = Math.max(10, (range.to - range.from) * factor);
      const to = Math.min(range.to, rows.length + 2.5);
      scale.setVisibleLogicalRange({ from: to - width, to });
    };
    const go = (to) => {
      const row = rows[Math.max(0, Math.min(rows.length - 1, to))];
      const at = this.store.places.get(row.time);
      if (at < range.from || at > range.to) {
        const width = range.to - range.from;
        scale.setVisibleLogicalRange({ from: at - width / 2, to: at + width / 2 });
      }
      this.chart.setCrosshairPosition(row.close ?? 0, seconds(row.time), this.candles);
      this.look(row.time);
      setText($("chart-said"), $("legend").textContent);
    };
    const step = event.shiftKey ? 10 : 1;
    const keys = {
      ArrowLeft: () => go(place - step), ArrowRight: () => go(place + step),
      Home: () => go(0), End: () => this.toNewest(),
      "+": () => zoom(1 / 1.5), "=": () => zoom(1 / 1.5), "-": () => zoom(1.5),
      Enter: () => chosen(this.at ?? this.store.judged?.time),
      Escape: () => { this.chart.clearCrosshairPosition(); this.look(null); },
    };
    const act = keys[event.key];
    if (act === undefined) return;
    event.preventDefault();
    act();
  }
}
