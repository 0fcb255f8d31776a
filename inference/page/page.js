"use strict"; // what a visitor gives, and the way of his question to the server and back
let about = null;
let clip = null; // a File, a Blob, or null
let example = "";
let named = ""; // what a visitor calls it
let turn = { end() {} }; // what is going on: a question, a recording, the live mode, or nothing
let wordsOf = null; // the sentence of the last answer

const offerOf = () => about.models[get("model").selectedIndex];
const players = () => [get("video"), get("audio")];
const player = () => players().find((each) => !each.hidden) || null;
const close = (stream) => stream.getTracks().forEach((track) => track.stop());

/** Whatever is begun ends what was going on. Who waits for something asks afterwards whether it is
 * still his turn. */
function newTurn(its = {}) {
  const before = turn;
  turn = { end() {}, ...its };
  before.end();
  return turn;
}

/** Nothing is chosen any more: no old clip is answered under a new name, no old answer is shown. */
function forget() {
  clip = null;
  example = named = "";
  showNone();
  get("clip").value = "";
  get("chosen").textContent = "";
  show("remove", false);
  for (const each of players()) {
    if (each.src.startsWith("blob:")) URL.revokeObjectURL(each.src);
    each.pause();
    each.srcObject = null;
    each.ontimeupdate = null;
    each.removeAttribute("src");
    each.load();
    each.hidden = true;
    get("preview").append(each);
  }
  if (get("still").src.startsWith("blob:")) URL.revokeObjectURL(get("still").src);
  get("still").removeAttribute("src");
  show("still", false);
}

/** `kind`: video, audio or still, the element that shows it; `thumbnail`: of an example. */
function choose(file, url, name, kind, fromExample = "", thumbnail = "") {
  newTurn();
  forget();
  clip = file;
  example = fromExample;
  named = get("chosen").textContent = name;
  show("remove", true);
  const shown = get(kind);
  shown.muted = false; // a recording was silent while it was made
  shown.src = url;
  shown.hidden = false;
  const unseen = (what) => {
    shown.hidden = true;
    get("chosen").textContent = `${name} (this browser cannot ${what}; it can be answered all the same)`;
    if (thumbnail) get("still").src = thumbnail;
    show("still", Boolean(thumbnail));
  };
  const here = () => shown.getAttribute("src") === url && !shown.hidden;
  shown.onerror = () => { if (here()) unseen(kind === "still" ? "show it" : "play it"); };
  get("video").onloadedmetadata = () => { // of a format that it does not know it plays the sound alone
    if (!here() || kind !== "video" || shown.videoWidth) return;
    unseen("show a picture of it");
    get("audio").src = url;
    show("audio", true);
  };
  show("old_words", Boolean(get("text").value) && get("text").value === wordsOf);
}

function take(file, name = file.name) {
  if (file.size > about.megabytes * 1e6) {
    newTurn();
    forget();
    const size = (file.size / 1e6).toFixed(1);
    fail(`${name} has ${size} MB; the limit is ${about.megabytes} MB. No clip is chosen now.`);
    return;
  }
  const [kind] = file.type.split("/");
  choose(file, URL.createObjectURL(file), name, { audio: "audio", image: "still" }[kind] || "video");
}

function remove() {
  newTurn();
  forget();
  show("old_words", false);
  get("clip").focus();
}

/** A stream for this turn; null where there is none, or where it comes when another has begun. */
async function openDevice(wanted, mine) {
  let why = "Browsers give camera and microphone only to pages of this machine, or over https.";
  try {
    if (navigator.mediaDevices) {
      const stream = await navigator.mediaDevices.getUserMedia(wanted);
      if (turn === mine) return stream;
      close(stream);
    }
  } catch (error) {
    const what = wanted.video ? "camera and microphone" : "microphone";
    const allow = error.name === "NotAllowedError" ? ": allow it in the browser's settings" : "";
    why = `The browser gives no ${what}: ${error.message}${allow}`;
  }
  if (turn === mine) {
    newTurn();
    fail(why);
  }
  return null;
}

