// "Place your bets": a choice beside each claim, kept in this browser, and compared where the verdicts stand.
(() => {
  "use strict";
  const CHOICES = ["upheld", "refuted", "something else"];
  const box = (label) => document.querySelector(`.casebook-table[aria-label="${label}"]`);
  const key = `casebook.bets.${location.pathname.split("/").pop().replace(/\.html$/, "")}`;

  const load = () => {
    try { return JSON.parse(localStorage.getItem(key)) || {}; } catch { return {}; }
  };
  const save = (bets) => {
    try { localStorage.setItem(key, JSON.stringify(bets)); } catch { /* a browser that keeps nothing */ }
  };
  const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);

  const rowsOf = (table) => [...table.querySelectorAll("tbody tr")].map((row) => [row.querySelector("th").textContent.trim(), row]);
  const addHead = (table, text) => table.querySelector("thead tr").append(element("th", { scope: "col", textContent: text }));

  const choice = (claim, bets, changed) => {
    const select = element("select", { className: "bet" });
    select.setAttribute("aria-label", `Your bet on ${claim}`);
    select.append(element("option", { value: "", textContent: "no bet" }));
    for (const word of CHOICES) select.append(element("option", { value: word, textContent: word }));
    select.value = CHOICES.includes(bets[claim]) ? bets[claim] : "";
    select.addEventListener("change", () => {
      if (select.value) bets[claim] = select.value; else delete bets[claim];
      save(bets);
      changed();
    });
    return select;
  };

  // A phone lays each claim out as a block; said roles keep it a table for a screen reader.
  const ROLES = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" };
  const keepTable = (table) => {
    for (const part of [table, ...table.querySelectorAll("thead, tbody, tr, td, th")]) {
      const role = ROLES[part.localName] || (part.closest("thead") ? "columnheader" : part.localName === "th" ? "rowheader" : "");
      if (role) part.setAttribute("role", role);
    }
  };
  const stack = (table) => {
    if (!table) return;
    const names = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, place) => { if (place) cell.dataset.label = names[place]; });
    }
    table.classList.add("stacking", "trials");
    keepTable(table.querySelector("table"));
  };

  const won = (bet, verdict) => (bet === "something else" ? !["upheld", "refuted"].includes(verdict) : bet === verdict);

  const start = () => {
    const table = box("Place your bets");
    const verdicts = box("Verdicts");
    stack(box("Evidence"));
    if (!table || !verdicts) return;
    const bets = load();
    const note = element("p", { className: "bets-note", role: "status" });
    const cells = new Map();
    addHead(verdicts, "your bet");
    for (const [claim, row] of rowsOf(verdicts)) {
      const verdict = row.querySelector("td").textContent.trim().split(/\s+/).pop();
      cells.set(claim, [row.appendChild(element("td")), verdict]);
    }
    verdicts.after(note);
    const compare = () => {
      let placed = 0, right = 0;
      for (const [claim, [cell, verdict]] of cells) {
        const bet = bets[claim];
        const good = bet && won(bet, verdict);
        placed += bet ? 1 : 0;
        right += good ? 1 : 0;
        cell.textContent = bet ? `${bet}: ${good ? "won" : "lost"}` : "—";
      }
      note.textContent = placed
        ? `You placed ${placed} of ${cells.size} bets and won ${right}. Bets stay in this browser.`
        : "You placed no bets. You can still do so at the start of the page.";
    };
    addHead(table, "your bet");
    for (const [claim, row] of rowsOf(table)) {
      if (cells.has(claim)) row.append(element("td")), row.lastChild.append(choice(claim, bets, compare));
      else row.append(element("td"));
    }
    table.classList.add("bets");
    keepTable(table.querySelector("table"));
    const clear = element("button", { type: "button", className: "quiet-button", textContent: "Clear my bets" });
    clear.addEventListener("click", () => {
      for (const claim of Object.keys(bets)) delete bets[claim];
      for (const select of table.querySelectorAll("select.bet")) select.value = "";
      save(bets);
      compare();
    });
    table.after(clear);
    stack(verdicts);
    compare();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
