// What may be done on the page: asked for, described by the server, confirmed, done.

import { $, h, say, setHidden, setText } from "/page/dom.js";
import { post } from "/page/connection.js";

export class Control {
  constructor(page) {
    this.page = page;
    this.number = null;
    $("confirm-no").addEventListener("click", () => $("confirm").close());
    $("confirm-yes").addEventListener("click", () => this.confirm());
    $("confirm").addEventListener("close", () => { this.number = null; });
    $("control-open").addEventListener("click", () => $("control").showModal());
    $("control-close").addEventListener("click", () => $("control").close());
    $("logout").addEventListener("click", () => this.logOut());
  }

  // What this login may do.
  offer() {
    const { hello } = this.page.store;
    setHidden($("logout"), !hello.login);
    const trading = hello.actions.filter((one) => one !== "promote" && one !== "rollback");
    setHidden($("control-open"), trading.length === 0);
  }

  async ask(action, argument) {
    const { hello } = this.page.store;
    setText($("confirm-title"), action.replace(/^./, (c) => c.toUpperCase()));
    setText($("confirm-text"), "…");
    setHidden($("confirm-problem"), true);
    $("confirm-yes").disabled = true;
    $("confirm").showModal();
    $("confirm-no").focus();
    try {
      const found = await post("/api/action", hello.csrf, { action, argument });
      this.number = found.confirm;
      setText($("confirm-text"), found.text);
      $("confirm-yes").disabled = false;
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
    setText($("confirm-text"), "Working …");
    try {
      const found = await post("/api/confirm", hello.csrf, { confirm: number });
      $("confirm").close();
      say(found.text);
    } catch (error) {
      setText($("confirm-text"), "It was not done.");
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

export { h };
