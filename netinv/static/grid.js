// Images in rows with names; a click or the arrow keys choose one of them. See netinv.parts.ImageGrid.
const element = (kind, name) => Object.assign(document.createElement(kind), { className: name });
const place = (at, size, n) => Math.min(n - 1, Math.max(0, Math.floor(at / size * n)));

function render({ model, el }) {
  const names = element("div", "names"), box = element("div", "box");
  const image = element("img", "images"), frame = element("div", "frame");
  const size = () => [model.get("rows"), model.get("columns")];
  let url = null;
  el.classList.add("netinv-grid");
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.append(image, frame);
  el.append(names, box);

  const draw = () => {
    if (url) URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    image.src = url;
    image.alt = model.get("alt");
    box.setAttribute("aria-label", `${model.get("alt")}. Arrow keys choose an image.`);
  };
  const label = () => {
    const row = name => Object.assign(element("span", "name"), { textContent: name, title: name });
    names.replaceChildren(...model.get("names").map(row));
  };
  const mark = () => {
    const [rows, columns] = size(), at = model.get("selected"), share = (part, n) => `${100 * part / n}%`;
    frame.hidden = at < 0 || at >= rows * columns;
    Object.assign(frame.style, { left: share(at % columns, columns), top: share(Math.floor(at / columns), rows),
                                 width: share(1, columns), height: share(1, rows) });
  };
  const choose = at => {
    model.set("selected", at);
    model.save_changes();
  };

  box.onclick = event => {
    const [rows, columns] = size(), area = image.getBoundingClientRect();
    const row = place(event.clientY - area.top, area.height, rows);
    choose(row * columns + place(event.clientX - area.left, area.width, columns));
  };
  box.onkeydown = event => {
    const [rows, columns] = size(), at = model.get("selected");
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (at < 0) choose(0);
    else if (at + move >= 0 && at + move < rows * columns) choose(at + move);
  };

  const heard = { png: draw, alt: draw, names: label, selected: mark, rows: mark, columns: mark };
  for (const [name, act] of Object.entries(heard)) model.on(`change:${name}`, act);
  for (const act of [draw, label, mark]) act();
  return () => { if (url) URL.revokeObjectURL(url); };
}

export default { render };
