// What lies under the tabs. A panel is drawn when its tab is shown, and again when its data change.

import { $, h, setText, table } from "/page/dom.js";
import {
  day, duration, fixed, milliseconds, moment, number, percent, signed, whole,
} from "/page/format.js";
import { get } from "/page/connection.js";
import { Lines } from "/page/lines.js";

const TABS = ["trades", "models", "features", "data", "pipeline", "releases"];
const ASKED_MS = 1_000;
const mean = (values) => {
  const known = values.filter((one) => one !== null && one !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};

function side(text) {
  const kind = text === "BUY" || text === "high" ? "up" : text === "SELL" || text === "low" ? "down" : "";
  return h("span", { class: `side ${kind}` }, text || "–");
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value ?? "–"))));
}

const heading = (text, note) => h("div", { class: "panel-head" }, h("h3", {}, text),
  note ? h("p", { class: "note" }, note) : null);

// -- trades ---------------------------------------------------------------------------------------

// The trader's account where it keeps one, and what the rules would have made in any case.
class Trades {
  constructor(page) {
    this.page = page;
    this.own = {
      head: h("div", {}), trades: h("div", {}),
      lines: new Lines("Result of the trader's account, and of holding since its first trade", [
        { name: "the trader", colour: "accent", format: (v) => percent(v) },
        { name: "held since its first trade", colour: "muted", dashed: true, format: (v) => percent(v) },
      ]),
    };
    this.rules = {
      head: h("div", {}), trades: h("div", {}),
      lines: new Lines("Worth by the rules and of buy-and-hold over the candles shown", [
        { name: "by the rules", colour: "accent", format: (v) => percent(v) },
        { name: "buy and hold", colour: "muted", dashed: true, format: (v) => percent(v) },
      ]),
    };
    this.lines = h("div", {});
    this.every = h("button", {
      type: "button", class: "small", "aria-pressed": "false",
      onclick: () => {
        const pressed = this.every.getAttribute("aria-pressed") === "true";
        this.every.setAttribute("aria-pressed", String(!pressed));
        this.draw();
      },
    }, "Dropped signals, too");
    this.journal = h("div", {}, h("div", { class: "card-head flush" },
      heading("The trader's journal", "Every signal with a side leads to a line, and every order to its own."), this.every), this.lines);
    this.account = h("section", { hidden: true }, this.own.head, this.own.lines.element, this.own.trades);
    const simulated = h("section", {}, this.rules.head, this.rules.lines.element, this.rules.trades);
    $("panel-trades").append(this.account, simulated, this.journal);
    this.told = {};
  }

  ofRules(row) {
    const { capital } = this.page.store.whatif;
    return row.equity === null ? null : [row.equity / capital - 1, row.held === null ? null : row.held / capital - 1];
  }

  ofTrader(row) {
    const { account } = this.page.store;
    if (row.result === null || !account.worth || !account.first_price) return null;
    return [row.result / account.worth, row.close === null ? null : row.close / account.first_price - 1];
  }

  redraw() {
    this.told = {};
    this.draw();
  }

  // Once for each thing that it depends on.
  once(name, key, work) {
    const text = JSON.stringify(key);
    if (this.told[name] === text) return;
    this.told[name] = text;
    work();
  }

  chart(lines, values) {
    const rows = this.page.store.rows.map((row) => [row.time, values(row)]).filter(([, found]) => found !== null);
    lines.draw(rows.map(([time]) => time), [0, 1].map((n) => rows.map(([, found]) => found[n])));
  }

  rows(changed) {
    const { whatif, account } = this.page.store;
    // What is drawn is added to; the first value, and a change of the past, are drawn anew.
    const add = (lines, values) => {
      for (const row of changed) {
        const found = values(row);
        if (found !== null) lines.update(row.time, found);
      }
    };
    if (whatif !== null) add(this.rules.lines, (row) => this.ofRules(row));
    if (account !== null) add(this.own.lines, (row) => this.ofTrader(row));
  }

