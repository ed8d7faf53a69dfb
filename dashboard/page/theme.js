// Before anything is painted: the theme chosen on this page, else that of the system.
(() => {
  try {
    const chosen = localStorage.getItem("itb-theme");
    if (chosen === "light" || chosen === "dark") {
      document.documentElement.dataset.theme = chosen;
    }
  } catch {
    // Storage may be forbidden; the system's theme holds.
  }
})();
