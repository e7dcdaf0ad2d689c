// Keys stand for buttons; none does anything while somebody writes.
(() => {
  const keys = {
    "1": "vote-left", ArrowLeft: "vote-left", "2": "vote-right", ArrowRight: "vote-right",
    "3": "vote-tie", "4": "vote-both_bad",
    s: "vote-skip", S: "vote-skip", "+": "vote-up", "-": "vote-down",
  };
  let last = 0;
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target;
    if (target.closest && target.closest("input, textarea, select, [contenteditable=true]")) return;
    // A long answer that has the focus is scrolled by the arrows.
    if (event.key.startsWith("Arrow") && target.scrollHeight > target.clientHeight + 1 &&
        target.classList && target.classList.contains("said")) return;
    const button = document.getElementById(keys[event.key] || "");
    if (!button || button.disabled || button.offsetParent === null) return;
    event.preventDefault();
    // Nobody has read the next pair so soon: a key that was pressed twice is one vote.
    if (performance.now() - last < 400) return;
    last = performance.now();
    button.click();
  });
})();
