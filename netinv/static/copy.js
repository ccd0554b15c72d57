// A button that copies a text, and the text itself. See netinv.parts.CopyText.
function render({ model, el }) {
  const button = document.createElement("button"), shown = document.createElement("textarea");
  el.classList.add("netinv-copy");
  button.className = "jupyter-button";
  button.textContent = model.get("label");
  shown.readOnly = true;
  shown.rows = 6;
  shown.setAttribute("aria-label", "the text to copy");

  const fill = () => { if (shown.value !== model.get("text")) shown.value = model.get("text"); };
  button.onclick = async () => {
    shown.select();
    try { await navigator.clipboard.writeText(shown.value); } catch { document.execCommand("copy"); }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = model.get("label"); }, 1500);
  };
  model.on("change:text", fill);
  fill();
  el.append(button, shown);
}

export default { render };
