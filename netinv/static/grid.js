// Images in rows with names and shares; a click or the arrow keys choose one, and what is told of it stands beside.
// See netinv.parts.ImageGrid.
const element = (kind, name) => Object.assign(document.createElement(kind), { className: name });
const place = (at, size, n) => Math.min(n - 1, Math.max(0, Math.floor(at / size * n)));
const part = (some, all) => `${100 * some / all}%`;

function meter(share, name) {
  const row = element("span", "share"), bar = element("meter", "");
  if (share === null) return row;
  Object.assign(bar, { low: 0.8, high: 0.95, optimum: 1, value: share });
  bar.setAttribute("aria-label", name);
  row.append(bar, `${Math.round(100 * share)}%`);
  return row;
}

function render({ model, el }) {
  const names = element("div", "names"), box = element("div", "box"), shares = element("div", "shares");
  const image = element("img", "images"), frame = element("div", "frame"), details = element("div", "details");
  const told = element("div", "told"), close = element("button", "close");
  const size = () => [model.get("rows"), model.get("columns")];
  let url = null;
  el.classList.add("netinv-grid");
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.dataset.lmSuppressShortcuts = "true"; // JupyterLab takes arrow keys for itself otherwise
  details.setAttribute("role", "group");
  details.setAttribute("aria-label", "the chosen image");
  Object.assign(close, { type: "button", textContent: "×" });
  close.setAttribute("aria-label", "close");
  details.append(close, told);
  box.append(image, frame, details);
  el.append(names, box, shares);

  const draw = () => {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    image.src = url;
    box.hidden = !model.get("png").byteLength;
    image.alt = model.get("alt");
    box.setAttribute("aria-label", `${model.get("alt")}. Arrow keys choose an image, Escape none.`);
  };
  const label = () => {
    const row = name => Object.assign(element("span", "name"), { textContent: name, title: name });
    names.replaceChildren(...model.get("names").map(row));
    shares.replaceChildren(...model.get("shares").map((share, at) => meter(share, model.get("names")[at])));
  };
  const mark = () => {
    const [rows, columns] = size(), at = model.get("selected"), column = at % columns, row = Math.floor(at / columns);
    frame.hidden = at < 0 || at >= rows * columns;
    details.hidden = frame.hidden || !model.get("details");
    told.innerHTML = model.get("details");
    Object.assign(frame.style, { left: part(column, columns), top: part(row, rows), width: part(1, columns),
                                 height: part(1, rows) });
    const right = 2 * column < columns, down = 2 * row < rows; // to the side where there is more room
    Object.assign(details.style, { left: right ? part(column + 1, columns) : "auto", top: down ? part(row, rows) : "auto",
                                   right: right ? "auto" : part(columns - column, columns),
                                   bottom: down ? "auto" : part(rows - row - 1, rows) });
  };
  const choose = at => {
    model.set("selected", at);
    model.save_changes();
  };

  box.onclick = event => {
    if (details.contains(event.target)) return;
    const [rows, columns] = size(), area = image.getBoundingClientRect();
    const row = place(event.clientY - area.top, area.height, rows);
    choose(row * columns + place(event.clientX - area.left, area.width, columns));
  };
  close.onclick = () => choose(-1);
  box.onkeydown = event => {
    const [rows, columns] = size(), at = model.get("selected");
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Escape: 0 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key === "Escape") choose(-1);
    else if (at < 0) choose(0);
    else if (at + move >= 0 && at + move < rows * columns) choose(at + move);
  };

  const heard = { png: draw, alt: draw, names: label, shares: label, selected: mark, rows: mark, columns: mark,
                  details: mark };
  for (const [name, act] of Object.entries(heard)) model.on(`change:${name}`, act);
  for (const act of [draw, label, mark]) act();
  return () => { if (url) URL.revokeObjectURL(url); };
}

export default { render };