  draw() {
    const { store } = this.page;
    const { account, whatif, symbol } = store;
    if (whatif !== null) {
      this.once("rules head", [symbol, whatif.since, whatif.problem], () => this.rulesHead(whatif));
      this.once("rules chart", [symbol, whatif.since], () => this.chart(this.rules.lines, (row) => this.ofRules(row)));
      this.once("rules", [symbol, whatif.trades.length, whatif.trades[whatif.trades.length - 1]], () => {
        this.rules.trades.replaceChildren(this.table("Trades by the rules", whatif.trades.map((trade) => ({
          ...trade, time: trade.open_time_ms,
        })), "The rules have not traded on these candles."));
      });
    }
    this.account.hidden = account === null;
    if (account !== null) {
      this.once("head", [symbol, account], () => this.head(account));
      this.once("chart", [symbol, account.since, account.worth], () => this.chart(this.own.lines, (row) => this.ofTrader(row)));
      this.once("own", [symbol, account.trades, account.since], () => {
        this.own.trades.replaceChildren(this.table("The trader's orders that were filled", account.trades.map((trade) => ({
          ...trade, time: trade.market_ms, reason: this.reason(trade),
        })), account.since ? "What was filled is no longer on the bus." : "Nothing has been filled yet."));
      });
    }
    const line = store.orders[store.orders.length - 1];
    const every = this.every.getAttribute("aria-pressed") === "true";
    this.once("journal", [symbol, every, store.orders.length, line?.id],
      () => this.writing(store.orders.filter((one) => one.symbol === symbol && (every || one.state !== "DROPPED"))));
  }

  reason(trade) {
    const score = trade.leg === "entry" || trade.leg === "exit" ? `score ${signed(trade.score, 3)}` : "";
    return [trade.leg, score, trade.reason, trade.state === "FILLED" ? "" : trade.state].filter(Boolean).join(" · ");
  }

  rulesHead(whatif) {
    const cost = `${number(100 * whatif.fee, 3)} % fee and ${number(100 * whatif.slippage, 3)} % slippage a trade`;
    const since = whatif.since === null ? "no score yet" : `since ${moment(whatif.since)}`;
    this.rules.head.replaceChildren(heading("What the rules make of these scores",
      whatif.problem || `Simulated, no orders: ${whole(whatif.capital)} ${this.page.store.hello.quote} ${since}, `
        + `${cost}, filled at the next open.`));
  }

  head(account) {
    const { hello, symbol } = this.page.store;
    const { quote } = hello;
    const fees = Object.entries(account.fees).map(([asset, fee]) => `${number(Number(fee), 5)} ${asset}`).join(", ");
    this.own.head.replaceChildren(heading(`The trader's account, ${account.mode}`, account.problem
      || (account.mode === "live" ? "Real money." : "Paper: orders go to the simulated exchange.")),
    facts([
      ["realised", h("span", { class: account.realised < 0 ? "down" : account.realised > 0 ? "up" : "" },
        `${signed(account.realised, 2)} ${quote}`)],
      ["round trips", `${whole(account.trips)}, ${whole(account.won)} won`],
      ["fees", fees || "none"],
      ["slippage against the close", `${signed(account.slippage, 2)} ${quote}`],
      ["holds", `${number(account.quantity, 6)} ${hello.bases[symbol]}`],
      ["orders open", whole(account.open.length)],
    ]),
    account.open.length ? table("Orders that are open", [
      ["For", ""], ["Side", ""], ["Type", "less"], ["Quantity", "num"], ["Price", "num"], ["Stop", "num"], ["State", ""],
    ], account.open.map((one) => [
      one.leg, side(one.side), one.type.replaceAll("_", " ").toLowerCase(), one.quantity, one.price, one.stop_price,
      h("span", { class: one.is_unknown ? "warn" : "" }, one.state),
    ]), { caption: true }) : "");
  }

  table(caption, trades, none) {
    const digits = this.page.chart.digits ?? 2;
    if (!trades.length) return h("p", { class: "empty" }, none);
    return table(`${caption}, newest first`, [
      ["Time", ""], ["Side", ""], ["Price", "num"], ["Quantity", "num less"], ["Profit", "num"], ["Why", "wide"],
    ], [...trades].reverse().map((trade) => [
      moment(trade.time), side(trade.side), fixed(trade.price, digits), number(trade.quantity, 5),
      trade.profit === null ? "" : h("span", { class: trade.profit > 0 ? "up" : "down" }, signed(trade.profit, 2)),
      trade.reason,
    ]));
  }