/** What the camera sees, without its sound: else the loudspeaker would speak into it. */
function mirror(stream) {
  const video = get("video");
  video.srcObject = stream;
  video.muted = true;
  video.hidden = false;
  video.play().catch(() => {});
}

async function record(button, wanted, name) {
  if (turn.button === button) {
    if (turn.finish) turn.finish();
    return;
  }
  const mine = newTurn({ button });
  const stream = await openDevice(wanted, mine);
  if (!stream) return;
  forget();
  const label = button.textContent;
  const pieces = [];
  const most = about.seconds - 1;
  const began = Date.now();
  let ended = "";
  const recorder = new MediaRecorder(stream);
  const clock = setInterval(() => {
    const seconds = Math.floor((Date.now() - began) / 1000);
    button.textContent = `Stop (${seconds} of ${most} s)`;
    if (seconds >= most) {
      ended = `, ended at the limit of ${most} s`;
      mine.finish();
    }
  }, 250);
  const taken = new Promise((done) => {
    recorder.onstop = () => {
      if (turn === mine) { // else another has begun, and nobody wants it
        const ending = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
        const type = `${wanted.video ? "video" : "audio"}/${ending}`;
        const seconds = ((Date.now() - began) / 1000).toFixed(0);
        take(new File(pieces, `${name}.${ending}`, { type }), `your recording, ${seconds} s${ended}`);
      }
      done();
    };
  });
  mine.finish = () => {
    if (recorder.state !== "inactive") recorder.stop();
    return taken;
  };
  mine.end = () => {
    clearInterval(clock);
    mine.finish();
    close(stream);
    button.textContent = label;
    button.classList.remove("on");
    forget();
  };
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.start();
  button.textContent = `Stop (0 of ${most} s)`;
  button.classList.add("on");
  get("chosen").textContent = "Recording";
  if (wanted.video) mirror(stream);
}

function formOf(file, ticket) {
  const form = new FormData();
  form.set("model", get("model").value);
  form.set("text", get("text").value);
  form.set("ticket", ticket);
  if (example && !file) form.set("example", example);
  else if (file || clip) form.set("clip", file || clip, (file || clip).name);
  return form;
}

function newTicket() {
  const numbers = crypto.getRandomValues(new Uint32Array(4));
  return Array.from(numbers, (number) => number.toString(16).padStart(8, "0")).join("");
}

/** What the server says to a form: its answer, or {error}. */
async function send(form, signal) {
  const response = await fetch("answer", { method: "POST", body: form, signal });
  const kind = response.headers.get("Content-Type") || "";
  return kind.includes("json") ? response.json() : { error: await response.text() };
}

function showProgress(mine) {
  get("stage").textContent = "Sending the clip";
  show("working", true);
  get("working").scrollIntoView({ block: "nearest" });
  return setInterval(async () => {
    get("clock").textContent = `${Math.round((Date.now() - mine.asked) / 1000)} s`;
    try {
      const { stage } = await (await fetch(`progress/${mine.ticket}`)).json();
      if (turn === mine && stage && stage !== get("stage").textContent) get("stage").textContent = stage;
    } catch (error) { /* the answer itself tells when the server is gone */ }
  }, 500);
}

function cancel() {
  if (Date.now() - turn.asked < 700) return; // the second half of a double click on Answer
  newTurn();
  const rest = clip || example ? " What you chose is still here." : "";
  showNone(`Cancelled.${rest}`);
  get("hint").scrollIntoView({ block: "nearest" });
  get("go").focus();
}

