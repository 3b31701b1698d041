"use strict";
// The token view: which rollout shows, which tokens keep their colour, and a token's details.
const [ID, LOG_P, LOG_Q, REWARD, TRAINED, STUDENT, TEACHER, QUADRANT, TOP] = Array(9).keys();

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const shown = (value, unit) => value === null ? "not known" : value.toFixed(4).replace("-", "−") + (unit || "");
const percent = logProb => (100 * Math.exp(logProb)).toFixed(logProb > -7 ? 1 : 3) + "%";
const probability = logProb => logProb === null ? "not known" : `${shown(logProb)} (${percent(logProb)})`;

function details(panel, text, token, texts, names) {
  const list = element("dl");
  const add = (name, value) => list.append(element("dt", name), element("dd", value));
  add("id", token[ID]);
  add("log p student", probability(token[LOG_P]));
  add("log q teacher", probability(token[LOG_Q]));
  add("r_t", shown(token[REWARD], " nats") + (token[REWARD] < 0 ? " ▼ down" : token[REWARD] > 0 ? " ▲ up" : ""));
  add("quadrant", token[QUADRANT] === null ? "not known" : names[token[QUADRANT]]);
  add("student entropy", shown(token[STUDENT], " nats"));
  add("teacher entropy", shown(token[TEACHER], " nats"));
  if (!token[TRAINED]) add("masked", "has no part in the loss");
  const top = element("table", undefined, "top");
  for (let at = 0; at < token[TOP].length; at += 2) {
    const row = element("tr"), bar = element("td", undefined, "bar"), share = Math.exp(token[TOP][at + 1]);
    const name = element("th", texts[token[TOP][at]].replace(/ /g, "␣"));
    name.scope = "row";
    bar.append(element("i"));
    bar.firstChild.style.width = `${100 * share}%`;
    row.append(name, bar, element("td", percent(token[TOP][at + 1])));
    top.append(row);
  }
  panel.replaceChildren(element("h4", text.replace(/ /g, "␣"), "token"), list);
  if (token[TOP].length) panel.append(element("h4", "The teacher's most likely tokens"), top);
}

function prepare(rollout, panel, names) {
  const box = rollout.querySelector(":scope > .text"), spans = [...box.children];
  const { texts, tokens } = JSON.parse(rollout.querySelector("script").textContent);
  const places = new Map(spans.map((span, at) => [span, at]));
  let current = 0;
  const show = at => details(panel, spans[at].textContent, tokens[at], texts, names);
  const move = at => {
    spans[current].tabIndex = -1;
    spans[current].classList.remove("current");
    current = Math.max(0, Math.min(at, spans.length - 1));
    spans[current].tabIndex = 0;
    spans[current].classList.add("current");
    show(current);
  };
  const at = event => places.get(event.target.closest(".text > span"));
  box.addEventListener("focusin", event => { if (at(event) !== undefined) move(at(event)); });
  box.addEventListener("click", event => {
    if (at(event) === undefined) return;
    move(at(event));
    spans[current].focus();
  });
  box.addEventListener("mouseover", event => { if (at(event) !== undefined) show(at(event)); });
  box.addEventListener("mouseleave", () => { if (spans[current].classList.contains("current")) show(current); });
  box.addEventListener("keydown", event => {
    const to = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    move(to);
    spans[current].focus();
  });
  spans.forEach(span => { span.tabIndex = -1; });
  if (spans.length) spans[0].tabIndex = 0;
  return only => spans.forEach((span, at) => {
    const token = tokens[at];
    const kept = only === "all" || (only === "negative" ? token[REWARD] < 0 : token[QUADRANT] === Number(only));
    span.classList.toggle("dim", !kept);
  });
}

for (const view of document.querySelectorAll(".view")) {
  const panel = view.querySelector(".panel"), names = JSON.parse(view.dataset.names), filters = new Map();
  const pressed = (buttons, chosen) => buttons.forEach(one => one.setAttribute("aria-pressed", one === chosen));
  const choices = [...view.querySelectorAll("[data-show]")], kinds = [...view.querySelectorAll("[data-only]")];
  let only = "all", rollout = null;
  const filter = () => filters.get(rollout)(only);
  const choose = button => {
    pressed(choices, button);
    for (const one of view.querySelectorAll(".rollout")) one.hidden = one.id !== button.dataset.show;
    rollout = document.getElementById(button.dataset.show);
    if (!filters.has(rollout)) filters.set(rollout, prepare(rollout, panel, names));
    filter();
  };
  choices.forEach(button => button.addEventListener("click", () => choose(button)));
  kinds.forEach(button => button.addEventListener("click", () => {
    only = button.dataset.only;
    pressed(kinds, button);
    filter();
  }));
  pressed(kinds, kinds[0]);
  choose(choices[0]);
}
