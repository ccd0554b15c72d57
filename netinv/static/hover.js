// D holds the dots: xy in 0..1000, group (colour) and kind (form) of each, texts beside the image, and one picture of
// all images, whose cells are [columns, width, height].
const $ = selector => document.querySelector(selector);
const NS = "http://www.w3.org/2000/svg";
const svg = $("svg");
const hidden = new Set();  // groups that are not shown
const shown = i => !hidden.has(D.group[i]);
$("h1").textContent = D.title;

// Drawing.
const forms = [
  s => `M${-s},0a${s},${s} 0 1,0 ${2 * s},0a${s},${s} 0 1,0 ${-2 * s},0`,
  s => `M0,${-1.3 * s}L${1.2 * s},${s}L${-1.2 * s},${s}Z`,
  s => `M${-s},${-s}h${2 * s}v${2 * s}h${-2 * s}Z`,
  s => `M0,${-1.4 * s}L${1.4 * s},0L0,${1.4 * s}L${-1.4 * s},0Z`,
];
const dots = D.xy.map((_, i) => {
  const dot = document.createElementNS(NS, "path");
  dot.setAttribute("class", "dot");
  dot.setAttribute("fill", D.palette[D.group[i]]);
  dot.setAttribute("d", forms[D.kind[i]](4.5));
  svg.append(dot);
  return dot;
});
let at = [];  // where each dot is, in pixels

function place() {
  const { width, height } = svg.getBoundingClientRect();
  const pad = 12;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  at = D.xy.map(([x, y]) => [pad + x / 1000 * (width - 2 * pad), height - pad - y / 1000 * (height - 2 * pad)]);
  dots.forEach((dot, i) => dot.setAttribute("transform", `translate(${at[i]})`));
}

// One image and what is known of it.
let current = -1;

function cut(i) {
  const [columns, w, h] = D.cell;
  const box = $("#image");
  const scale = box.clientWidth / Math.max(w, h);
  box.style.backgroundImage = `url(${D.atlas})`;
  box.style.backgroundSize = `${columns * w * scale}px auto`;
  box.style.backgroundPosition = `${-(i % columns) * w * scale}px ${-Math.floor(i / columns) * h * scale}px`;
  box.style.clipPath = `inset(0 ${box.clientWidth - w * scale}px ${box.clientHeight - h * scale}px 0)`;
  box.setAttribute("aria-label", "image " + D.texts[i].join(", "));
}

function row(texts) {
  const line = document.createElement("tr");
  for (const text of texts) line.append(Object.assign(document.createElement("td"), { textContent: text }));
  return line;
}

function show(i) {
  if (i < 0 || i === current) return;
  if (current >= 0) dots[current].classList.remove("on");
  current = i;
  dots[i].classList.add("on");
  svg.append(dots[i]);
  cut(i);
  $("table").replaceChildren(...D.columns.map((name, c) => row([name, D.texts[i][c]])));
}

// Pointing.
function nearest(x, y, from = -1, ahead = () => true, limit = Infinity) {
  let best = -1;
  let least = limit;
  at.forEach(([u, v], i) => {
    if (i === from || !shown(i) || !ahead(u - x, v - y)) return;
    const far = (u - x) ** 2 + (v - y) ** 2;
    if (far < least) [best, least] = [i, far];
  });
  return best;
}

function under(event, reach) {
  const box = svg.getBoundingClientRect();
  return nearest(event.clientX - box.left, event.clientY - box.top, -1, undefined, reach ** 2);
}

svg.addEventListener("pointermove", event => show(under(event, 20)));
svg.addEventListener("pointerdown", event => show(under(event, 40)));

const ahead = {
  ArrowLeft: (u, v) => u < -Math.abs(v),
  ArrowRight: (u, v) => u > Math.abs(v),
  ArrowUp: (u, v) => v < -Math.abs(u),
  ArrowDown: (u, v) => v > Math.abs(u),
};
svg.addEventListener("keydown", event => {
  if (!ahead[event.key]) return;
  event.preventDefault();
  show(current < 0 ? nearest(0, 0) : nearest(...at[current], current, ahead[event.key]));
});

// The legend: a button hides or shows a group.
D.groups.forEach((name, g) => {
  const button = document.createElement("button");
  const mark = document.createElement("i");
  mark.style.background = D.palette[g];
  button.append(mark, name);
  button.title = "hide or show";
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    hidden.has(g) ? hidden.delete(g) : hidden.add(g);
    button.setAttribute("aria-pressed", String(!hidden.has(g)));
    dots.forEach((dot, i) => dot.style.display = shown(i) ? "" : "none");
  };
  $("#legend").append(button);
});
if (D.kinds.length > 1) D.kinds.forEach((name, k) => {
  const line = document.createElement("div");
  line.innerHTML = `<svg viewBox="-7 -7 14 14"><path fill="currentColor" d="${forms[k](4.5)}"/></svg>`;
  line.append(name);
  $("#legend").append(line);
});

addEventListener("resize", place);
place();
