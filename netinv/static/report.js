"use strict";
// Tables sort by a click on the head of a column; pictures enlarge.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, k) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[k].textContent.trim();
      const compare = (a, b) => key(a).localeCompare(key(b), "en", {numeric: true});
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => up ? compare(a, b) : compare(b, a)));
    });
  });
}
const dialog = document.querySelector("dialog");
const enlarge = image => {
  dialog.replaceChildren(Object.assign(new Image(), {src: image.src, alt: image.alt}));
  dialog.showModal();
};
for (const image of document.querySelectorAll("figure img")) {
  image.addEventListener("click", () => enlarge(image));
  image.addEventListener("keydown", event => { if (event.key === "Enter") enlarge(image); });
}
dialog.addEventListener("click", () => dialog.close());
