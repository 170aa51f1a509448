// Sorts tables by the column clicked, shows pictures in a viewer, and opens what is folded for the printer. The page is
// whole without it.
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

// Slides and places open in the viewer where `wsi-pipeline view` serves the report.
if (location.protocol.startsWith("http")) {
  for (const place of document.querySelectorAll("[data-view]")) {
    const link = document.createElement("a");
    link.href = `view/index.html#${place.dataset.view}`;
    link.append(...place.childNodes);
    place.append(link);
  }
}

// The viewer: one dialog for all pictures, in the order of the page. A dialog keeps the focus inside, closes on Escape.
function makeViewer(pictures) {
  const viewer = document.createElement("dialog");
  viewer.className = "viewer";
  viewer.setAttribute("aria-label", "Picture viewer");
  const large = document.createElement("img");
  const bar = document.createElement("div");
  bar.className = "bar";
  const caption = document.createElement("span");
  caption.className = "caption";
  caption.setAttribute("aria-live", "polite");
  let at = 0;
  let opener = null;

  function show(index) {
    at = (index + pictures.length) % pictures.length;
    const text = pictures[at].closest("figure")?.querySelector("figcaption")?.textContent ?? pictures[at].alt;
    large.src = pictures[at].src;
    large.alt = pictures[at].alt;
    caption.textContent = `${at + 1} of ${pictures.length}: ${text.replace(/\s+/g, " ").trim()}`;
  }

  function addButton(label, act) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", act);
    bar.append(button);
  }

  addButton("\u2190 Previous", () => show(at - 1));
  addButton("Next \u2192", () => show(at + 1));
  bar.append(caption);
  addButton("Close", () => viewer.close());
  viewer.append(large, bar);
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(step);
  });
  large.addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => opener?.focus());
  document.body.append(viewer);
  return (index, button) => {
    opener = button;
    show(index);
    viewer.showModal();
  };
}

const pictures = [...document.querySelectorAll("img.zoom")];
if (pictures.length) {
  const open = makeViewer(pictures);
  pictures.forEach((picture, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "zoom";
    button.setAttribute("aria-label", `Enlarge: ${picture.alt}`);
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => open(index, button));
  });
}

let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const list of folded) list.open = true;
});
window.addEventListener("afterprint", () => {
  for (const list of folded) list.open = false;
});
