"use strict";
// Texts of models reach the page only through textContent: markup in a completion stays text.
const make = (tag, css, text) => {
  const node = document.createElement(tag);
  if (css) node.className = css;
  if (text !== undefined) node.textContent = text;
  return node;
};
const show = (v) =>
  typeof v === "number" ? (Number.isInteger(v) ? String(v) : v.toPrecision(4).replace(/\.?0+$/, "")) : String(v);

// Hover on charts: the nearest point of each series to the pointer's x.
const tip = make("div", "tip");
tip.hidden = true;
document.body.append(tip);
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const info = JSON.parse(svg.dataset.hover);
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  svg.addEventListener("pointermove", (e) => {
    const box = svg.getBoundingClientRect();
    const view = svg.viewBox.baseVal;
    const x = ((e.clientX - box.left) / box.width) * view.width;
    const near = info.series.map((s) => ({
      name: s.name,
      p: s.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)),
    }));
    const first = near.reduce((a, b) => (Math.abs(b.p[0] - x) < Math.abs(a.p[0] - x) ? b : a));
    const rows = near.filter((n) => Math.abs(n.p[0] - first.p[0]) < 12);
    tip.textContent = info.x + " " + first.p[2] + "\n" + rows.map((n) => n.name + "  " + n.p[3]).join("\n");
    for (const [k, v] of Object.entries({ x1: first.p[0], x2: first.p[0], y1: 8, y2: view.height - 22 }))
      cursor.setAttribute(k, v);
    svg.append(cursor);
    tip.hidden = false;
    const left = Math.min(e.clientX + 14, window.innerWidth - tip.offsetWidth - 6);
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = e.clientY + 14 + "px";
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.remove();
  });
}

// The sample browser: search, filter, sort, pages. Rows: {prompt, answers: [{name, text, facts}], group}.
const store = document.getElementById("samples");
if (store) {
  const { rows, colours } = JSON.parse(store.textContent);
  const root = document.getElementById("browser");
  const search = root.querySelector("input");
  const [group, sort] = root.querySelectorAll("select");
  const [back, next] = root.querySelectorAll("button");
  const count = root.querySelector("output");
  const list = root.querySelector(".list");
  const size = 10;
  let page = 0;

  const order = {
    given: null,
    high: (a, b) => b.value - a.value,
    low: (a, b) => a.value - b.value,
  };
  const card = (row) => {
    const node = make("article", "sample");
    node.append(make("div", "prompt text", row.prompt));
    const answers = make("div", "answers");
    for (const a of row.answers) {
      const one = make("div", row.answers.length > 1 ? "answer" : "");
      if (row.answers.length > 1) {
        one.style.borderTopColor = "var(--c" + (colours[a.name] ?? 7) + ")";
        one.append(make("h3", "", a.name));
      }
      one.append(make("div", "text", a.text));
      const meta = make("div", "meta");
      for (const [k, v] of Object.entries(a.facts)) meta.append(make("span", "", k + " " + show(v)));
      one.append(meta);
      answers.append(one);
    }
    node.append(answers);
    return node;
  };
  const draw = () => {
    const wanted = search.value.trim().toLowerCase();
    let found = rows.filter(
      (r) =>
        (!group.value || r.group === group.value) &&
        (!wanted || (r.prompt + "\n" + r.answers.map((a) => a.text).join("\n")).toLowerCase().includes(wanted)),
    );
    if (order[sort.value]) found = [...found].sort(order[sort.value]);
    const pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...found.slice(page * size, page * size + size).map(card));
    count.textContent = found.length + " of " + rows.length + " · page " + (page + 1) + "/" + pages;
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
  };
  const restart = () => {
    page = 0;
    draw();
  };
  for (const name of new Set(rows.map((r) => r.group))) {
    if (name === "") continue;
    const option = make("option", "", name);
    option.value = name;
    group.append(option);
  }
  // The newest samples first: that is what a reader of a finished run wants to see.
  group.value = root.dataset.group || "";
  search.addEventListener("input", restart);
  group.addEventListener("change", restart);
  sort.addEventListener("change", restart);
  back.addEventListener("click", () => (page--, draw()));
  next.addEventListener("click", () => (page++, draw()));
  draw();
}