  writing(lines) {
    this.lines.replaceChildren(lines.length ? table("The trader's journal, newest first", [
        ["Candle", ""], ["State", ""], ["For", "less"], ["Side", ""], ["Quantity", "num less"], ["Price", "num"],
        ["Score", "num less"], ["Why", "wide"],
      ], lines.slice(-100).reverse().map((line) => [
        line.signal_id ? this.page.whyButton(line.open_time_ms, moment(line.open_time_ms)) : moment(line.time_ms),
        h("span", { class: line.state === "UNKNOWN" ? "warn" : "" }, line.state), line.leg ?? "",
        side(line.side), line.quantity || "", line.price || "", signed(line.score, 3), line.reason,
      ])) : h("p", { class: "empty" }, "The trader has written nothing yet."));
  }
}

// -- what became of the signals -------------------------------------------------------------------

const outcomesHeading = (note) => heading("What became of the signals", note
  ?? "What each signal turned into once its horizon was over, beside what training promised.");

// What `itb outcomes` measured, else what the auditor published.
function outcomesOf({ published, measured, problem }, quote) {
  const sides = (counts, returns) => ["BUY", "SELL", "none"].map((name) => [
    `mean return after ${whole(counts[name] ?? 0)} ${name === "none" ? "of neither side" : name}`,
    counts[name] ? percent(returns[name] / 100, 3) : "–",
  ]);
  if (measured === null) {
    if (published === null) {
      return [outcomesHeading(), h("p", { class: "empty" }, problem || "No signal's horizon is over yet.")];
    }
    return [
      outcomesHeading(`Release ${published.release}, ${whole(published.rows)} scored signals up to ${moment(published.last)}, `
        + `${whole(published.horizon)} candles after each.`),
      facts([["AUC of the score, live", fixed(published.auc, 3)], ...sides(published.counts, published.mean_return)]),
      h("p", { class: "note" }, `Models are not measured here: ${problem}`),
    ];
  }
  const [release, told] = Object.entries(measured.releases).pop();
  const { score } = told;
  const range = (one) => (one.auc_low === null ? "–" : `${fixed(one.auc_low, 3)} – ${fixed(one.auc_high, 3)}`);
  const beyond = (live, trained) => live.auc_high !== null && trained.auc !== null && live.auc_high < trained.auc;
  const parts = [outcomesHeading(`Release ${release}: ${whole(told.signals)} signals, ${whole(told.in_training ?? 0)} of them inside `
    + "its training range and not measured. A model is worse than promised where its training AUC lies above the live interval.")];
  if (told.problem) return [...parts, h("p", { class: "problem" }, told.problem)];
  parts.push(facts([
    ["AUC of the score, live", score.auc === null ? "–" : `${fixed(score.auc, 3)} (${range(score)})`],
    ["rises and falls of one sigma", whole(score.cases)],
    ...sides(Object.fromEntries(Object.entries(score.sides).map(([name, one]) => [name, one.signals])),
      Object.fromEntries(Object.entries(score.sides).map(([name, one]) => [name, one.mean_return]))),
  ]), table("Models on live candles, against training", [
    ["Model", ""], ["AUC live", "num"], ["95 %", "num less"], ["Training", "num"], ["Calibration", "num less"], ["Rows", "num"],
  ], Object.entries(told.models).map(([name, { live, training }]) => [
    name, h("span", { class: beyond(live, training) ? "warn" : "", title: `95 %: ${range(live)}` }, fixed(live.auc, 3)),
    range(live), fixed(training.auc, 3), fixed(live.calibration, 2), whole(live.rows),
  ])), h("p", { class: "note" }, "Calibration: mean output over how often it happened; 1 is right, 2 says twice too much."));
  const { mode, gap } = measured.trading;
  if (gap !== null) {
    parts.push(h("h3", {}, `Trading (${mode}) against the backtest`), facts([
      ["round trips earned", `${signed(gap.live, 2)} ${quote}`],
      ["the backtest on these signals", `${signed(gap.backtest, 2)} ${quote}`],
      ...Object.entries(gap.parts).map(([name, part]) => [name.replaceAll("_", " "), `${signed(part, 2)} ${quote}`]),
    ]));
  }
  return parts;
}

