// Small charts of a few lines over time, in the panels.

import { LineSeries, LineStyle, createChart } from "/page/vendor/lightweight-charts.mjs";
import { chartOptions, colours } from "/page/chart.js";
import { h, setHidden } from "/page/dom.js";

export class Lines {
  // lines: [{name, colour: a name of `colours`, dashed, format}]. about: for those who do not see it.
  constructor(about, lines) {
    this.described = lines;
    this.plot = h("div", { class: "plot small", role: "img", "aria-label": about });
    this.keys = h("ul", { class: "keys" }, lines.map((line) =>
      h("li", {}, h("i", { vars: { "--key": `var(--${line.colour})` }, class: line.dashed ? "dashed" : "" }),
        line.name)));
    this.element = h("figure", {}, this.keys, this.plot);
    this.series = [];
    this.chart = null;
    this.last = 0;
  }

  // Once the element is on the page: a chart needs its size.
  open() {
    if (this.chart !== null) return;
    this.chart = createChart(this.plot, { ...chartOptions(colours()), handleScale: { mouseWheel: false } });
    this.series = this.described.map((line) => this.chart.addSeries(LineSeries, {
      lineWidth: line.dashed ? 1 : 2, lineStyle: line.dashed ? LineStyle.Dashed : LineStyle.Solid,
      priceLineVisible: false, crosshairMarkerRadius: 3,
      priceFormat: { type: "custom", minMove: 1e-8, formatter: line.format },
    }));
    this.paint();
  }

  paint() {
    if (this.chart === null) return;
    const c = colours();
    this.chart.applyOptions(chartOptions(c));
    this.series.forEach((series, n) => series.applyOptions({ color: c[this.described[n].colour] }));
  }

  // times: ms; columns: one list of values (null: none) per line.
  draw(times, columns) {
    setHidden(this.element, !times.length);
    this.open();
    columns.forEach((column, n) => {
      this.series[n].setData(times.map((time, i) => (column[i] === null || column[i] === undefined
        ? { time: time / 1000 } : { time: time / 1000, value: column[i] })));
    });
    this.last = times.length ? times[times.length - 1] : 0;
    this.chart.timeScale().fitContent();
  }

  update(time, values) {
    if (this.chart === null) return;
    setHidden(this.element, false);
    values.forEach((value, n) => {
      const point = value === null ? { time: time / 1000 } : { time: time / 1000, value };
      this.series[n].update(point, time < this.last);
    });
    this.last = Math.max(this.last, time);
  }
}