async function answer(event) {
  event.preventDefault();
  if (turn.finish) { // a recording is answered, too
    await turn.finish();
    if (!clip) return;
  }
  if (turn.asked) return;
  const words = get("text").value;
  const shown = player();
  const offer = offerOf(); // the menu may be another one when the answer comes
  const mine = newTurn({ asked: Date.now(), ticket: newTicket() });
  const request = new AbortController();
  const clock = showProgress(mine);
  const rest = () => {
    clearInterval(clock);
    show("working", false);
    get("clock").textContent = "";
    get("go").disabled = false;
  };
  mine.end = () => {
    rest();
    navigator.sendBeacon(`cancel/${mine.ticket}`);
    request.abort();
  };
  get("go").disabled = true;
  if (shown) get("preview").append(shown);
  showNone("The answer is being made.");
  try {
    const { busy } = await (await fetch("about", { signal: request.signal })).json();
    const found = busy ? { error: busy } : await send(formOf(null, mine.ticket), request.signal);
    if (turn !== mine) return;
    if (found.error) { fail(found.error); return; }
    found.took = ((Date.now() - mine.asked) / 1000).toFixed(1);
    found.title = named || found.title; // the server has another name for an upload
    wordsOf = words;
    show("old_words", false);
    if (shown && found.parts.length > 1) get("player").append(shown);
    showFound(found, offer, shown);
    say(`Answer: ${found.head}. ${offer.warning || ""}`);
    get("head").focus({ preventScroll: true });
    get("head").scrollIntoView({ block: "start" });
  } catch (error) {
    if (turn !== mine) return;
    fail("The server does not answer: is it still running? A clip that is too large is refused, too.");
  } finally {
    if (turn === mine) {
      rest();
      turn = { end() {} };
    }
  }
}

function exampleButton({ name, title, sound }) {
  const button = make("button");
  const address = `example/${encodeURIComponent(name)}`;
  const kind = sound ? "audio" : "video";
  button.type = "button";
  button.append(make("div", sound ? "sound" : "video", "kind"), make("span", title));
  button.onclick = () => {
    const thumbnail = button.querySelector("img");
    choose(null, address, title, kind, name, thumbnail ? thumbnail.src : "");
  };
  const item = make("li");
  item.append(button);
  return item;
}

/** Those that there are; the server draws them after its start, and is asked for the others again. */
function showThumbnails(examples, tries = 30) {
  examples.forEach(({ name, thumbnail }, place) => {
    const [button] = document.querySelector("#examples ul").children[place].children;
    if (!thumbnail || button.querySelector("img")) return;
    const picture = make("img");
    picture.alt = "";
    picture.src = `thumbnail/${encodeURIComponent(name)}`;
    button.firstChild.replaceWith(picture);
  });
  if (!tries || examples.every(({ sound, thumbnail }) => sound || thumbnail)) return;
  setTimeout(async () => {
    try {
      showThumbnails((await (await fetch("about")).json()).examples, tries - 1);
    } catch (error) { /* the server is gone: the next answer says so */ }
  }, 2000);
}

async function start() {
  about = await (await fetch("about")).json();
  get("limits").textContent = `video, sound or picture, up to ${about.megabytes} MB and ${about.seconds}\u00a0s`;
  get("model").replaceChildren(...about.models.map(({ name, title }) => new Option(title, name)));
  get("model").onchange = () => showWarning("toy_before", offerOf());
  get("model").onchange();
  get("text").disabled = !about.words;
  show("no_words", !about.words);
  document.querySelector("#examples ul").append(...about.examples.map(exampleButton));
  showThumbnails(about.examples);
  show("examples", about.examples.length > 0);
  get("form").onsubmit = answer;
  get("cancel").onclick = cancel;
  get("remove").onclick = remove;
  addEventListener("beforeunload", (event) => { // his clip and its answer would be lost: he is asked
    if (clip || turn.asked || turn.button) event.preventDefault();
  });
  addEventListener("pagehide", () => newTurn());
  get("text").oninput = () => show("old_words", false);
  get("clear").onclick = () => { get("text").value = ""; show("old_words", false); get("text").focus(); };
  get("clip").onchange = ({ target }) => { if (target.files[0]) take(target.files[0]); };
  const { classList } = get("drop"); // beside it a drop counts, too: else the browser leaves the page
  const isFile = (event) => event.dataTransfer.types.includes("Files");
  document.ondragover = (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    classList.add("over");
  };
  document.ondragleave = () => classList.remove("over");
  document.ondrop = (event) => {
    classList.remove("over");
    if (!isFile(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  };
  get("camera").onclick = (event) => record(event.target, { video: true, audio: true }, "camera");
  get("microphone").onclick = (event) => record(event.target, { audio: true }, "microphone");
  get("live").onclick = (event) => live(event.target);
  document.body.dataset.ready = "yes";
}

start();
