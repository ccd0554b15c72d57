// A slider through given steps, with a name, that says its value. See netinv.parts.Slider.
const element = (kind, name) => Object.assign(document.createElement(kind), { className: name });

function render({ model, el }) {
  const label = element("label", "name"), input = element("input", "track"), shown = element("output", "value");
  el.classList.add("netinv-slider");
  input.type = "range";
  input.id = label.htmlFor = `netinv-slider-${Math.random()}`; // every slider has this module for itself
  input.dataset.lmSuppressShortcuts = "true"; // JupyterLab takes arrow keys for itself otherwise
  input.onkeydown = event => event.stopPropagation();
  el.append(label, input, shown);

  const draw = () => {
    const [steps, value, name] = ["steps", "value", "description"].map(trait => model.get(trait));
    label.textContent = name;
    el.title = model.get("tooltip");
    input.max = steps.length - 1;
    const distance = at => Math.abs(steps[at] - value);
    input.value = [...steps.keys()].reduce((best, at) => distance(at) < distance(best) ? at : best, 0);
    shown.textContent = model.get("labels")[input.value];
    input.setAttribute("aria-valuetext", `${name} = ${shown.textContent}`);
  };
  input.oninput = () => {
    model.set("value", model.get("steps")[Number(input.value)]);
    model.save_changes();
  };
  for (const trait of ["steps", "labels", "value", "description", "tooltip"]) model.on(`change:${trait}`, draw);
  draw();
}

export default { render };
