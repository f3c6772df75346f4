// Brings the explorer of a chapter's sweep to life: native inputs, a chart that follows them, and the same in words.
(() => {
  "use strict";
  const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);
  const digits = (number) => Number(number.toPrecision(3)).toString().replace("-", "−");

  const labelled = (text, input) => {
    const frame = element("label", { className: "explorer-input" });
    frame.append(element("span", { textContent: text }), input);
    return frame;
  };
  const selection = (text, values, names, changed) => {
    const select = element("select");
    values.forEach((value, place) => select.append(element("option", { value, textContent: names[place] })));
    select.addEventListener("change", changed);
    return [labelled(text, select), select];
  };
  const slider = (name, values, place, changed) => {
    const input = element("input", { type: "range", min: 0, max: values.length - 1, step: 1, value: place });
    const output = element("output");
    const tell = () => {
      output.textContent = values[input.value];
      input.setAttribute("aria-valuetext", `${name} ${values[input.value]}`);
    };
    input.addEventListener("input", () => { tell(); changed(); });
    tell();
    const frame = labelled(name, input);
    frame.append(output);
    return [frame, input];
  };

  const script = (address) => new Promise((resolve, reject) => {
    if (window.vegaEmbed) { resolve(); return; }
    const tag = element("script", { src: address, onload: resolve, onerror: reject });
    document.head.append(tag);
  });

  const build = (root) => {
    const content = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const names = Object.keys(content.parameters);
    const panel = element("fieldset", { className: "explorer-panel" });
    panel.append(element("legend", { textContent: "Choose claim and setting" }));
    const words = element("p", { className: "explorer-words" });
    words.setAttribute("role", "status");
    const target = element("div", { className: "explorer-chart" });
    target.setAttribute("role", "img");
    let view = null;

    const claims = Object.keys(content.claims);
    const [claimFrame, claim] = selection("Claim", claims, claims.map((id) => `${id}: ${content.claims[id].says}`), () => show());
    claim.value = content.claim;
    const [acrossFrame, across] = selection("Along the axis", names, names, () => show());
    panel.append(claimFrame);
    if (names.length > 1) panel.append(acrossFrame);
    const places = {};
    for (const name of names) {
      const [frame, input] = slider(name, content.parameters[name], content.at[name], () => show());
      places[name] = input;
      panel.append(frame);
    }

    const show = () => {
      const at = Object.fromEntries(names.map((name) => [name, Number(places[name].value)]));
      const chosen = content.rows.filter((row) => row.claim === claim.value && names.every((name) => row[`i_${name}`] === at[name]));
      const { measure, unit } = content.claims[claim.value];
      const setting = names.map((name) => `${name} ${content.parameters[name][at[name]]}`).join(", ");
      const here = content.own && names.every((name) => at[name] === content.at[name]) ? " (as on this page)" : "";
      const told = chosen.map((row) => `${digits(row.value)} [${digits(row.low)}, ${digits(row.high)}] ${unit}, ${row.verdict}`);
      words.textContent = `${claim.value} at ${setting}${here}: ${told.join("; ") || "not run"}. Measured: ${measure}.`;
      target.setAttribute("aria-label", `${claim.value} along ${across.value}. ${words.textContent}`);
      if (!view) return;
      view.signal("claim", claim.value).signal("across", across.value);
      view.signal("labels", content.parameters[across.value]).signal("marked", at[across.value]);
      for (const name of names) view.signal(`at_${name}`, at[name]);
      view.runAsync();
    };

    // A narrow screen gets a narrow chart, not a small one: letters keep their size.
    const fit = () => {
      const beside = target.querySelector("svg").width.baseVal.value - view.width();
      const room = Math.max(160, Math.min(content.spec.width, root.clientWidth - Math.min(beside, 90)));
      if (Math.abs(room - view.width()) > 1) view.width(room).runAsync();
    };
    const live = async () => {
      await script(root.dataset.script);
      const result = await window.vegaEmbed(target, content.spec, { ast: true, actions: false, renderer: "svg", tooltip: false });
      view = result.view;
      fit();
      new ResizeObserver(fit).observe(root);
      root.classList.add("live");
      show();
    };
    root.prepend(panel);
    root.append(target, words);
    show();
    const seen = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) { seen.disconnect(); live(); }
    }, { rootMargin: "200px" });
    seen.observe(root);
  };
  const start = () => document.querySelectorAll(".explorer").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();
