"use strict";
// Word-level differences of two texts. A Han character, a word, a run of white space, or one other
// symbol is a unit, so that Chinese is compared by character.
const unitsOf = (text) => text.match(/\p{Script=Han}|[\p{L}\p{N}_]+|\s+|[^\s]/gu) || [];
const MAX_CELLS = 4e6; // of the table below: two texts of 2,000 units

// Longest common subsequence: [[sign, text]], sign "=" in both, "-" only in a, "+" only in b.
const diff = (textA, textB) => {
  const a = unitsOf(textA);
  const b = unitsOf(textB);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const n = a.length - start - end;
  const m = b.length - start - end;
  const parts = a.slice(0, start).map((u) => ["=", u]);
  if (n * m > MAX_CELLS) {
    parts.push(["-", a.slice(start, start + n).join("")], ["+", b.slice(start, start + m).join("")]);
  } else {
    // best[i][j]: length of what a from i and b from j have in common.
    const width = m + 1;
    const best = new Uint16Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--)
      for (let j = m - 1; j >= 0; j--)
        best[i * width + j] =
          a[start + i] === b[start + j]
            ? best[(i + 1) * width + j + 1] + 1
            : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    let i = 0;
    let j = 0;
    while (i < n || j < m) {
      if (i < n && j < m && a[start + i] === b[start + j]) {
        parts.push(["=", a[start + i]]);
        i++;
        j++;
      } else if (j >= m || (i < n && best[(i + 1) * width + j] >= best[i * width + j + 1])) {
        parts.push(["-", a[start + i++]]);
      } else {
        parts.push(["+", b[start + j++]]);
      }
    }
  }
  parts.push(...a.slice(a.length - end).map((u) => ["=", u]));
  // White space between two changes is part of the change: the marks would fall apart into words.
  return parts.flatMap(([sign, text], i) => {
    const inside = sign === "=" && !text.trim() && parts[i - 1] && parts[i + 1];
    return inside && parts[i - 1][0] !== "=" && parts[i + 1][0] !== "=" ? [["-", text], ["+", text]] : [[sign, text]];
  });
};

// Write one side of a difference into an element: own is "-" (only in a) or "+" (only in b).
const showSide = (node, parts, own) => {
  node.replaceChildren();
  let last = null;
  for (const [sign, text] of parts) {
    if (sign !== "=" && sign !== own) continue;
    if (last && last.sign === sign) {
      last.node.textContent += text;
      continue;
    }
    const part = document.createElement(sign === "=" ? "span" : sign === "-" ? "del" : "ins");
    part.textContent = text;
    node.append(part);
    last = { sign, node: part };
  }
};
