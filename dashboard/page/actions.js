// What may be done on the page: asked for, described by the server, confirmed, done.

import { $, h, say, setHidden, setText } from "/page/dom.js";
import { post } from "/page/connection.js";

export class Control {
  constructor(page) {
    this.page = page;
    this.number = null;
    this.typed = "";
    $("confirm-no").addEventListener("click", () => $("confirm").close());
    $("confirm-yes").addEventListener("click", () => this.confirm());
    $("confirm-typed").addEventListener("input", (event) => {
      $("confirm-yes").disabled = this.number === null || event.target.value !== this.typed;
    });
    $("confirm-typed").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !$("confirm-yes").disabled) this.confirm();
    });
    $("confirm").addEventListener("close", () => { this.number = null; });
    $("control-open").addEventListener("click", () => $("control").showModal());
    $("control-close").addEventListener("click", () => $("control").close());
    $("logout").addEventListener("click", () => this.logOut());
  }

  // What this login may do.
  offer() {
    const { hello } = this.page.store;
    setHidden($("logout"), !hello.login);
    setHidden($("control-open"), !hello.actions.includes("halt") || hello.mode === "observe");
    const button = (action, text, kind = "") => h("li", {}, h("button", {
      type: "button", class: kind, onclick: () => { $("control").close(); this.ask(action, ""); },
    }, action.replace("_", " ").replace(/^./, (c) => c.toUpperCase())), h("p", { class: "note" }, text));
    $("control-body").replaceChildren(
      h("p", { id: "control-state" }),
      h("ul", { class: "actions" },
        button("halt", "No order is sent any more, no exit either; waiting entries are cancelled; "
          + "stops and targets at the exchange stay.", "danger"),
        button("reduce_only", "Nothing is bought; exits and protection go on."),
        button("flatten", "Sell everything at market, then buy nothing.", "danger"),
        button("resume", "Trade again.")));
    this.draw();
  }

  // What the trader says of its switch.
  draw() {
    const { trader, account, hello } = this.page.store;
    if (hello === null) return;
    const state = trader?.switch ?? null;
    const pill = $("switch");
    const off = state !== null && state !== "RESUMED";
    setHidden(pill, !off);
    if (off) setText(pill, String(state));
    const place = $("control-state");
    if (place === null) return;
    if (trader === null) setText(place, "No trader is there now.");
    else if (!off) setText(place, `The trader trades (${trader.mode ?? hello.mode}).`);
    else setText(place, `The trader says ${state}${account?.why ? `: ${account.why}` : ""}.`);
  }

  async ask(action, argument) {
    const { hello } = this.page.store;
    setText($("confirm-title"), action.replace("_", " ").replace(/^./, (c) => c.toUpperCase()));
    setText($("confirm-text"), "…");
    setHidden($("confirm-problem"), true);
    setHidden($("confirm-type"), true);
    $("confirm-typed").value = "";
    $("confirm-yes").disabled = true;
    $("confirm").showModal();
    $("confirm-no").focus();
    try {
      const found = await post("/api/action", hello.csrf, { action, argument });
      this.number = found.confirm;
      this.typed = found.typed;
      setText($("confirm-text"), found.text);
      setHidden($("confirm-type"), !found.typed);
      setText($("confirm-word"), found.typed);
      $("confirm-yes").disabled = Boolean(found.typed);
      if (found.typed) $("confirm-typed").focus();
    } catch (error) {
      setText($("confirm-text"), "This cannot be done now.");
      this.problem(error.message);
    }
  }

  async confirm() {
    const { hello } = this.page.store;
    const { number } = this;
    if (number === null) return;
    this.number = null;
    $("confirm-yes").disabled = true;
    setHidden($("confirm-type"), true);
    setText($("confirm-text"), "Working …");
    try {
      const found = await post("/api/confirm", hello.csrf, { confirm: number, typed: $("confirm-typed").value });
      setText($("confirm-text"), found.text);
      $("confirm").close();
      say(found.text);
    } catch (error) {
      setText($("confirm-text"), "It was not done, or not confirmed:");
      this.problem(error.message);
    }
  }

  problem(text) {
    setText($("confirm-problem"), text);
    setHidden($("confirm-problem"), false);
  }

  async logOut() {
    try {
      await post("/logout", this.page.store.hello.csrf, {});
    } finally {
      location.assign("/login");
    }
  }
}
