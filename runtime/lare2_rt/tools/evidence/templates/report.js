
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const body = byId("rows"), form = byId("controls"), count = byId("count");
  const [name, verdict, lowest, highest, order] = ["name", "verdict", "lowest", "highest", "order"].map(byId);
  const headings = [...document.querySelectorAll("th[data-key]")];
  const number = (text) => (text === undefined ? null : Number(text));
  const rows = [...body.rows].map((row, index) => ({
    row, index,
    name: row.dataset.name.toLowerCase(),
    verdict: row.dataset.verdict,
    probability: number(row.dataset.probability),
    lare: number(row.dataset.lare),
  }));
  let sorted = "index,1";

  const compare = (key, sign) => (a, b) => {
    const x = a[key], y = b[key];
    if (x !== y) {
      if (x === null) return 1;
      if (y === null) return -1;
      return (x < y ? -1 : 1) * sign;
    }
    return a.index - b.index;
  };

  const sort = (wanted) => {
    const [key, direction] = wanted.split(",");
    const sign = Number(direction);
    sorted = wanted;
    order.value = wanted;
    rows.sort(compare(key, sign));
    const page = document.createDocumentFragment();
    for (const item of rows) page.append(item.row);
    body.append(page);
    for (const heading of headings) {
      if (heading.dataset.key === key) heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    }
  };

  const bound = (input, missing) => (input.value === "" || Number.isNaN(Number(input.value)) ? missing : Number(input.value));

  const filter = () => {
    const part = name.value.toLowerCase(), wanted = verdict.value;
    const low = bound(lowest, -Infinity), high = bound(highest, Infinity);
    const all = low === -Infinity && high === Infinity;
    let shown = 0;
    for (const item of rows) {
      const inside = all || (item.probability !== null && item.probability >= low && item.probability <= high);
      const visible = inside && (wanted === "" || item.verdict === wanted) && item.name.includes(part);
      item.row.hidden = !visible;
      if (visible) shown += 1;
    }
    count.textContent = `${shown} of ${rows.length} rows shown`;
  };

  for (const heading of headings) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => {
      const key = heading.dataset.key;
      sort(sorted === `${key},1` ? `${key},-1` : `${key},1`);
    });
    heading.append(button);
  }
  let waiting = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    if (event.target === order) sort(order.value);
    else waiting = setTimeout(filter, 120);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { sort("index,1"); filter(); }));
  form.hidden = false;
})();
