// The sample browser: search, filters, order, pages, differences, links, keys. Texts of models reach
// the page only through textContent: markup in a completion stays text.
const make = (tag, css, text) => {
  const node = document.createElement(tag);
  if (css) node.className = css;
  if (text !== undefined) node.textContent = text;
  return node;
};
const show = (v) =>
  typeof v === "number" ? (Number.isInteger(v) ? String(v) : String(Number(v.toPrecision(4)))) : String(v);
const signed = (v) => (v > 0 ? "+" : "") + show(v);

const browse = ({ rows, colours, base, start, labels }) => {
  const root = document.getElementById("browser");
  const list = root.querySelector(".list");
  const tools = root.querySelector(".tools");
  const size = 10;
  let page = 0;
  let found = [];

  // Controls; what there is nothing to choose between is left out.
  const values = (get) => [...new Set(rows.flatMap(get))].filter((v) => v !== "" && v !== undefined && v !== null);
  const select = (label, options) => {
    const node = make("select");
    node.setAttribute("aria-label", label);
    for (const [value, text] of options) {
      const option = make("option", "", text);
      option.value = value;
      node.append(option);
    }
    if (options.length > 2) tools.append(node);
    node.addEventListener("change", () => redraw());
    return node;
  };
  const choice = (label, names) => select(label, [["", label + ": all"], ...names.map((n) => [n, n])]);
  const bound = (label) => {
    const node = make("input", "bound");
    node.type = "number";
    node.step = "any";
    node.placeholder = label;
    node.setAttribute("aria-label", label);
    node.addEventListener("input", () => redraw());
    return node;
  };

  const search = make("input");
  search.type = "search";
  search.placeholder = "Search prompts and answers";
  search.setAttribute("aria-label", "search samples");
  search.addEventListener("input", () => redraw());
  tools.append(search);
  const group = choice(labels.group, values((r) => [r.group]));
  const tags = values((r) => Object.keys(r.tags || {})).map((tag) => [
    tag,
    choice(tag, values((r) => [(r.tags || {})[tag]]).sort()),
  ]);
  const others = (row) => row.answers.filter((a) => a.name !== base);
  const run = choice("run", base ? values((r) => others(r).map((a) => a.name)) : []);
  const ended = select(
    "ended",
    values((r) => r.answers.map((a) => a.finished)).length > 1
      ? [["", "ended: any"], ["true", "ended by itself"], ["false", "cut off"]]
      : [["", ""]],
  );
  const sign = select(
    "gain",
    base ? [["", "gain: any"], ["1", "gained"], ["-1", "lost"], ["0", "equal"]] : [["", ""]],
  );
  const scored = values((r) => r.answers.map((a) => a.score)).length > 1;
  const low = bound("score from");
  const high = bound("score to");
  if (scored) tools.append(low, high);
  const order = select("order", [
    ["given", "as written"],
    ["high", labels.value + ": high first"],
    ["low", labels.value + ": low first"],
  ]);
  const marked = make("input");
  marked.type = "checkbox";
  marked.checked = true;
  marked.addEventListener("change", () => redraw(true));
  if (base) {
    const label = make("label", "mark");
    label.append(marked, make("span", "", "mark differences from " + base));
    tools.append(label);
  }
  const back = make("button", "", "Previous");
  const next = make("button", "", "Next");
  back.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  const count = make("output", "muted small");
  tools.append(back, next, count);
  root.querySelector(".keys").textContent =
    "Keys: / search · j, k or ↓, ↑ next and previous sample · ←, → pages" + (base ? " · d differences" : "");

  // What is shown of a row, and whether it is.
  const shown = (row) => (run.value ? row.answers.filter((a) => a.name === base || a.name === run.value) : row.answers);
  const judged = (row) => {
    const own = shown(row).filter((a) => a.name !== base);
    return own.length ? own : shown(row);
  };
  const fits = (a) =>
    (!ended.value || String(a.finished) === ended.value) &&
    (!sign.value || (a.gain !== undefined && Math.sign(a.gain) === Number(sign.value))) &&
    (low.value === "" || a.score >= Number(low.value)) &&
    (high.value === "" || a.score <= Number(high.value));
  const kept = (row, wanted) =>
    (!group.value || row.group === group.value) &&
    tags.every(([tag, node]) => !node.value || (row.tags || {})[tag] === node.value) &&
    judged(row).some(fits) &&
    (!wanted || [row.prompt, ...shown(row).map((a) => a.text)].join("\n").toLowerCase().includes(wanted));
  const worth = (row, best) => {
    const gains = judged(row).map((a) => a.gain).filter((g) => g !== undefined);
    return base && gains.length ? best(...gains) : row.value;
  };

  const answer = (a, single) => {
    const node = make("div", single ? "" : "answer");
    if (!single) {
      node.style.borderTopColor = "var(--c" + (colours[a.name] ?? 7) + ")";
      const head = make("h3", "", a.name);
      if (a.gain !== undefined && a.name !== base)
        head.append(make("span", "gain " + (a.gain > 0 ? "up" : a.gain < 0 ? "down" : ""), signed(a.gain)));
      node.append(head);
    }
    node.append(make("div", "text", a.text));
    const meta = make("div", "meta");
    for (const [k, v] of Object.entries(a.facts)) meta.append(make("span", "", k + " " + show(v)));
    if (a.finished === false) meta.append(make("span", "cut", "cut off"));
    node.append(meta);
    return node;
  };
  const card = (row) => {
    const node = make("article", "sample");
    node.tabIndex = -1;
    const top = make("div", "top");
    top.append(make("div", "prompt text", row.prompt));
    if (row.id !== undefined) {
      node.id = "s-" + row.id;
      const link = make("a", "link", "#");
      link.href = "#s-" + row.id;
      link.title = "link to this sample";
      link.setAttribute("aria-label", "link to this sample");
      top.append(link);
    }
    node.append(top);
    const answers = make("div", "answers");
    const all = shown(row);
    const nodes = all.map((a) => answer(a, all.length === 1));
    answers.append(...nodes);
    const reference = all.findIndex((a) => a.name === base);
    if (base && marked.checked && reference >= 0)
      all.forEach((a, i) => {
        if (i === reference) return;
        const parts = diff(all[reference].text, a.text);
        showSide(nodes[i].querySelector(".text"), parts, "+");
        if (all.length === 2) showSide(nodes[reference].querySelector(".text"), parts, "-");
      });
    node.append(answers);
    return node;
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...found.slice(page * size, page * size + size).map(card));
    if (list.firstChild) list.firstChild.tabIndex = 0;
    else list.append(make("p", "muted", "No sample fits."));
    count.textContent = found.length + " of " + rows.length + " · page " + (page + 1) + "/" + pages;
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
  };
  const redraw = (stay = false) => {
    const wanted = search.value.trim().toLowerCase();
    found = rows.filter((r) => kept(r, wanted));
    if (order.value === "high") found.sort((a, b) => worth(b, Math.max) - worth(a, Math.max));
    if (order.value === "low") found.sort((a, b) => worth(a, Math.min) - worth(b, Math.min));
    if (!stay) page = 0;
    draw();
  };
  const turn = (by, focus) => {
    page += by;
    draw();
    if (focus && list.firstChild.focus) focusOn(by > 0 ? list.firstChild : list.lastChild);
  };

  // Keys: one sample at a time can be reached with Tab, the others with j, k and the arrows.
  const focusOn = (node) => {
    for (const one of list.children) one.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  };
  const step = (by) => {
    const at = list.contains(document.activeElement) ? document.activeElement.closest(".sample") : null;
    const to = at ? (by > 0 ? at.nextElementSibling : at.previousElementSibling) : list.firstChild;
    if (to) focusOn(to);
    else if (by > 0 ? !next.disabled : !back.disabled) turn(by, true);
  };
  document.addEventListener("keydown", (e) => {
    const target = e.target;
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (target.matches("input, select, textarea")) {
      if (e.key !== "Escape" || target !== search) return;
      e.preventDefault(); // which would clear the search
      list.querySelector(".sample")?.focus();
      return;
    }
    const inside = list.contains(target);
    const act = {
      "/": () => search.select(),
      j: () => step(1),
      k: () => step(-1),
      d: () => base && marked.click(),
      ArrowDown: inside ? () => step(1) : null,
      ArrowUp: inside ? () => step(-1) : null,
      ArrowRight: inside ? () => next.disabled || turn(1, true) : null,
      ArrowLeft: inside ? () => back.disabled || turn(-1, true) : null,
    }[e.key];
    if (!act) return;
    e.preventDefault();
    act();
  });

  // A link to a sample opens its page, whatever was filtered.
  const follow = () => {
    if (!location.hash.startsWith("#s-")) return;
    const id = location.hash.slice(3);
    const at = () => found.findIndex((r) => String(r.id) === id);
    if (at() < 0) {
      for (const node of tools.querySelectorAll("select, input:not([type=checkbox])")) if (node !== order) node.value = "";
      redraw();
    }
    if (at() < 0) return;
    page = Math.floor(at() / size);
    draw();
    const node = document.getElementById("s-" + id);
    node.scrollIntoView({ block: "start" });
    focusOn(node);
  };
  window.addEventListener("hashchange", follow);

  group.value = start;
  redraw();
  follow();
};

const store = document.getElementById("samples");
if (store) browse(JSON.parse(store.textContent));