// -- models ---------------------------------------------------------------------------------------

class Models {
  constructor(page) {
    this.page = page;
    this.lines = new Lines("Mean output of the models for a rise and for a fall", [
      { name: "for a rise, mean", colour: "up", format: (v) => fixed(v, 3) },
      { name: "for a fall, mean", colour: "down", format: (v) => fixed(v, 3) },
    ]);
    this.body = h("div", {});
    this.outcomes = h("section", { "aria-live": "off" });
    $("panel-models").append(
      heading("Outputs of every model", "Each model gives the probability of one label; the score folds them into one number."),
      h("div", { class: "columns" }, this.body, this.lines.element), this.outcomes);
    this.asking = false;
  }

  // Asked for when the tab is shown; the server measures at most every two minutes.
  async outcome() {
    const { store } = this.page;
    if (this.asking) return;
    this.asking = true;
    if (!this.outcomes.hasChildNodes()) {
      this.outcomes.replaceChildren(outcomesHeading(), h("p", { class: "empty" }, "Measuring, a few seconds …"));
    }
    const { symbol } = store;
    let shown;
    try {
      const found = await get(`/api/outcomes?symbol=${encodeURIComponent(symbol)}`);
      shown = outcomesOf(found, store.hello.quote);
    } catch (error) {
      shown = [outcomesHeading(), h("p", { class: "problem" }, error.message)];
    }
    this.asking = false;
    if (symbol === store.symbol) this.outcomes.replaceChildren(...shown);
    else this.outcome();
  }

  sides() {
    const release = this.page.store.release;
    const sides = {};
    for (const model of release?.models ?? []) sides[model.name] = model.side;
    const of = (name) => sides[name] ?? (name.startsWith("high") ? "high" : "low");
    return { high: (name) => of(name) === "high", low: (name) => of(name) === "low" };
  }

  async redraw() {
    const { store } = this.page;
    const { symbol } = store;
    this.outcome();
    let found;
    try {
      found = await get(`/api/outputs?symbol=${encodeURIComponent(symbol)}`);
    } catch (error) {
      this.body.replaceChildren(h("p", { class: "problem" }, error.message));
      return;
    }
    if (symbol !== store.symbol) return;
    const is = this.sides();
    const names = Object.keys(found.outputs);
    const means = ["high", "low"].map((kind) => {
      const columns = names.filter(is[kind]).map((name) => found.outputs[name]);
      return found.time.map((_, n) => mean(columns.map((column) => column[n])));
    });
    const told = found.time.map((_, n) => n).filter((n) => means[0][n] !== null || means[1][n] !== null);
    this.lines.draw(told.map((n) => found.time[n]), means.map((column) => told.map((n) => column[n])));
    found.time.forEach((time, n) => {
      const row = store.row(time);
      if (row !== null && row.outputs === null) row.outputs = names.map((name) => found.outputs[name][n]);
    });
    this.draw();
  }

  rows(changed) {
    const is = this.sides();
    const { models } = this.page.store;
    for (const row of changed) {
      if (!row.outputs?.length) continue;
      this.lines.update(row.time, ["high", "low"].map((kind) =>
        mean(row.outputs.filter((_, n) => is[kind](models[n])))));
    }
  }

