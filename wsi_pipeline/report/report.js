// Sorts tables by the column clicked, enlarges pictures, and opens lists for the printer. The page is whole without it.
"use strict";

function sortKey(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = Number(text);
  return text !== "" && !Number.isNaN(number) ? number : text;
}

function compareKeys(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "") || 0;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortBy(table, header) {
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, key: sortKey(row, column) }));
  rows.sort((a, b) => {
    const blank = (a.key === "") - (b.key === "");
    return blank || (down ? compareKeys(b.key, a.key) : compareKeys(a.key, b.key));
  });
  body.append(...rows.map(({ row }) => row));
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    if (header.classList.contains("fixed")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortBy(table, header));
  }
}

for (const picture of document.querySelectorAll("img.slide")) {
  picture.addEventListener("click", () => picture.classList.toggle("large"));
}

window.addEventListener("beforeprint", () => {
  for (const list of document.querySelectorAll("details.paper")) list.open = true;
});
