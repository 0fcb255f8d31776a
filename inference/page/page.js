"use strict"; // what a visitor gives, and the way of his question to the server and back
let about = null;
let clip = null; // a File, a Blob, or null
let example = "";
let recorder = null;
let asking = null; // the AbortController of a question that is on its way
let asked = 0; // when it was asked
let ticket = ""; // its name at the server
let wordsOf = null; // the sentence of the last answer

const offerOf = () => about.models[get("model").selectedIndex];
const players = () => [get("video"), get("audio")];
const player = () => players().find((each) => !each.hidden);

/** Nothing is chosen any more: no old clip is answered under a new name, no old answer is shown. */
function forget() {
  clip = null;
  show("found", false);
  show("hint", true);
  example = "";
  get("clip").value = "";
  get("chosen").textContent = "";
  for (const each of players()) {
    if (each.src.startsWith("blob:")) URL.revokeObjectURL(each.src);
    each.pause();
    each.srcObject = null;
    each.removeAttribute("src");
    each.load();
    each.hidden = true;
    get("preview").append(each);
  }
}

function choose(file, url, name, isSound, fromExample = "") {
  forget();
  clip = file;
  example = fromExample;
  get("chosen").textContent = name;
  const shown = isSound ? get("audio") : get("video");
  shown.muted = false; // a recording was silent while it was made
  shown.src = url;
  shown.hidden = false;
  shown.onerror = () => {
    if (!shown.src || shown.hidden) return;
    shown.hidden = true;
    get("chosen").textContent = `${name} (this browser cannot play it; it can be answered all the same)`;
  };
  show("error", false);
  show("old_words", Boolean(get("text").value) && get("text").value === wordsOf);
}

function take(file) {
  if (!file) return;
  if (file.size > about.megabytes * 1e6) {
    forget();
    const size = (file.size / 1e6).toFixed(1);
    fail(`${file.name} has ${size} MB; the limit is ${about.megabytes} MB. No clip is chosen now.`);
    return;
  }
  const isSound = file.type.startsWith("audio/");
  choose(file, URL.createObjectURL(file), file.name, isSound);
}

async function openDevice(wanted) {
  if (!navigator.mediaDevices) {
    fail("Browsers give camera and microphone only to pages of this machine, or over https.");
    return null;
  }
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const what = wanted.video ? "camera" : "microphone";
    const allow = error.name === "NotAllowedError" ? ": allow it in the browser's settings" : "";
    fail(`The browser gives no ${what}: ${error.message}${allow}`);
    return null;
  }
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
  if (recorder) { recorder.stop(); return; }
  const stream = await openDevice(wanted);
  if (!stream) return;
  forget();
  const label = button.textContent;
  const pieces = [];
  const most = about.seconds - 1;
  const began = Date.now();
  let ended = "";
  recorder = new MediaRecorder(stream);
  const clock = setInterval(() => {
    const seconds = Math.floor((Date.now() - began) / 1000);
    button.textContent = `Stop (${seconds} of ${most} s)`;
    if (seconds >= most && recorder) {
      ended = `, ended at the limit of ${most} s`;
      recorder.stop();
    }
  }, 250);
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = () => {
    clearInterval(clock);
    stream.getTracks().forEach((track) => track.stop());
    const ending = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
    recorder = null;
    button.textContent = label;
    button.classList.remove("on");
    const type = wanted.video ? pieces[0].type : `audio/${ending}`;
    take(new File(pieces, `${name}.${ending}`, { type }));
    const seconds = ((Date.now() - began) / 1000).toFixed(0);
    if (clip) get("chosen").textContent = `your recording, ${seconds} s${ended}`;
  };
  recorder.start();
  button.textContent = `Stop (0 of ${most} s)`;
  button.classList.add("on");
  get("chosen").textContent = "Recording";
  if (wanted.video) mirror(stream);
}

