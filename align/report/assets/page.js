// What the rest of the page does: tabs, differences in opened pairs, values under the pointer.

// Tabs: without this script all panels are shown, one below the other.
document.querySelectorAll(".tabs").forEach((root, number) => {
  const panels = [...root.children];
  if (panels.length < 2) return;
  root.classList.add("live");
  const row = make("div", "tablist");
  row.setAttribute("role", "tablist");
  const buttons = panels.map((panel, i) => {
    const button = make("button", "", panel.dataset.tab);
    button.setAttribute("role", "tab");
    button.id = "tab-" + number + "-" + i;
    panel.id = "panel-" + number + "-" + i;
    button.setAttribute("aria-controls", panel.id);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", button.id);
    button.addEventListener("click", () => open(i));
    return button;
  });
  const open = (chosen) =>
    panels.forEach((panel, i) => {
      panel.hidden = i !== chosen;
      buttons[i].setAttribute("aria-selected", String(i === chosen));
      buttons[i].tabIndex = i === chosen ? 0 : -1;
    });
  row.addEventListener("keydown", (e) => {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    const i = (to + buttons.length) % buttons.length;
    open(i);
    buttons[i].focus();
  });
  row.append(...buttons);
  root.prepend(row);
  open(0);
});

// A pair of answers shows its differences when it is opened.
for (const pair of document.querySelectorAll("details.pair"))
  pair.addEventListener(
    "toggle",
    () => {
      const [a, b] = pair.querySelectorAll(".answer .text");
      const parts = diff(a.textContent, b.textContent);
      showSide(a, parts, "-");
      showSide(b, parts, "+");
    },
    { once: true },
  );

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
