// The five figures at the top: what a trader looks at first.

import { $, setText } from "/page/dom.js";
import {
  clock, duration, fixed, milliseconds, number, percent, short, signed, whole,
} from "/page/format.js";

function kind(element, name) {
  if (element.dataset.kind !== name) element.dataset.kind = name;
}

export class Tiles {
  constructor(store, chart) {
    this.store = store;
    this.chart = chart;
  }

  draw() {
    this.price();
    this.score();
    this.position();
    this.health();
  }

  price() {
    const { store } = this;
    const { rows } = store;
    const row = store.newest((one) => one.close !== null);
    if (row === null) {
      setText($("price"), "–");
      setText($("price-note"), "no candle yet");
      return;
    }
    const digits = this.chart.digits ?? 2;
    setText($("price"), fixed(row.close, digits));
    const dayAgo = row.time - 86_400_000;
    const before = rows.find((one) => one.time >= dayAgo && one.close !== null);
    const hours = Math.round((row.time - before.time) / 3_600_000);
    const change = row.close / before.close - 1;
    const span = hours >= 1 ? `${hours} h` : duration(row.time - before.time);
    setText($("price-note"), `${percent(change)} in ${span} · candle of ${clock(row.time)}`);
    kind($("price-note"), change > 0 ? "up" : change < 0 ? "down" : "");
    document.title = `${fixed(row.close, digits)} ${store.symbol} · itb`;
  }

  score() {
    const row = this.store.judged;
    const { release } = this.store;
    const side = $("side");
    setText(side, row?.side ?? "");
    kind(side, row?.side === "BUY" ? "up" : row?.side === "SELL" ? "down" : "");
    setText($("score"), row === null || row.score === null ? "none" : signed(row.score, 2));
    const place = (value) => `${50 + 50 * Math.max(-1, Math.min(1, value))}%`;
    const gauge = $("gauge");
    gauge.hidden = row === null || row.score === null;
    if (row?.score !== null && row !== null) gauge.style.setProperty("--at", place(row.score));
    if (release) {
      gauge.style.setProperty("--buy", place(release.buy));
      gauge.style.setProperty("--sell", place(release.sell));
    }
    let note = "waiting for a release of models";
    if (row !== null && row.invalid) note = row.invalid;
    else if (row !== null && release) {
      note = `buy above ${signed(release.buy, 2)}, sell below ${signed(release.sell, 2)}`;
    } else if (row !== null) note = `release ${row.release}`;
    setText($("score-note"), note);
  }

  position() {
    const { store } = this;
    const { hello, account, whatif } = store;
    if (hello === null || (account === null && whatif === null)) return;
    const held = account ?? whatif;
    const kept = account === null ? "simulated" : account.mode;
    setText($("position-title"), `Position, ${kept}`);
    setText($("equity-title"), `Result, ${kept}`);
    kind($("position-note"), "");
    kind($("equity"), "");
    if (held.problem) {
      setText($("position"), "–");
      setText($("position-note"), held.problem);
      setText($("equity"), "–");
      setText($("equity-note"), "");
      return;
    }
    const digits = this.chart.digits ?? 2;
    const row = store.newest((one) => one.close !== null);
    const close = row?.close ?? null;
    const base = hello.bases[store.symbol] ?? "";
    if (!held.quantity || held.is_dust) {
      const left = account === null ? whatif.trades[whatif.trades.length - 1]?.open_time_ms : account.exit;
      setText($("position"), "flat");
      setText($("position-note"), left ? `since ${short(left, store.last.time)}` : "no trade yet");
    } else {
      const gain = close === null || held.entry === null
        ? null : (close / held.entry - 1) * Math.sign(held.quantity);
      setText($("position"), `${held.quantity > 0 ? "long" : "short"} ${number(Math.abs(held.quantity), 4)} ${base}`);
      const stop = held.stop === null ? "" : ` · stop ${fixed(held.stop, digits)}`;
      setText($("position-note"), `${percent(gain)} from ${fixed(held.entry, digits)}${stop}`);
      kind($("position-note"), gain > 0 ? "up" : gain < 0 ? "down" : "");
    }
    if (account === null) this.simulated(whatif);
    else this.made(account);
  }

  simulated(whatif) {
    const row = this.store.newest((one) => one.equity !== null);
    const result = row === null ? null : row.equity / whatif.capital - 1;
    this.result(percent(result), result, row === null
      ? "no score yet" : `buy and hold ${percent(row.held / whatif.capital - 1)}`);
  }

  made(account) {
    const row = this.store.newest((one) => one.result !== null);
    if (row === null) {
      this.result("–", null, "nothing filled yet");
      return;
    }
    const amount = `${signed(row.result, 2)} ${this.store.hello.quote}`;
    const notes = [account.worth ? amount : "", `${whole(account.trips)} round trips`,
      account.first_price ? `held instead ${percent(row.close / account.first_price - 1)}` : ""];
    this.result(account.worth ? percent(row.result / account.worth) : amount, row.result,
      notes.filter(Boolean).join(" · "));
  }

  result(text, value, note) {
    setText($("equity"), text);
    kind($("equity"), value > 0 ? "up" : value < 0 ? "down" : "");
    setText($("equity-note"), note);
  }

  health() {
    const { status, symbol } = this.store;
    if (status === null) return;
    const ready = status.services.filter((one) => one.ready === true).length;
    const count = status.services.length;
    setText($("health"), `${ready} of ${count} ready`);
    kind($("health"), ready === count && count > 0 ? "up" : "warn");
    const total = status.latency[symbol]?.stages.total;
    setText($("health-note"), total
      ? `candle to signal ${milliseconds(total.p50)}, p99 ${milliseconds(total.p99)}`
      : `${whole(this.store.rows.length)} candles, none of them live yet`);
  }
}