  draw() {
    const { store } = this.page;
    const row = store.judged;
    const release = store.release;
    if (row === null || !row.outputs) {
      this.body.replaceChildren(h("p", { class: "empty" }, "No model has spoken yet."));
      return;
    }
    const value = (name) => row.outputs[store.models.indexOf(name)] ?? null;
    const known = release?.models ?? store.models.map((name) => ({ name, side: this.sides().high(name) ? "high" : "low" }));
    const bar = (share, kind) => h("span", { class: "bar", "aria-hidden": "true" },
      h("i", { class: kind, vars: { "--share": `${100 * (share ?? 0)}%` } }));
    this.body.replaceChildren(table("Newest output of every model", [
      ["Model", ""], ["For", ""], ["Output", "num"], ["(as a bar)", "bars"], ["AUC", "num"],
    ], known.map((model) => [
      model.name, side(model.side), fixed(value(model.name), 3),
      bar(value(model.name), model.side === "high" ? "up" : "down"),
      model.auc === null || model.auc === undefined ? "–"
        : h("span", { title: `95 %: ${fixed(model.auc_low, 3)} to ${fixed(model.auc_high, 3)}` }, fixed(model.auc, 3)),
    ])), h("p", { class: "note" }, `Candle of ${moment(row.time)}. AUC: on a purged tail of the training data; 0.5 is a coin.`));
  }
}

// -- features -------------------------------------------------------------------------------------

class Features {
  constructor(page) {
    this.page = page;
    this.body = h("div", {});
    $("panel-features").append(this.body);
  }

  async redraw() {
    await this.draw();
  }

  rows() {
    this.draw();
  }

  async draw() {
    const { store } = this.page;
    let found;
    try {
      found = await get(`/api/features?symbol=${encodeURIComponent(store.symbol)}`);
    } catch (error) {
      this.body.replaceChildren(h("p", { class: "problem" }, error.message));
      return;
    }
    if (found.symbol !== store.symbol) return;
    if (!found.features.length) {
      this.body.replaceChildren(h("p", { class: "empty" }, found.problem || "No features yet."));
      return;
    }
    const place = (row) => {
      if (row.rank === null) return "–";
      return h("span", { class: "where", title: `${fixed(100 * row.rank, 1)} % of the values shown are smaller` },
        h("i", { vars: { "--at": `${100 * row.rank}%` } }));
    };
    const far = (row) => h("span", { class: Math.abs(row.spreads ?? 0) > 3 ? "warn" : "" }, signed(row.spreads, 1));
    const moved = (row) => h("span", {
      class: row.usual !== null && row.psi > row.usual ? "warn" : "",
      title: row.usual === null ? "" : `in training 95 % of the stretches stay below ${fixed(row.usual, 2)}`,
    }, fixed(row.psi, 2));
    const { drift, novelty } = found;
    const known = found.features.some((row) => row.median !== null);
    this.body.replaceChildren(
      heading("Features against their training", known
        ? `Candle of ${moment(found.time)}. Spreads: from the training median; a spread holds two thirds of the training rows. `
          + "PSI: how a stretch of candles differs from training; in colour what is out of the usual. The most unusual first."
        : `Candle of ${moment(found.time)}, among the ${whole(found.candles)} candles shown. This release does not say what it was trained on.`),
      found.problem ? h("p", { class: "problem" }, found.problem) : "",
      novelty || drift ? facts([
        novelty ? ["novelty of this candle", h("span", { class: novelty.value > 1 ? "warn" : "" }, fixed(novelty.value, 2)
          + (novelty.joint === null ? "" : ` (values ${fixed(novelty.own, 2)}, combination ${fixed(novelty.joint, 2)})`))] : null,
        drift ? ["features that drifted", `${whole(drift.unusual)} of ${whole(drift.known)}`] : null,
        drift && drift.score_psi !== null ? ["PSI of the score", h("span", {
          class: drift.score_usual !== null && drift.score_psi > drift.score_usual ? "warn" : "",
        }, fixed(drift.score_psi, 2) + (drift.score_usual === null ? "" : `, usual below ${fixed(drift.score_usual, 2)}`))] : null,
        drift && drift.beyond !== null ? ["candles farther out than 99 % of training", `${fixed(100 * drift.beyond, 1)} %`] : null,
        drift ? ["drift looked at", `${whole(drift.rows)} candles up to ${moment(drift.last)}`] : null,
      ].filter(Boolean)) : "",
      table("Features of the newest candle", [
        ["Feature", ""], ["Value", "num"], ["Training median", "num less"], ["0.5 %", "num less"], ["99.5 %", "num less"],
        ["Spreads", "num"], ["PSI", "num"], ["Among the candles shown", "bars less"], ["None", "num less"],
      ], found.features.map((row) => [
        row.name, number(row.value, 5), number(row.median, 4), number(row.low, 4), number(row.high, 4),
        far(row), moved(row), place(row), row.missing ? `${fixed(100 * row.missing, 1)} %` : "",
      ])));
  }
}

