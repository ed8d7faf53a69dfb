// What the page knows: the symbol's candles by time, and the newest word on everything else.

export class Store {
  constructor() {
    this.hello = null;
    this.symbol = null;
    this.clear();
    this.status = null;
    this.releases = null;
    this.tickers = {};
    this.orders = [];
    this.notices = [];
    this.skew = 0; // our clock minus the server's
  }

  clear() {
    this.fields = [];
    this.models = [];
    this.rows = [];
    this.places = new Map();
    this.whatif = null;
    this.account = null;
    this.parity = null;
  }

  get last() {
    return this.rows.length ? this.rows[this.rows.length - 1] : null;
  }

  // The newest candle of which this is true; null where there is none.
  newest(is) {
    for (let n = this.rows.length - 1; n >= 0; n -= 1) if (is(this.rows[n])) return this.rows[n];
    return null;
  }

  // The newest candle that has its signal.
  get judged() {
    return this.newest((row) => row.release);
  }

  // What the trader's heartbeat says; null where there is none.
  get trader() {
    return this.status?.services.find((one) => one.service === "trader" && one.time_ms) ?? null;
  }

  row(time) {
    const place = this.places.get(time);
    return place === undefined ? null : this.rows[place];
  }

  get release() {
    const id = this.judged?.release ?? this.releases?.live;
    return this.releases?.releases.find((one) => one.id === id) ?? null;
  }

  now() {
    return Date.now() - this.skew;
  }

  take(message) {
    switch (message.kind) {
      case "hello":
        this.hello = message;
        this.skew = Date.now() - message.now_ms;
        break;
      case "snapshot":
        this.clear();
        this.symbol = message.symbol;
        this.fields = message.fields;
        this.models = message.models;
        this.read(message.columns);
        break;
      case "rows":
        this.models = message.models;
        message.changed = message.rows.map((values) => this.put(this.named(values)));
        break;
      case "whatif":
        this.whatif = message;
        break;
      case "account":
        this.account = message;
        break;
      case "parity":
        this.parity = message;
        break;
      case "tickers":
        this.tickers = message.tickers;
        break;
      case "orders":
        this.orders = message.all ? message.orders : [...this.orders, ...message.orders].slice(-1000);
        break;
      case "notices":
        this.notices = message.all
          ? message.notices : [...this.notices, ...message.notices].slice(-300);
        break;
      case "status":
        this.status = message;
        this.skew = Date.now() - message.now_ms;
        break;
      case "releases":
        this.releases = message;
        break;
      default:
        break;
    }
  }

  read(columns) {
    const names = Object.keys(columns);
    const count = columns.time.length;
    for (let n = 0; n < count; n += 1) {
      const row = { outputs: null };
      for (const name of names) row[name] = columns[name][n];
      this.places.set(row.time, this.rows.length);
      this.rows.push(row);
    }
  }

  named(values) {
    const row = {};
    this.fields.forEach((name, n) => { row[name] = values[n]; });
    row.outputs = values.slice(this.fields.length);
    return row;
  }

  put(row) {
    const place = this.places.get(row.time);
    if (place !== undefined) this.rows[place] = row;
    else {
      this.places.set(row.time, this.rows.length);
      this.rows.push(row);
    }
    return row;
  }
}

// Candles at which the side changes: the first of each run above or below a threshold.
export function sideChanges(rows) {
  const found = [];
  let side = "";
  for (const row of rows) {
    if (row.side && row.side !== side) found.push(row);
    if (row.release) side = row.side;
  }
  return found;
}
