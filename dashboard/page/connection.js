// The live connection: opened again and again, each time a little later, until it is there.

const LONGEST_MS = 10_000;

export class Connection {
  // take: gets every message. told: gets "open", "closed" or "login".
  constructor(take, told) {
    this.take = take;
    this.told = told;
    this.tries = 0;
    this.socket = null;
    this.symbol = null;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.socket === null) this.open();
    });
  }

  open() {
    clearTimeout(this.timer);
    const place = new URL("/ws", location.href);
    place.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    if (this.symbol) place.searchParams.set("symbol", this.symbol);
    const socket = new WebSocket(place);
    this.socket = socket;
    socket.onopen = () => {
      this.tries = 0;
      this.told("open");
    };
    socket.onmessage = (event) => {
      if (socket === this.socket) this.take(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (socket !== this.socket) return;
      this.socket = null;
      if (event.code === 4401) {
        this.told("login");
        return;
      }
      this.told("closed");
      this.again();
    };
  }

  // A closed door looks like a broken line to a websocket: ask which of the two it is.
  async again() {
    const pause = Math.min(LONGEST_MS, 250 * 2 ** this.tries) * (0.75 + 0.5 * Math.random());
    this.tries += 1;
    this.timer = setTimeout(async () => {
      try {
        const answer = await fetch("/api/ledger", { cache: "no-store" });
        if (answer.status === 401) {
          this.told("login");
          return;
        }
      } catch {
        // not there: try all the same
      }
      this.open();
    }, pause);
  }

  show(symbol) {
    this.symbol = symbol;
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ symbol }));
  }
}

async function answered(answer) {
  const text = await answer.text();
  if (answer.ok) return JSON.parse(text);
  if (answer.status === 500) throw new Error("The server failed; its log says why.");
  throw new Error(text.trim() || `The server says ${answer.status}.`);
}

export async function get(path) {
  return answered(await fetch(path, { cache: "no-store" }));
}

export async function post(path, csrf, body) {
  return answered(await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(body),
  }));
}