// -- data -----------------------------------------------------------------------------------------

class Data {
  constructor(page) {
    this.page = page;
    this.body = h("div", {});
    this.parity = h("div", {});
    this.notices = h("div", {});
    $("panel-data").append(this.body, this.parity, this.notices);
  }

  async redraw() {
    this.draw();
    const { store } = this.page;
    let found;
    try {
      found = await get(`/api/ledger?symbol=${encodeURIComponent(store.symbol)}`);
    } catch (error) {
      this.body.replaceChildren(h("p", { class: "problem" }, error.message));
      return;
    }
    if (found.symbol !== store.symbol) return;
    const { counts, late_ms: late } = found;
    const rows = counts.candles + counts.backfilled + counts.gap + counts.hole;
    const whole_ = rows ? (counts.candles + counts.backfilled) / rows : null;
    this.body.replaceChildren(
      heading("Data ledger", `From ${moment(found.first)} to ${moment(found.last)}. `
        + "A gap is a candle that the exchange never produced, and is marked; a hole is one that is not on the bus."),
      facts([
        ["whole", whole_ === null ? "–" : `${fixed(100 * whole_, 2)} %`],
        ["live candles", whole(counts.candles)],
        ["backfilled", whole(counts.backfilled)],
        ["gap markers", whole(counts.gap)],
        ["holes", h("span", { class: counts.hole ? "down" : "" }, whole(counts.hole))],
        ["unreadable entries", h("span", { class: counts.unreadable ? "down" : "" }, whole(counts.unreadable))],
        ["close to bus, median", late ? milliseconds(late.p50) : "–"],
        ["close to bus, worst", late ? milliseconds(late.max) : "–"],
      ]),
      found.runs.length ? table("Gaps and holes, newest first", [
        ["Kind", ""], ["From", ""], ["To", ""], ["Candles", "num"],
      ], found.runs.map(([kind, first, last, count]) => [
        kind, moment(first), moment(last), whole(count),
      ]), { caption: true }) : h("p", { class: "note" }, "No candle is missing."));
  }

  rows() {
    this.redraw();
  }

  draw() {
    const { store } = this.page;
    const { parity } = store;
    this.parity.replaceChildren(heading("Parity certificate",
      "The auditor computes every signal again from the candles and compares all bits."),
    parity === null ? h("p", { class: "empty" }, "Nothing has been computed again yet.") : facts([
      ["signals equal", whole(parity.total_equal)],
      ["unequal", h("span", { class: parity.total_unequal ? "down" : "" }, whole(parity.total_unequal))],
      ["not checked", whole(parity.total_unchecked)],
      ["up to", moment(parity.open_time_ms)],
      parity.first ? ["first difference", parity.first] : null,
    ].filter(Boolean)));
    const lines = [...store.notices].reverse();
    this.notices.replaceChildren(
      heading("What the services said", "Repairs, revisions, late candles, refusals; alerts also go to Telegram."),
      lines.length ? table("Notices, newest first", [
        ["Time", ""], ["Level", ""], ["From", ""], ["What", ""], ["(in words)", "wide"],
      ], lines.map((line) => [
        moment(line.time_ms, true), h("span", { class: `level ${line.level}` }, line.level), line.service, line.code, line.text,
      ])) : h("p", { class: "empty" }, "Nothing yet."));
  }
}

// What a service tells of itself: {a: 1, b: [x, y]} is "a 1, b x y".
function inWords(value) {
  if (typeof value === "number") return number(value);
  if (Array.isArray(value)) return value.map(inWords).join(" ");
  if (value === null || typeof value !== "object") return String(value);
  return Object.entries(value).map(([name, one]) => `${name} ${inWords(one)}`).join(", ");
}

