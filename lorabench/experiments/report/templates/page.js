"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  all(".needs-script").forEach((element) => { element.hidden = false; });

  // Light and dark: the system's choice until the reader makes one, which is kept where the browser lets it be.
  const kept = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("lorabench-theme");
      localStorage.setItem("lorabench-theme", value);
    } catch { /* a file may have no storage */ }
    return null;
  };
  const chosen = kept();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  document.getElementById("theme").addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
    kept(root.dataset.theme);
  });

  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const head = table.tHead.rows[0];
  const rows = [...body.rows];

  // Settings that all runs share are columns only when they are asked for.
  const addCommon = () => {
    if (head.querySelector(".common")) return;
    for (const entry of all("#common > div")) {
      const [name, value] = [entry.querySelector("dt").textContent, entry.querySelector("dd").textContent];
      const cell = document.createElement("th");
      cell.className = "setting common";
      cell.scope = "col";
      cell.dataset.key = name;
      cell.textContent = name.slice(name.indexOf(".") + 1);
      head.append(cell);
      for (const row of rows) {
        const item = row.insertCell();
        item.className = "setting common";
        item.textContent = value;
      }
      makeSortable(cell);
    }
  };
  const showSettings = (which) => {
    if (which === "all") addCommon();
    for (const cell of all(".setting", table)) {
      cell.hidden = which === "none" || (which === "differing" && cell.classList.contains("common"));
    }
  };
  for (const choice of all('input[name="settings"]')) {
    choice.addEventListener("change", () => showSettings(choice.value));
  }

  // Sorting: numbers by their value, texts by the reader's language; what is not known comes last.
  const valueOf = (row, place) => {
    const cell = row.cells[place];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return cell.textContent === "n/a" ? null : cell.textContent;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true }));
  const sortBy = (cell) => {
    const place = cell.cellIndex;
    const ascending = cell.getAttribute("aria-sort") !== "ascending" && !(cell.classList.contains("number")
      && cell.getAttribute("aria-sort") !== "descending");
    all("[aria-sort]", head).forEach((other) => other.removeAttribute("aria-sort"));
    cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const keyed = rows.map((row) => [valueOf(row, place), row]);
    keyed.sort(([a], [b]) => (a === null || b === null
      ? (a === null) - (b === null)
      : (ascending ? 1 : -1) * compare(a, b)));
    body.append(...keyed.map(([, row]) => row));
  };
  function makeSortable(cell) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    cell.replaceChildren(button);
    button.addEventListener("click", () => sortBy(cell));
  }
  [...head.cells].forEach(makeSortable);

  // Filtering: every word must occur in the line; a comparison is of one column.
  const comparison = /^([\w.]+)(!=|<=|>=|=|<|>)(.*)$/;
  const tests = {
    "=": (a, b) => compare(a, b) === 0, "!=": (a, b) => compare(a, b) !== 0,
    "<": (a, b) => compare(a, b) < 0, ">": (a, b) => compare(a, b) > 0,
    "<=": (a, b) => compare(a, b) <= 0, ">=": (a, b) => compare(a, b) >= 0,
  };
  const placeOf = (name) => [...head.cells].findIndex((cell) =>
    [cell.dataset.key, cell.textContent].some((text) => text.toLowerCase() === name));
  const testOf = (word) => {
    const [, name, sign, wanted] = comparison.exec(word) || [];
    const place = name === undefined ? -1 : placeOf(name);
    if (place < 0) return (row) => row.textContent.toLowerCase().includes(word);
    return (row) => {
      const value = valueOf(row, place);
      if (value === null || wanted === "") return wanted === "" || sign === "!=";
      return typeof value === "number" && !Number.isNaN(Number(wanted))
        ? tests[sign](value, Number(wanted))
        : tests[sign](String(value).toLowerCase(), wanted);
    };
  };
  const marked = all("[data-run]").filter((element) => !body.contains(element));
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const applyFilter = () => {
    const needed = filter.value.toLowerCase().split(/\s+/).filter(Boolean).map(testOf);
    const left = new Set();
    for (const row of rows) {
      const stays = needed.every((test) => test(row));
      row.toggleAttribute("data-out", !stays);
      if (stays) left.add(row.dataset.run);
    }
    for (const element of marked) element.toggleAttribute("data-out", !left.has(element.dataset.run));
    count.textContent = left.size === rows.length ? "" : `${left.size} of ${rows.length} runs`;
  };
  filter.addEventListener("input", applyFilter);
  if (filter.value) applyFilter();

  // A name in a legend lights its curve.
  for (const figure of all("figure:has(.lines)")) {
    const plot = figure.querySelector(".lines");
    const light = (run) => {
      plot.classList.toggle("dim", run !== null);
      for (const curve of all(".curve", plot)) curve.classList.toggle("lit", curve.dataset.run === run);
    };
    for (const entry of all(".legend [data-run]", figure)) {
      entry.addEventListener("mouseenter", () => light(entry.dataset.run));
      entry.addEventListener("mouseleave", () => light(null));
      entry.addEventListener("focusin", () => light(entry.dataset.run));
      entry.addEventListener("focusout", () => light(null));
    }
  }

  // A link to a run opens it.
  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.matches("details")) target.open = true;
  };
  addEventListener("hashchange", openTarget);
  openTarget();

  for (const box of navigator.clipboard ? all(".command") : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      button.textContent = "Copied";
    });
    box.append(button);
  }

  // On paper nothing opens: a few runs are printed whole.
  let opened = [];
  addEventListener("beforeprint", () => {
    const closed = all("details.run:not([open])");
    opened = closed.length <= 20 ? closed : [];
    opened.forEach((element) => { element.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((element) => { element.open = false; }));
})();
