// The verdict board's filter: by incident, kind and verdict. Without it the board shows every row.
(() => {
  "use strict";
  const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);

  const picker = (label, values, changed) => {
    const select = element("select");
    select.append(element("option", { value: "", textContent: "all" }));
    for (const value of values) select.append(element("option", { value, textContent: value }));
    select.addEventListener("change", changed);
    const frame = element("label", { textContent: `${label} ` });
    frame.append(select);
    return [frame, select];
  };

  const start = () => {
    const tables = [...document.querySelectorAll(".casebook-table.board")];
    if (!tables.length) return;
    const sections = tables.map((table) => {
      const section = table.closest("section");
      const title = section.querySelector("h2").firstChild.textContent.trim();
      return { section, title, rows: [...table.querySelectorAll("tbody tr")] };
    });
    const rows = sections.flatMap(({ rows }) => rows);
    const distinct = (name) => [...new Set(rows.map((row) => row.dataset[name]))].sort();
    const status = element("p", { role: "status", className: "fine" });
    const show = () => {
      let count = 0;
      for (const { section, title, rows } of sections) {
        let here = 0;
        for (const row of rows) {
          row.hidden = Boolean((incident.value && incident.value !== title)
            || (kind.value && row.dataset.kind !== kind.value)
            || (verdict.value && row.dataset.verdict !== verdict.value));
          here += row.hidden ? 0 : 1;
        }
        section.hidden = here === 0;
        count += here;
      }
      status.textContent = `${count} of ${rows.length} claims shown.`;
    };
    const form = element("form", { className: "filters" });
    form.setAttribute("aria-label", "Filter the board");
    form.addEventListener("submit", (event) => event.preventDefault());
    const [incidentFrame, incident] = picker("Incident", sections.map(({ title }) => title), show);
    const [kindFrame, kind] = picker("Kind", distinct("kind"), show);
    const [verdictFrame, verdict] = picker("Verdict", distinct("verdict"), show);
    form.append(incidentFrame, kindFrame, verdictFrame, status);
    sections[0].section.before(form);
    show();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