// -- pipeline -------------------------------------------------------------------------------------

class Pipeline {
  constructor(page) {
    this.page = page;
    this.services = h("div", {});
    this.latency = h("div", {});
    this.lines = new Lines("Time from a candle's receipt to its signal", [
      { name: "candle received to signal on the bus, ms", colour: "accent", format: (v) => milliseconds(v) },
    ]);
    $("panel-pipeline").append(this.services, h("div", { class: "columns" }, this.latency, this.lines.element));
  }

  redraw() {
    const { rows } = this.page.store;
    const live = rows.filter((row) => row.total_us !== null);
    this.lines.draw(live.map((row) => row.time), [live.map((row) => row.total_us / 1000)]);
    this.draw();
  }

  rows(changed) {
    for (const row of changed) if (row.total_us !== null) this.lines.update(row.time, [row.total_us / 1000]);
  }

  draw() {
    const { store } = this.page;
    const { status, symbol } = store;
    if (status === null) return;
    const known = new Set(["service", "instance", "version", "pid", "time_ms", "ready", "reason", "lag", "last_ids"]);
    const extra = (one) => Object.entries(one).filter(([key, value]) =>
      !known.has(key) && value !== "" && value !== null && !(typeof value === "object" && !Object.keys(value).length))
      .map(([key, value]) => `${key} ${inWords(value)}`)
      .join(" · ");
    const rows = status.services.map((one) => [
      one.instance && one.instance !== one.service ? `${one.service} (${one.instance})` : one.service,
      h("span", { class: one.ready === true ? "up" : "warn" }, one.ready === true ? "ready" : "not ready"),
      one.time_ms ? duration(status.now_ms - one.time_ms) : "–",
      whole(one.lag), one.version ?? "", String(one.pid ?? ""),
      one.reason || extra(one),
    ]);
    this.services.replaceChildren(heading("Services", "Each writes a heartbeat every five seconds."),
      table("Services", [
        ["Service", ""], ["State", ""], ["Heard", "num"], ["Behind", "num"], ["Version", "less"], ["Pid", "num less"], ["(what it says)", "wide"],
      ], rows));
    const found = status.latency[symbol];
    const names = {
      collector: "collector: received to bus", featurizer: "featurizer: candle to features",
      predictor: "predictor: features to signal", total: "in all: received to signal",
    };
    this.latency.replaceChildren(heading("Latency", found?.candles
      ? `Our own clock, the newest ${whole(found.candles)} live candles.` : "No live candle yet."),
    found?.candles ? table("Latency per stage", [
      ["Stage", ""], ["p50", "num"], ["p90", "num"], ["p99", "num"], ["worst", "num"],
    ], Object.entries(found.stages).map(([stage, one]) => [
      names[stage] ?? stage, milliseconds(one.p50), milliseconds(one.p90), milliseconds(one.p99), milliseconds(one.max),
    ])) : "");
  }
}

// -- releases -------------------------------------------------------------------------------------

class Releases {
  constructor(page) {
    this.page = page;
    $("panel-releases").append(this.body = h("div", {}));
  }

  redraw() {
    this.draw();
  }

  rows() {}