function formOf(file) {
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

function showProgress(began) {
  get("stage").textContent = "Sending the clip";
  show("working", true);
  get("working").scrollIntoView({ block: "nearest" });
  return setInterval(async () => {
    get("clock").textContent = `${Math.round((Date.now() - began) / 1000)} s`;
    try {
      const { stage } = await (await fetch(`progress/${ticket}`)).json();
      if (asking && stage && stage !== get("stage").textContent) get("stage").textContent = stage;
    } catch (error) { /* the answer itself tells when the server is gone */ }
  }, 500);
}

function cancel() {
  if (!asking || Date.now() - asked < 700) return; // the second half of a double click on Answer
  navigator.sendBeacon(`cancel/${ticket}`);
  asking.abort();
}

async function answer(event) {
  event.preventDefault();
  if (asking) return;
  const began = Date.now();
  const words = get("text").value;
  const mine = player() || null;
  const offer = offerOf(); // the menu may be another one when the answer comes
  asking = new AbortController();
  asked = began;
  ticket = newTicket();
  get("go").disabled = true;
  show("error", false);
  const clock = showProgress(began);
  try {
    const { busy } = await (await fetch("about", { signal: asking.signal })).json();
    const found = busy ? { error: busy } : await send(formOf(), asking.signal);
    if (found.error) { fail(found.error); return; }
    found.took = ((Date.now() - began) / 1000).toFixed(1);
    wordsOf = words;
    const long = found.parts.length > 1;
    if (mine) get(long ? "player" : "preview").append(mine);
    showFound(found, offer, mine);
    say(`Answer: ${found.head}. ${offer.warning || ""}`);
    get("head").focus({ preventScroll: true });
    get("head").scrollIntoView({ block: "start" });
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled");
    else fail("The server does not answer: is it still running? A clip that is too large is refused, too.");
  } finally {
    clearInterval(clock);
    asking = null;
    show("working", false);
    get("clock").textContent = "";
    get("go").disabled = false;
  }
}

function exampleButton({ name, title }) {
  const address = `example/${encodeURIComponent(name)}`;
  const isSound = /\.(wav|mp3|m4a|flac|ogg|opus|aac)$/i.test(name);
  const button = make("button");
  button.type = "button";
  const picture = isSound ? make("div", "sound", "sound") : make("video");
  if (!isSound) {
    picture.preload = "metadata";
    picture.muted = true;
    picture.playsInline = true;
    picture.tabIndex = -1;
    picture.src = `${address}#t=0.5`;
    picture.setAttribute("aria-hidden", "true");
  }
  button.append(picture, make("span", title));
  button.onclick = () => choose(null, address, title, isSound, name);
  const item = make("li");
  item.append(button);
  return item;
}

async function start() {
  about = await (await fetch("about")).json();
  get("limits").textContent = `video or sound, up to ${about.megabytes} MB and ${about.seconds} s`;
  get("model").replaceChildren(...about.models.map(({ name, title }) => new Option(title, name)));
  get("model").onchange = () => showWarning("toy_before", offerOf());
  get("model").onchange();
  get("text").disabled = !about.words;
  show("no_words", !about.words);
  document.querySelector("#examples ul").append(...about.examples.map(exampleButton));
  show("examples", about.examples.length > 0);
  get("form").onsubmit = answer;
  get("cancel").onclick = cancel;
  addEventListener("pagehide", cancel);
  get("text").oninput = () => show("old_words", false);
  get("clear").onclick = () => { get("text").value = ""; show("old_words", false); get("text").focus(); };
  get("clip").onchange = (event) => take(event.target.files[0]);
  const drop = get("drop");
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  };
  get("camera").onclick = (event) => record(event.target, { video: true, audio: true }, "camera");
  get("microphone").onclick = (event) => record(event.target, { audio: true }, "microphone");
  get("live").onclick = (event) => live(event.target);
  document.body.dataset.ready = "yes";
}

start();
