"use strict";
(function () {
  function value(cell) {
    const text = cell.textContent.trim();
    if (!cell.classList.contains("number")) { return text.toLowerCase(); }
    const found = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(found) ? -Infinity : found;
  }

  function sortBy(table, place, head) {
    const numeric = head.classList.contains("number");
    const was = head.getAttribute("aria-sort");
    const rising = was ? was === "descending" : !numeric;
    const rows = Array.from(table.tBodies[0].rows).map(function (row) {
      return [value(row.cells[place]), row];
    });
    rows.sort(function (a, b) {
      const order = a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0;
      return rising ? order : -order;
    });
    Array.from(table.tHead.rows[0].cells).forEach(function (cell) { cell.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const body = document.createDocumentFragment();
    rows.forEach(function (pair) { body.appendChild(pair[1]); });
    table.tBodies[0].appendChild(body);
    table.dispatchEvent(new Event("sorted"));
  }

  document.querySelectorAll("table.sortable").forEach(function (table) {
    Array.from(table.tHead.rows[0].cells).forEach(function (head, place) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", function () { sortBy(table, place, head); });
      head.replaceChildren(button);
    });
  });

  const form = document.querySelector("form[data-for]");
  if (form) {
    const table = document.getElementById(form.dataset.for);
    const names = Array.from(table.tHead.rows[0].cells).map(function (cell) { return cell.textContent.trim(); });
    const more = document.getElementById("more");
    const step = Number(form.dataset.rows);
    let limit = step;

    const filter = function () {
      const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = Array.from(form.querySelectorAll("select")).filter(function (one) { return one.value; })
        .map(function (one) { return [names.indexOf(one.name), one.value]; });
      const rows = Array.from(table.tBodies[0].rows);
      let found = 0;
      rows.forEach(function (row) {
        const text = words.length ? row.textContent.toLowerCase() : "";
        const fits = words.every(function (word) { return text.includes(word); }) &&
          chosen.every(function (pair) { return row.cells[pair[0]].textContent === pair[1]; });
        found += fits ? 1 : 0;
        row.hidden = !fits;
        row.classList.toggle("later", fits && found > limit);
      });
      more.hidden = found <= limit;
      document.getElementById("count").textContent = found + " of " + rows.length + " results" +
        (found > limit ? ", the first " + limit + " of them shown" : "");
    };
    const anew = function () { limit = step; filter(); };
    table.addEventListener("sorted", filter);
    more.addEventListener("click", function () { limit += 5 * step; filter(); });
    form.addEventListener("input", anew);
    form.addEventListener("reset", function () { setTimeout(anew, 0); });
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    if (form.elements.text.value || Array.from(form.querySelectorAll("select")).some(function (one) { return one.value; })) { filter(); }
  }

  const source = document.getElementById("systems");
  if (source) {
    const systems = JSON.parse(source.textContent);
    const choose = document.getElementById("choose");
    const place = document.getElementById("comparison");

    const table = function (caption, head, rows, numeric) {
      const made = document.createElement("table");
      made.appendChild(document.createElement("caption")).textContent = caption;
      const line = made.createTHead().insertRow();
      head.forEach(function (text, i) {
        const cell = document.createElement("th");
        cell.scope = "col";
        cell.textContent = text;
        if (numeric && i) { cell.className = "number"; }
        line.appendChild(cell);
      });
      const body = made.createTBody();
      rows.forEach(function (row) {
        const line = body.insertRow();
        row.forEach(function (text, i) {
          const cell = line.insertCell();
          cell.textContent = text;
          if (numeric && i) { cell.className = "number"; }
        });
      });
      const wide = document.createElement("div");
      wide.className = "wide";
      wide.appendChild(made);
      place.appendChild(wide);
    };

    const figure = function (one) { return one === null ? "-" : one.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 }); };
    const change = function (a, b) { return a === null || b === null ? "-" : (b >= a ? "+" : "") + (100 * (b / a - 1)).toFixed(1) + " %"; };

    const show = function () {
      place.replaceChildren();
      const a = systems[choose.elements.a.value], b = systems[choose.elements.b.value];
      if (!a || !b) { return; }
      const keys = Object.keys(Object.assign({}, a.results, b.results)).sort();
      const rows = [];
      keys.forEach(function (key) {
        const x = a.results[key] || null, y = b.results[key] || null;
        const p = x && x.tokens, q = y && y.tokens;
        rows.push([key + ", tokens/s", figure(p), figure(q), change(p, q)]);
        const u = x && a.cards ? p / a.cards : null, v = y && b.cards ? q / b.cards : null;
        rows.push([key + ", tokens/s of a card", figure(u), figure(v), change(u, v)]);
        rows.push([key + ", check", x ? x.check : "-", y ? y.check : "-", ""]);
      });
      table("Results", ["result", a.name, b.name, "second against first"], rows, true);
      const fields = Object.keys(Object.assign({}, a.facts, b.facts)).sort().filter(function (key) { return a.facts[key] !== b.facts[key]; });
      table("What differs in the systems", ["field", a.name, b.name], fields.map(function (key) { return [key, a.facts[key] || "-", b.facts[key] || "-"]; }), false);
      history.replaceState(null, "", "#" + encodeURIComponent(a.page) + "," + encodeURIComponent(b.page));
    };

    ["a", "b"].forEach(function (name, i) {
      const list = choose.elements[name];
      systems.forEach(function (system, place) {
        const option = document.createElement("option");
        option.value = place;
        option.textContent = system.name;
        list.appendChild(option);
      });
      const asked = (location.hash.slice(1).split(",")[i] || "");
      const found = systems.findIndex(function (system) { return encodeURIComponent(system.page) === asked; });
      list.value = String(found >= 0 ? found : Math.min(i, systems.length - 1));
    });
    choose.addEventListener("change", show);
    show();
  }
})();
