// Says every three seconds that somebody has this on a screen, and good-bye. See netinv.parts.Presence.
function render({ model, el }) {
  const id = `${Date.now()}-${Math.random()}`, say = how => model.send({ id, how });
  const beat = () => say(document.hidden ? "hidden" : "seen"), leave = () => say("gone");
  const timer = setInterval(beat, 3000);
  el.style.display = "none";
  window.addEventListener("pagehide", leave);
  beat();
  if (model.get("bring")) {
    setTimeout(() => el.parentElement?.scrollIntoView({ block: "start" }), 500); // when all is in its place
    model.set("bring", false);
    model.save_changes();
  }
  return () => {
    clearInterval(timer);
    window.removeEventListener("pagehide", leave);
    leave();
  };
}

export default { render };