  draw() {
    const { releases, hello } = this.page.store;
    if (releases === null || hello === null) return;
    const may = (action) => hello.actions.includes(action);
    const act = (action, argument, text) => h("button", {
      type: "button", class: "small", onclick: () => this.page.control.ask(action, argument),
    }, text);
    const rows = releases.releases.map((one) => {
      const live = one.id === releases.live;
      const buttons = [];
      if (may("promote") && !live && !one.problem) buttons.push(act("promote", one.id, "Promote"));
      if (may("rollback") && live && releases.back) buttons.push(act("rollback", "", "Roll back"));
      const name = h("span", { class: "mono" }, one.id);
      if (one.problem) return [name, h("span", { class: "warn" }, "refused"), "", "", "", "", "", one.problem];
      const aucs = one.models.map((model) => model.auc).filter((auc) => auc !== null);
      return [
        name, live ? h("span", { class: "badge" }, "live") : "",
        `${one.models.length} models, ${one.features} features`,
        aucs.length ? fixed(mean(aucs), 3) : "–",
        `${signed(one.buy, 2)} / ${signed(one.sell, 2)}`,
        `${day(one.start_ms)} – ${day(one.end_ms)}`,
        whole(one.rows),
        h("span", { class: "row-buttons" },
          one.report ? h("a", { href: `/releases/${one.id}/report.html`, target: "_blank", rel: "noopener" }, "Report") : null,
          buttons),
      ];
    });
    this.body.replaceChildren(
      heading("Releases", releases.problem || (releases.count
        ? `${whole(releases.count)} in the model folder. The predictor takes what is live at the next candle.`
        : "There is none yet: `python -m trainer train --promote` makes the first.")),
      rows.length ? table("Releases, newest first", [
        ["Release", ""], ["(live)", ""], ["What", "less"], ["Mean AUC", "num"], ["Buy / sell", "num less"],
        ["Trained on", "less"], ["Rows", "num less"], ["(report and actions)", "tail"],
      ], rows) : "",
      releases.history.length ? table("What was live when, newest first", [
        ["Time", ""], ["What", ""], ["Release", "tail"], ["Before", "tail less"],
      ], [...releases.history].reverse().map((one) => [
        moment(Date.parse(one.time), true), one.action, h("span", { class: "mono" }, one.release),
        one.previous ? h("span", { class: "mono" }, one.previous) : "none",
      ]), { caption: true }) : "");
  }
}

// -- the tabs -------------------------------------------------------------------------------------

export class Panels {
  constructor(page) {
    this.page = page;
    this.panels = {
      trades: new Trades(page), models: new Models(page), features: new Features(page),
      data: new Data(page), pipeline: new Pipeline(page), releases: new Releases(page),
    };
    this.shown = "trades";
    for (const name of TABS) {
      $(`tab-${name}`).addEventListener("click", () => this.show(name));
      $(`tab-${name}`).addEventListener("keydown", (event) => this.key(event, name));
    }
    const asked = location.hash.slice(1);
    if (TABS.includes(asked)) this.show(asked, false);
  }

  get now() {
    return this.panels[this.shown];
  }

  show(name, remember = true) {
    this.shown = name;
    for (const one of TABS) {
      const chosen = one === name;
      $(`tab-${one}`).setAttribute("aria-selected", String(chosen));
      $(`tab-${one}`).tabIndex = chosen ? 0 : -1;
      $(`panel-${one}`).hidden = !chosen;
    }
    if (remember) history.replaceState(null, "", `#${name}`);
    if (this.page.store.symbol !== null) this.now.redraw();
  }

  key(event, name) {
    const at = TABS.indexOf(name);
    const to = {
      ArrowRight: (at + 1) % TABS.length, ArrowLeft: (at + TABS.length - 1) % TABS.length,
      Home: 0, End: TABS.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.show(TABS[to]);
    $(`tab-${TABS[to]}`).focus();
  }

  // After a message of this kind.
  took(kind, changed) {
    const { shown, now } = this;
    if (kind === "snapshot") now.redraw();
    else if (kind === "rows") {
      // These two ask the server; a replay has many candles a second.
      if (shown === "features" || shown === "data") this.soon();
      else now.rows(changed);
      if (shown === "models") now.draw();
    } else if (kind === "whatif" || kind === "orders" || kind === "account") {
      if (shown === "trades") now.draw();
    } else if (kind === "notices" || kind === "parity") {
      if (shown === "data") now.draw();
    } else if (kind === "status") {
      if (shown === "pipeline") now.draw();
    } else if (kind === "releases" && (shown === "releases" || shown === "models")) now.draw();
  }

  soon() {
    if (this.waits) return;
    this.waits = true;
    setTimeout(() => {
      this.waits = false;
      if (this.shown === "features" || this.shown === "data") this.now.rows();
    }, ASKED_MS);
  }

  paint() {
    for (const { lines, own, rules } of Object.values(this.panels)) {
      for (const one of [lines, own?.lines, rules?.lines]) one?.paint?.();
    }
  }
}

export { side, facts, heading, setText };
