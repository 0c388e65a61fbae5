(function () {
  var root = document.documentElement, key = "report-theme", saved = null;
  try { saved = localStorage.getItem(key); } catch (e) { /* private mode */ }
  if (saved) root.dataset.theme = saved;
  document.addEventListener("DOMContentLoaded", function () {
    var button = document.getElementById("theme");
    function dark() {
      return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    }
    function label() { button.textContent = dark() ? "Light" : "Dark"; }
    button.hidden = false;
    button.addEventListener("click", function () {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem(key, root.dataset.theme); } catch (e) { /* private mode */ }
      label();
    });
    label();
  });
})();
