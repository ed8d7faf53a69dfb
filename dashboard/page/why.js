// Why a candle was judged as it was.

import { $, h } from "/page/dom.js";
import { fixed, milliseconds, moment, number, signed } from "/page/format.js";

export class Why {
  constructor(page) {
    this.page = page;
    $("why-close").addEventListener("click", () => $("why").close());
  }

  open(time) {
    const { store, chart } = this.page;
    const row = time === undefined || time === null ? null : store.row(time);
    if (row === null) return;
    const digits = chart.digits ?? 2;
    const pairs = [
      ["Candle", moment(row.time)],
      ["Close", fixed(row.close, digits)],
      ["Volume", number(row.volume, 5)],
      ["Score", row.score === null ? "none" : signed(row.score, 4)],
      ["Side", row.side || "none"],
      ["Release", row.release || "–"],
      ["Close to bus", milliseconds(row.late_ms)],
      ["Candle to signal", milliseconds(row.total_us === null ? null : row.total_us / 1000)],
    ];
    if (row.invalid) pairs.push(["No score", row.invalid]);
    $("why-body").replaceChildren(h("dl", { class: "facts" }, pairs.map(([name, value]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
    if (!$("why").open) $("why").showModal();
  }
}
