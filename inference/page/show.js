"use strict"; // an answer of the server -> what the visitor sees of it
const get = (id) => document.getElementById(id);
const say = (text) => { get("spoken").textContent = text; }; // for those who do not see
const BEGIN = get("hint").textContent;
let answered = null; // the answer that is shown

function show(id, visible) { get(id).hidden = !visible; }

function make(kind, text = "", name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

const tidy = (text) => text.replaceAll(" %", "\u00a0%"); // no line begins with a percent sign

function percent(share) { return `${Math.round(share)}\u00a0%`; }

/** Rows of [name, percent] as bars; the largest stands out. `colors`: of the time line. */
function barRows(rows, colors = {}) {
  const most = Math.max(...rows.map(([, share]) => share));
  return rows.map(([name, share]) => {
    const row = make("li", "", share === most ? "first" : "");
    const track = make("span", "", "track");
    const fill = make("div");
    fill.style.width = `${share}%`;
    track.append(fill);
    const label = make("span", name);
    if (colors[name]) {
      const dot = make("i", "", "dot");
      dot.style.background = colors[name];
      label.prepend(dot);
    }
    row.append(label, track, make("span", percent(share), "share"));
    return row;
  });
}

function listed(texts) { return texts.map((text) => make("li", tidy(text))); }

/** The numbers of one clip, or of one part of a long recording. */
function showPart(part, colors) {
  get("bars").replaceChildren(...barRows(part.bars, colors));
  get("bars").classList.toggle("unclear", !part.clear);
  get("words").textContent = part.words ? `“${part.words}”` : "";
  show("words", Boolean(part.words));
  get("alone").replaceChildren(...part.alone.map(({ part: name, bars }) => {
    const box = make("div");
    const list = make("ul");
    list.append(...barRows([...bars].sort((a, b) => b[1] - a[1]).slice(0, 3)));
    box.append(make("h3", `${name} alone`), list);
    return box;
  }));
}

function clockOf(seconds) {
  const rest = (seconds % 60).toFixed(1).padStart(4, "0");
  return `${Math.floor(seconds / 60)}:${rest}`;
}

function showFound(found, offer, player) {
  answered = found;
  get("head").textContent = tidy(found.head);
  const long = found.parts.length > 1;
  get("head").classList.toggle("unclear", !found.parts.some((part) => part.clear));
  get("which").textContent = `${found.title}${found.took ? `, answered in ${found.took} s` : ""}`;
  showWarning("toy", offer);
  get("remarks").replaceChildren(...listed(found.remarks));
  get("cards").replaceChildren(...(offer.cards || []).map((lines) => {
    const list = make("ul");
    list.append(...listed(lines));
    return list;
  }));
  show("card", Boolean(offer.cards));
  show("evidence", Boolean(found.picture));
  get("evidence").open = !long; // the time line of the page says more than its picture
  if (found.picture) {
    get("picture").src = `data:image/png;base64,${found.picture}`;
    get("full").href = get("picture").src;
  }
  get("caution").textContent = found.caution;
  show("line", long);
  show("now", long);
  show("found", true); // its widths are measured
  if (long) drawLine(found, player);
  else showPart(found.parts[0]);
  show("error", false);
  show("hint", false);
}

function showWarning(id, offer) {
  get(id).textContent = offer.warning || "";
  show(id, Boolean(offer.warning));
}

/** One button for each part, as long as the part; a line shows where the recording is. */
function drawLine(found, player) {
  const [first, last] = found.extent; // of the recording
  const share = (seconds) => `${(100 * (seconds - first)) / (last - first)}%`;
  const buttons = found.parts.map((part) => {
    const button = make("button", part.label ? part.label + (part.clear ? "" : "?") : "–");
    button.type = "button";
    if (!part.clear) button.classList.add("doubtful");
    button.style.left = share(part.start);
    button.style.width = share(first + part.end - part.start);
    button.style.background = found.colors[part.label] || "#ddd";
    button.title = `${clockOf(part.start)} to ${clockOf(part.end)}: ${part.head}`;
    button.setAttribute("aria-label", button.title);
    button.onclick = () => {
      select(part);
      if (!player) return;
      player.currentTime = part.start + 0.01;
      player.play().catch(() => {});
    };
    return button;
  });
  const at = make("div", "", "at");
  get("line").replaceChildren(...buttons, at);
  for (const button of buttons) { // a name that does not fit: its colour tells
    if (button.scrollWidth > button.clientWidth) button.textContent = "";
  }
  let shown = null;
  function select(part) {
    if (part === shown) return;
    shown = part;
    const time = `${clockOf(part.start)}–${clockOf(part.end)}`;
    get("part").textContent = tidy(`${time}: ${part.head}`);
    showPart(part, found.colors);
    buttons.forEach((button, place) => {
      button.setAttribute("aria-current", String(found.parts[place] === part));
    });
  }
  select(found.parts[0]);
  if (!player) return;
  player.ontimeupdate = () => {
    if (answered !== found) return;
    const now = player.currentTime;
    at.style.left = share(Math.min(Math.max(now, first), last));
    const part = found.parts.find((each) => now >= each.start && now < each.end);
    if (part) select(part);
  };
}

/** No answer and no error any more; why, in their place. */
function showNone(why = BEGIN) {
  answered = null;
  get("hint").textContent = why;
  show("hint", true);
  show("found", false);
  show("error", false);
}

function fail(message) {
  get("error").textContent = message;
  show("error", true);
  show("found", false);
  show("hint", false);
  get("error").scrollIntoView({ block: "center" });
}
