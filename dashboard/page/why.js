// Why a candle was judged as it was: what `itb explain` finds, computed again when it is asked for.

import { $, h, table } from "/page/dom.js";
import { get } from "/page/connection.js";
import { fixed, milliseconds, moment, number, signed, whole } from "/page/format.js";

const MOST_FEATURES = 12;

const side = (text) => h("span", { class: `side ${text === "BUY" || text === "high" ? "up" : text ? "down" : ""}` }, text || "no side");
const part = (title, ...content) => h("section", {}, h("h3", {}, title), content);
const facts = (pairs) => h("dl", { class: "facts" }, pairs.map(([name, value]) =>
  h("div", {}, h("dt", {}, name), h("dd", {}, value ?? "–"))));

export class Why {
  constructor(page) {
    this.page = page;
    this.asked = 0;
    $("why-close").addEventListener("click", () => $("why").close());
  }

  async open(time) {
    const { store } = this.page;
    const row = time === undefined || time === null ? null : store.row(time);
    if (row === null) return;
    this.asked += 1;
    const { asked } = this;
    const dialog = $("why");
    $("why-title").textContent = `Why? ${store.symbol} ${moment(row.time)}`;
    const waits = h("p", { class: "note" }, "Computing everything again from the candles …");
    $("why-body").replaceChildren(this.known(row), waits);
    $("why-body").scrollTop = 0;
    if (!dialog.open) dialog.showModal();
    if (!row.release) {
      waits.textContent = "This candle has no signal yet.";
      return;
    }
    const id = `${store.symbol}-${store.hello.interval}-${row.time}`;
    try {
      const found = await get(`/api/why?id=${encodeURIComponent(id)}`);
      if (asked === this.asked) $("why-body").replaceChildren(this.known(row), ...this.explained(found));
    } catch (error) {
      if (asked === this.asked) waits.replaceWith(h("p", { class: "problem" }, error.message));
    }
  }

  // What the page knows anyway.
  known(row) {
    const digits = this.page.chart.digits ?? 2;
    return facts([
      ["Score", row.score === null ? row.invalid || "none" : h("span", {}, signed(row.score, 4), " ", side(row.side))],
      ["Close", fixed(row.close, digits)],
      ["Release", h("span", { class: "mono" }, row.release || "–")],
      ["Received to signal", milliseconds(row.total_us === null ? null : row.total_us / 1000)],
    ]);
  }

  explained(found) {
    return [
      this.equality(found), this.steps(found), this.features(found), this.models(found),
      this.guards(found), this.afterwards(found), this.origin(found),
    ];
  }

  equality(found) {
    const count = Object.entries(found.compared).map(([name, n]) => `${whole(n)} ${name}`).join(" and ");
    if (found.equal) {
      return h("p", { class: "verdict good" }, h("b", {}, "Computed again, equal. "),
        `${count}, and the score, have the same bits as what was sent.`);
    }
    const { stage, field, bus, recomputed } = found.difference ?? {};
    return h("p", { class: "verdict bad" }, h("b", {}, "Computed again, NOT equal. "),
      `${stage} ${field}: ${bus} on the bus, ${recomputed} computed again.`);
  }

  steps({ score }) {
    if (score === null) return "";
    return part("From the outputs to the score",
      h("p", {}, score.text), h("p", { class: "note" }, `${score.kind}: ${score.formula}`),
      facts([["high", fixed(score.high, 4)], ["low", fixed(score.low, 4)]]));
  }

  features({ top_features: top }) {
    if (!top.length) return "";
    const most = Math.max(...top.map((one) => Math.abs(one.pull ?? 0)), 1e-12);
    const bar = (pull) => h("span", { class: "pull", "aria-hidden": "true" },
      h("i", { class: pull > 0 ? "up" : "down", vars: { "--share": `${50 * Math.abs(pull ?? 0) / most}%` } }));
    return part("The features that moved it most",
      h("p", { class: "note" }, "Pull: by how much the feature moves the score, to first order, against its median in training."),
      table("The features that moved the score most", [
        ["Feature", ""], ["Value", "num"], ["Median", "num less"], ["Pull", "num"], ["(as a bar)", "bars"], ["Score at median", "num less"],
      ], top.slice(0, MOST_FEATURES).map((one) => [
        one.name, number(one.value, 5), number(one.median, 4), signed(one.pull, 4), bar(one.pull),
        signed(one.score_at_median, 4),
      ])));
  }

  models({ models, release }) {
    const names = Object.keys(models);
    if (!names.length) return "";
    const contributions = (one) => Object.entries(one.contributions).map(([name, value]) =>
      `${name} ${signed(value, 2)}`).join(", ") || one.missing;
    return part("Every model", table("Every model", [
      ["Model", ""], ["For", ""], ["Output", "num"], ["AUC", "num"], ["What moved it most (log-odds)", "wide less"],
    ], names.map((name) => [
      name, side(models[name].side), fixed(models[name].output, 4), fixed(release.auc?.[name], 3), contributions(models[name]),
    ])));
  }

  guards({ guards }) {
    const sign = (passed) => (passed === null ? ["–", "not asked"] : passed ? ["✓", "passed"] : ["✗", "failed"]);
    return part("Guards", h("ul", { class: "guards" }, guards.map((one) => {
      const [mark, word] = sign(one.passed);
      return h("li", { class: one.passed === false ? "down" : "" },
        h("span", { class: one.passed ? "up" : "", "aria-label": word, role: "img" }, mark), ` ${one.name}: ${one.text}`);
    })));
  }

  afterwards({ orders, notifications }) {
    const lines = [
      ...orders.map((one) => [`order ${one.leg ?? ""}`.trim(), one.state, [one.quantity, one.price].filter(Boolean).join(" at "), one.reason]),
      ...notifications.map((one) => ["message", one.state, one.channel ?? "", one.reason || one.text]),
    ];
    if (!lines.length) return "";
    return part("What it led to", table("What it led to", [
      ["What", ""], ["State", ""], ["How much", ""], ["Why", "wide"],
    ], lines.map((line) => line.map((cell) => cell || ""))));
  }

  origin({ release, candles, latency_ms: latency, notes }) {
    return part("Where it comes from", facts([
      ["candles looked at", `${whole(candles.rows)}, ${whole(candles.gaps)} gaps`],
      ["from", moment(candles.first_ms)],
      ["trained on", `${String(release.trained_from).slice(0, 10)} – ${String(release.trained_to).slice(0, 10)}`],
      ["candles since training", whole(release.candles_since_training)],
      ...Object.entries(latency).map(([name, ms]) => [name.replaceAll("_", " "), milliseconds(ms)]),
    ]), notes.map((note) => h("p", { class: "note" }, note)));
  }
}
