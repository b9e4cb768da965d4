"use strict";
// Headings sort their table: best guess first, then the other way, then as it was.
for (const table of document.querySelectorAll("table.board")) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  // The place of each heading among the cells of a row: the first row's method, then the second row's, then what
  // of the first row spans both.
  const top = Array.from(table.tHead.rows[0].cells).filter((cell) => cell.dataset.key);
  const heads = [top[0], ...Array.from(table.tHead.rows[1].cells), ...top.slice(1)];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...Array.from(head.childNodes));
    head.append(button);
    button.addEventListener("click", () => {
      const text = head.dataset.key === "text";
      const first = head.dataset.key === "score" ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const next = !now ? first : now === first ? (first === "ascending" ? "descending" : "ascending") : null;
      for (const other of heads) other.removeAttribute("aria-sort");
      let rows = original;
      if (next) {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const value = (row) => {
          const cell = row.cells[place];
          if (text) return cell.textContent.toLowerCase();
          return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
        };
        rows = original.slice().sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last
          return x < y ? -sign : x > y ? sign : 0;
        });
      }
      body.append(...rows);
    });
  });
}
// A method of the legend lights its markers up.
for (const keys of document.querySelectorAll("ul.keys")) {
  const panels = keys.nextElementSibling;
  const light = (look) => {
    panels.classList.toggle("dim", Boolean(look));
    for (const mark of panels.querySelectorAll(".mark")) mark.classList.toggle("lit", mark.classList.contains(look));
  };
  for (const key of keys.querySelectorAll("[data-look]")) {
    for (const start of ["mouseenter", "focus"]) key.addEventListener(start, () => light(key.dataset.look));
    for (const stop of ["mouseleave", "blur"]) key.addEventListener(stop, () => light(""));
  }
}
